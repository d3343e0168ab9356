"""What the embedded data set says: true, readable back, and never about another region."""

from __future__ import annotations

import dataclasses
import re

import pytest

from locap.datasets.records import Record, Region
from locap.datasets.shapes import CaptionFacts, Shapes, holds, read_caption

STATED = ("shape", "colour", "size", "texture", "relation", "other_colour", "other_shape")
SENTENCE = CaptionFacts("star", "red", "small", "striped", "left of", "blue", "heart")


@pytest.fixture(scope="module")
def records():
    return list(Shapes(400, split="val", image_size=48))


def things(record):
    return [region for region in record.regions if region.keypoints]


def test_every_caption_reads_back_as_the_truth(records):
    complete = 0
    for record in records:
        for region in things(record):
            for caption in region.captions:
                facts = read_caption(caption)
                for name in STATED:
                    assert getattr(facts, name) == region.attributes[name], caption
                assert facts.ground in (None, region.attributes["ground"])
                complete += facts.ground is not None
    assert complete > 0  # the ground is said in some


def test_every_caption_holds(records):
    for record in records:
        for region in record.regions:
            for caption in region.captions:
                truth = holds(read_caption(caption), region, record)
                assert False not in truth.values(), caption
                said = ("shape", "colour", "size", "texture", "relation") if region.keypoints else ("ground", "place")
                assert all(truth[name] for name in said), caption


def test_captions_are_plain_sentences_of_6_to_20_words(records):
    starts = set()
    for record in records:
        for region in record.regions:
            assert len(set(region.captions)) == len(region.captions)
            for caption in region.captions:
                assert 6 <= len(caption.split()) <= 20, caption
                assert re.fullmatch(r"[a-z]+( [a-z]+)*", caption)
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)
                starts.add(tuple(caption.split()[:2]))
            assert all(2 <= len(phrase.split()) <= 4 for phrase in region.phrases)
            assert len(set(region.phrases)) == 2
    assert len(starts) > 30  # the grammar varies


@pytest.mark.parametrize(
    "caption",
    [
        "a small red striped star is to the left of a blue heart",
        "to the left of the blue heart there is a small red striped star",
        "left of a blue heart lies a small striped red star",
        "the red star is small and striped and lies to the left of a blue heart",
        "the small star to the left of a large dotted blue heart is red and striped",
        "To the left of the blue heart: a small red star, striped.",
    ],
)
def test_subject_and_other_object_are_told_apart_in_every_word_order(caption):
    assert read_caption(caption) == SENTENCE


def test_reading_survives_mistakes():
    assert read_caption("") == CaptionFacts()
    assert read_caption("to the left of") == CaptionFacts(relation="left of")
    assert read_caption("there is a small striped") == CaptionFacts(size="small", texture="striped")
    assert read_caption("above the blue there is a red star") == CaptionFacts(
        "star", "red", relation="above", other_colour="blue"
    )
    twice = read_caption("above the blue heart there is a star left of the red cross")
    assert twice == CaptionFacts("star", relation="above", other_colour="blue", other_shape="heart")
    assert read_caption("the red red star is blue").colour == "red"


def thing(region_id, shape, colour, x, y):
    attributes = {"shape": shape, "colour": colour, "size": "small", "texture": "plain", "ground": "sand"}
    return Region(region_id, attributes=attributes, keypoints=((x, y, 2),))


def test_relations_hold_by_geometry_not_by_the_stored_word():
    star, heart = thing(1, "star", "red", 20, 50), thing(2, "heart", "blue", 60, 40)
    record = Record(0, 100, 100, regions=[star, heart, thing(3, "circle", "green", 66, 40)])

    def relation(region, word, colour="blue", shape="heart"):
        facts = dataclasses.replace(SENTENCE, relation=word, other_colour=colour, other_shape=shape)
        return holds(facts, region, record)["relation"]

    assert relation(star, "left of") is True
    assert relation(star, "right of") is False
    assert relation(star, "below") is False  # 10 down against 40 sideways
    assert relation(star, "left of", colour="red") is False  # no such object
    assert relation(heart, "left of") is False  # never of itself
    assert relation(heart, "behind", "green", "circle") is True
    assert relation(heart, "in front of", "green", "circle") is False
    assert relation(star, "behind") is False  # too far apart to overlap
    assert relation(star, None) is None
    truth = holds(dataclasses.replace(SENTENCE, size="large", texture=None), star, record)
    assert (truth["size"], truth["texture"], truth["shape"], truth["colour"]) == (False, None, True, True)


def test_an_expression_fits_its_own_region_only(records):
    by_relation = 0
    for record in records:
        for region in things(record):
            assert region.expressions
            for expression in region.expressions:
                facts = read_caption(expression)
                fitting = [r.id for r in record.regions if False not in holds(facts, r, record).values()]
                assert fitting == [region.id], expression
            by_relation += len(region.expressions) - 1
    assert by_relation > 0


def test_narratives_name_each_object_once_while_the_pointer_is_over_it(records):
    for record in records:
        (narrative,) = record.narratives
        assert narrative.caption == " ".join(word.text for word in narrative.words)
        assert len(narrative.traces) == len(things(record))
        times = [word.start for word in narrative.words]
        assert times == sorted(times)
        named = []
        for stroke in narrative.traces:
            begin, end = stroke[0][2], stroke[-1][2]
            spoken = [w.text for w in narrative.words if begin - 1e-6 <= w.start and w.end <= end + 1e-6]
            facts = read_caption(" ".join(spoken))
            centre = [sum(point[axis] for point in stroke) / len(stroke) for axis in (0, 1)]
            region = min(
                things(record), key=lambda r: sum((a - b) ** 2 for a, b in zip(r.keypoints[0], centre, strict=False))
            )
            assert [facts.size, facts.colour, facts.texture, facts.shape] == [
                region.attributes[name] for name in ("size", "colour", "texture", "shape")
            ]
            named.append(region.id)
        assert sorted(named) == [region.id for region in things(record)]


def test_conversations_point_at_regions_that_exist(records):
    for record in records:
        ids = {region.id for region in record.regions}
        for talk in record.conversations:
            assert [turn.role for turn in talk] == ["user", "assistant"] * (len(talk) // 2)
            assert {k for turn in talk for k in turn.region_ids} <= ids
        counted = record.conversations[1][1]
        kinds = {region.category_id for region in record.regions if region.id in counted.region_ids}
        assert len(kinds) == 1
        assert len(counted.region_ids) == sum(region.category_id in kinds for region in record.regions)
        assert len(record.captions) == 2
