"""METEOR as NLTK computes it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from locap.evaluation.captions import wordnet as wordnet_files
from locap.evaluation.captions.nltk_meteor import nltk_meteor_scores
from locap.evaluation.captions.wordnet import WordNet, shared_wordnet
from locap.utils.errors import MissingDependencyError

HEADER = "  1 This software and database: WordNet 3.0 Copyright 2006\n"
FILES = dict.fromkeys((f"{kind}.{part}" for kind in ("data", "index") for part in ("verb", "adj", "adv")), HEADER)
FILES |= dict.fromkeys(("verb.exc", "adj.exc", "adv.exc"), "")
FILES |= {
    "data.noun": HEADER + "00000010 06 n 03 car 0 auto(p) 0 motor_car 0 000 | a\n00000020 06 n 01 mouse 0 000 | b\n",
    "index.noun": HEADER + "auto n 1 0 1 0 00000010\ncar n 1 0 1 0 00000010\nmouse n 1 0 1 0 00000020\n",
    "noun.exc": "mice mouse\n",
}


@pytest.fixture
def tiny() -> WordNet:
    return WordNet(FILES.__getitem__)


@pytest.fixture
def no_wordnet(monkeypatch, tmp_path):
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    monkeypatch.setattr(wordnet_files, "SYSTEM_FOLDER", tmp_path / "none")
    shared_wordnet.cache_clear()
    yield tmp_path / "corpora" / "wordnet"
    shared_wordnet.cache_clear()


def test_synonyms(tiny):
    assert tiny.synonyms("cars") == {"car", "auto"}  # words of several words are left out, "(p)" is no part of a word
    assert tiny.synonyms("Mice") == {"mouse"}
    assert tiny.synonyms("bird") == frozenset()


@pytest.mark.parametrize(
    ("candidate", "references", "score"),
    [
        ("the dog runs", ["the dog runs"], 1 - 0.5 / 27),
        ("Dogs running", ["dog runs"], 1 - 0.5 / 8),  # stems
        ("car", ["auto"], 0.5),  # synonyms
        ("a b", ["b a"], 0.5),  # two chunks of two matches
        ("a x", ["y", "a"], 0.5 * (0.5 * 1) / (0.9 * 0.5 + 0.1)),  # the best reference
        ("", ["a"], 0.0),
        ("a", [""], 0.0),
        ("a", [], 0.0),
    ],
)
def test_known_pairs(tiny, candidate, references, score):
    assert nltk_meteor_scores([candidate], [references], tiny)[0] == pytest.approx(score, abs=1e-12)


def test_files_are_found_in_the_data_of_nltk(no_wordnet):
    with pytest.raises(MissingDependencyError, match=r"(?s)not on this machine.*nltk\.downloader wordnet"):
        shared_wordnet()
    no_wordnet.mkdir(parents=True)
    for name, text in FILES.items():
        (no_wordnet / name).write_text(text.replace("3.0", "3.1"))
    with pytest.raises(MissingDependencyError, match=r"not version 3\.0"):
        shared_wordnet()
    for name, text in FILES.items():
        (no_wordnet / name).write_text(text)
    assert shared_wordnet().synonyms("car") == {"car", "auto"}


def test_equals_nltk_on_stored_pairs(shared):
    try:
        shared_wordnet()
    except MissingDependencyError as err:
        pytest.skip(f"NLTK's METEOR was not checked on stored pairs: {err.what}")
    folder = shared / "golden" / "eval" / "meteor_pairs"
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    expected = json.loads((folder / "expected.json").read_text())["nltk_scores"]
    scores = nltk_meteor_scores([pair["hyp"] for pair in pairs], [pair["refs"] for pair in pairs])
    assert np.abs(scores - expected).max() <= 1e-12
