"""The evaluation that Pix2Cap published, number for number, for comparison with published figures.

It differs from what its names say; the switch ``variant: upstream`` keeps all of it:
    * every overlapping pair of one class is a record of its own, never one-to-one, and predictions that overlap nothing
      of their class are no record; records stand in the order of images and ids, not of scores; crowds count as to
      be found;
    * a record's "METEOR" takes the ground-truth caption for the hypothesis and the single characters of the prediction
      for its references. It is 0 unless a ground-truth word is, or is in WordNet a synonym of, one of those characters
      (in practice the word "a"), and then 0.5 / (0.9 + 0.1 n) for a ground truth of n words;
    * BLEU-4, ROUGE-L and CIDEr of the matched segments are multiplied by matches / (TP + FP + FN); METEOR is always 0.
      A match whose prediction has no caption, not even an empty one, counts among TP only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..datasets.records import Category, Record
from .captions import ngram, tokenize_pairs
from .matching.segments import Matching, Overlap
from .panoptic import add_panoptic_quality
from .ranking.average_precision import average_precision
from .results import ImageId, ProtocolResult, Table

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SCORE_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)

# WordNet 3.0: the lemmas of one lower-case character, and the words that share a synset with them.
_NOUNS = """
    0 cipher cypher nought zero; 1 ace i one single unity; 2 deuce ii two; 3 deuce-ace iii leash tercet ternary
    ternion terzetto three threesome tierce trey triad trine trinity trio triplet troika; 4 four foursome iv
    quadruplet quartet quatern quaternary quaternion quaternity tetrad; 5 cinque fin five fivesome pentad phoebe
    quint quintet quintuplet v; 6 hexad sestet sextet sextuplet six sixer sise vi; 7 heptad septenary septet
    seven sevener vii; 8 eight eighter octad octet octonary ogdoad viii; 9 ennead ix nine niner; b barn; g
    g-force gee gm gram gramme; l liter litre; m meter metre; r radius; s sec second; t mt tonne; w double-u; x
    ex; y wye; z ezed izzard zed zee; a; c; d; e; f; h; i; j; k; n; o; p; q; u; v
"""
_ADJECTIVES = """
    0 zero; 1 ane i one; 2 ii two; 3 iii three; 4 four iv; 5 five v; 6 half-dozen six vi; 7 seven vii; 8 eight
    viii; 9 ix nine; c 100 hundred; d 500; i 1 ane one; k 1000 m thousand; l 50 fifty; m 1000 k thousand; v 5
    five; x 10 ten; u
"""
_NOUN_ENDINGS = (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"))
_NOUN_ENDINGS += (("men", "man"), ("ies", "y"))
_ADJECTIVE_ENDINGS = (("er", ""), ("est", ""), ("er", "e"), ("est", "e"))
_IRREGULAR_NOUNS = {"radii": "radius", "terzetti": "terzetto", "zeroes": "zero", "is": "is"}
_IRREGULAR_ADJECTIVES = {"cer": "cer", "ler": "ler", "vest": "vest"}


def measure(record: Record, overlap: Overlap, matching: Matching) -> dict[str, Any]:
    """Return what the variant must remember of one image, as JSON values."""
    truth, predicted = overlap.truth, overlap.predicted
    pairs = [
        (int(g), int(p))
        for g, p in np.argwhere(overlap.intersection > 0)
        if not truth[g].is_crowd and truth[g].category_id == predicted[p].category_id
    ]
    pairs.sort(key=lambda pair: (truth[pair[0]].id, predicted[pair[1]].id))
    matched = sorted(matching.pairs, key=lambda pair: (truth[pair[0]].id, predicted[pair[1]].id))
    return {
        "truth": len(truth),
        "records": [
            [
                float(overlap.iou[g, p]),
                character_meteor(_caption(truth[g]), _caption(predicted[p])),
                bool(_caption(predicted[p])),
            ]
            for g, p in pairs
        ],
        "captions": [
            [int(truth[g].id), int(predicted[p].id), _caption(truth[g]), _caption(predicted[p])]
            for g, p in matched
            if predicted[p].captions
        ],
    }


def compute(
    result: ProtocolResult, entries: Sequence[tuple[ImageId, Mapping[str, Any]]], categories: Mapping[int, Category]
) -> None:
    """Write the published figures into ``result``."""
    images = [entry for _, entry in entries]
    add_panoptic_quality(result, (image["panoptic"] for image in images), categories)
    records = np.array([row for image in images for row in image["records"]], float).reshape(-1, 3)
    positives = sum(image["truth"] for image in images)
    iou, score, worded = records[:, 0], records[:, 1], records[:, 2] > 0
    rows = []
    for threshold in IOU_THRESHOLDS:
        close = worded & (iou >= threshold)
        rows.append((threshold, None, float(average_precision(close, positives))))
        for least in SCORE_THRESHOLDS:
            rows.append((threshold, least, float(average_precision(close & (score > least), positives))))
    result.tables["average_precision"] = Table(("iou", "score", "average_precision"), rows)
    if positives:
        result.figures["map"] = _mean([value for _, least, value in rows if least is not None])
        result.figures["detection_map"] = _mean([value for _, least, value in rows if least is None])
    else:
        result.undefined |= dict.fromkeys(("map", "detection_map"), "the ground truth has no segment")
    result.counts |= {"truth": positives, "records": len(records)}
    _add_text_metrics(result, [row[2:] for image in images for row in image["captions"]])
    matches = [(image_id, *row) for image_id, entry in entries for row in entry["captions"]]
    result.regions = Table(("image_id", "segment_id", "predicted_id", "reference", "prediction"), matches)
    result.notes.append("variant upstream: map does not measure the wording of the captions, METEOR is 0 by definition")


def _add_text_metrics(result: ProtocolResult, captions: Sequence[tuple[str, str]]) -> None:
    outcomes = result.counts["matched"] + result.counts["false_positives"] + result.counts["false_negatives"]
    factor = len(captions) / outcomes if outcomes else 0.0
    tokens = tokenize_pairs([ours for _, ours in captions], [[theirs] for theirs, _ in captions])
    corpus = ngram.build_corpus(tokens.candidates, tokens.references)
    result.unavailable |= tokens.unavailable
    result.counts["captioned_matches"] = len(captions)
    result.figures |= {
        "text_factor": factor,
        "meteor": 0.0,
        "bleu_4": float(ngram.bleu(corpus)[0][3]) * factor,
        "rouge_l": ngram.rouge_l(corpus)[0] * factor,
        "cider": ngram.cider_d(corpus)[0] * factor,
    }


def character_meteor(truth: str, predicted: str) -> float:
    """Return NLTK's METEOR of the ground truth's words against the prediction's characters, in closed form.

    With a reference of one character at most one word matches: precision 1/n, recall 1, one chunk; so with alpha 0.9,
    gamma 0.5 the score is (1 - 0.5) / (0.9 + 0.1 n).
    """
    words = truth.lower().split()
    characters = {character.lower() for character in predicted}
    if not any(characters & _equal_characters(word) for word in set(words)):
        return 0.0
    precision = 1.0 / len(words)
    return 0.5 * (precision / (0.9 * precision + (1 - 0.9)))


@functools.lru_cache(maxsize=65536)
def _equal_characters(word: str) -> frozenset[str]:
    """Return the single characters that NLTK holds equal to a word: itself, its stem, its WordNet synonyms."""
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem(word)  # NLTK looks up synonyms of the stem, not of the word
    characters = {form for form in (word, stem) if len(form) == 1}
    for table, endings, irregular in (
        (_synonyms(_NOUNS), _NOUN_ENDINGS, _IRREGULAR_NOUNS),
        (_synonyms(_ADJECTIVES), _ADJECTIVE_ENDINGS, _IRREGULAR_ADJECTIVES),
    ):
        regular = [stem.removesuffix(old) + new for old, new in endings if stem.endswith(old)]
        for form in [stem, *([irregular[stem]] if stem in irregular else regular)]:
            characters |= table.get(form, frozenset())
    return frozenset(characters)


@functools.cache
def _synonyms(text: str) -> dict[str, frozenset[str]]:
    """Return word -> characters from a table of "character word word …; …"."""
    table: dict[str, set[str]] = {}
    for group in text.split(";"):
        character, *words = group.split()
        for word in (character, *words):
            table.setdefault(word, set()).add(character)
    return {word: frozenset(characters) for word, characters in table.items()}


def _caption(region: Any) -> str:
    return region.captions[0] if region.captions else ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
