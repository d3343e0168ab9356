"""Where each word of a narrative is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locap.datasets.records import Narrative, TimedWord
from locap.datasets.shapes import Shapes
from locap.datasets.transforms.word_places import (
    WordCounter,
    aligned_words,
    proportional_words,
    utterance_places,
    word_boxes,
)
from locap.utils.errors import UsageError


@pytest.mark.parametrize(
    ("num_tokens", "valid", "expected"),
    [
        (10, [1, 1, 1, 1], "0 1 1 1 1 2 2 2 3 3"),
        (10, [1, 0, 1, 1], "0 0 2 2 2 2 2 3 3 3"),
        (6, [1, 1, 1], "0 1 1 1 2 2"),
        (3, [1], "0 0 0"),
        (3, [0, 0], "-1 -1 -1"),
        (2, [], "-1 -1"),
        (0, [1, 1], ""),
    ],
)
def test_the_proportional_map(num_tokens, valid, expected):
    assert " ".join(map(str, proportional_words(num_tokens, np.array(valid, bool)))) == expected


@pytest.mark.parametrize(
    ("caption", "utterances", "expected"),
    [
        ("In this picture, a dog.", ["in this", "picture", "a dog"], [0, 0, 1, 2, 2]),
        ("a dog and a cat", ["uh", "a", "dog", "and a", "cat"], [1, 2, 3, 3, 4]),
        ("a puppy runs", ["a", "dog", "runs"], [0, 1, 2]),
        ("so a dog", ["a", "dog"], [0, 0, 1]),  # the first word was not spoken
        ("a dog , running", ["a dog", "running"], [0, 0, 0, 1]),  # a lone comma stays with what was before
        ("one two three four", ["x", "y"], [0, 0, 1, 1]),
        ("a dog", [], [-1, -1]),
        ("", ["a"], []),
    ],
)
def test_words_are_found_among_the_spoken_ones(caption, utterances, expected):
    assert aligned_words(caption.split(), utterances) == expected


@given(st.lists(st.sampled_from(["a", "b", "c d", "e,", "..."]), max_size=8), st.text("abcde .", max_size=20))
def test_aligned_words_go_forward(utterances, caption):
    chosen = aligned_words(caption.split(), utterances)
    assert chosen == sorted(chosen)
    assert all(-1 <= index < max(len(utterances), 0) for index in chosen)


def told(words, traces):
    return Narrative(" ".join(word for word, *_ in words), tuple(TimedWord(*word) for word in words), traces)


def test_a_word_is_where_the_pointer_went_while_it_was_spoken():
    narrative = told([("a", 0, 1), ("b", 1, 2)], (((10.0, 20.0, 0.0), (30.0, 20.0, 1.0)), ((30.0, 60.0, 2.0),)))
    boxes, centers = utterance_places(narrative, extrapolate=False)
    np.testing.assert_allclose(boxes, [[10, 20, 30, 20], [30, 20, 30, 60]])
    np.testing.assert_allclose(centers, [[20, 20], [30, 40]])


def test_sixteen_samples_of_the_path():
    peak = 0.5 / 15  # between the first two samples
    narrative = told([("a", 0, 1)], (((0.0, 1.0, 0.0), (9.0, 1.0, peak), (0.0, 1.0, 2 * peak), (0.0, 1.0, 1.0)),))
    assert utterance_places(narrative, extrapolate=False)[0][0, 2] == pytest.approx(0)


def test_outside_the_paths_time():
    narrative = told([("early", -1, 0), ("late", 2, 3)], (((10.0, 20.0, 0.0), (30.0, 20.0, 2.0)),))
    np.testing.assert_allclose(utterance_places(narrative, extrapolate=False)[0], [[10, 20, 10, 20], [30, 20, 30, 20]])
    np.testing.assert_allclose(utterance_places(narrative, extrapolate=True)[0], [[0, 20, 10, 20], [30, 20, 40, 20]])


def test_points_at_the_same_time_and_words_without_duration():
    stroke = ((1.0, 2.0, 0.0), (50.0, 50.0, 0.0), (3.0, 4.0, 1.0))
    boxes, centers = utterance_places(told([("a", 1, 1), ("b", 5, 6)], (stroke,)), extrapolate=True)
    assert np.isfinite(boxes).all()
    np.testing.assert_allclose(boxes[0], [3, 4, 3, 4])
    np.testing.assert_allclose(centers[0], [3, 4])


def test_boxes_are_clipped_and_as_published_rounded():
    narrative = told([("a", 0, 1), ("b", 1, 2)], (((-5.0, 2.6, 0.0), (105.0, 2.6, 2.0)),))
    options = {"height": 50, "width": 100, "num_tokens": 2, "token_words": [0, 1]}
    np.testing.assert_allclose(word_boxes(narrative, **options), [[0, 2.6, 50, 2.6], [50, 2.6, 100, 2.6]])
    published = word_boxes(narrative, **options, alignment="proportional")
    np.testing.assert_allclose(published, [[0, 3, 50, 3], [50, 3, 100, 3]])
    with pytest.raises(UsageError, match="aligned, proportional"):
        word_boxes(narrative, **options, alignment="guessed")


def test_nothing_was_spoken():
    empty = Narrative("a b", (), (((1.0, 1.0, 0.0), (2.0, 2.0, 1.0)),))
    for alignment in ("aligned", "proportional"):
        boxes = word_boxes(empty, height=5, width=5, num_tokens=2, token_words=[0, 1], alignment=alignment)
        np.testing.assert_array_equal(boxes, np.zeros((2, 4)))


@pytest.mark.parametrize("max_tokens", [40, 6])
def test_pieces_belong_to_their_words(tokenizer, max_tokens):
    tokenizer.max_tokens = max_tokens
    counter = WordCounter(lambda text: len(tokenizer.encode(text)) - 2)
    for _ in range(2):  # the second time from memory
        assert counter.words_of_tokens("a man ' s dog.") == [0, 1, 2, 3, 4, 4][: max_tokens - 2]
    assert counter.words_of_tokens("") == []


def test_pieces_that_depend_on_what_is_before_them():
    counter = WordCounter(lambda text: len(text.replace("b c", "b").split()) * 2)
    assert counter.words_of_tokens("a b c d") == [0, 0, 1, 1, 3, 3]


def test_words_of_shapes_lie_on_what_they_name():
    """By the words themselves every object's name is over the object; by position alone many are not."""
    shares = {}
    for alignment in ("aligned", "proportional"):
        hits = []
        for record in Shapes(20, seed=3, image_size=96):
            narrative = record.narratives[0]
            words = narrative.caption.split()
            boxes = word_boxes(
                narrative, height=96, width=96, num_tokens=len(words), token_words=range(len(words)),
                alignment=alignment,
            )  # fmt: skip
            for region in record.regions:
                name = region.attributes.get("shape")
                if name and words.count(name) == 1:
                    x, y = boxes[words.index(name)].reshape(2, 2).mean(0)
                    x0, y0, x1, y1 = region.box_xyxy
                    hits.append(x0 - 8 <= x <= x1 + 8 and y0 - 8 <= y <= y1 + 8)
        shares[alignment] = np.mean(hits)
    assert shares["aligned"] > 0.95
    assert shares["proportional"] < shares["aligned"]


def test_words_of_real_narratives_lie_on_what_they_name(coco_mini):
    """A phrase's words against the box of its segment, over 17 narratives whose grounding is known."""
    folder = coco_mini / "localized_narratives"
    lines = (folder / "coco_val_localized_narratives.jsonl").read_text(encoding="utf-8").splitlines()
    sizes = {
        image["id"]: image for image in json.loads((coco_mini / "annotations/instances.json").read_text())["images"]
    }
    hits = {"aligned": [], "proportional": []}
    for truth in json.loads((folder / "grounding.json").read_text(encoding="utf-8")):
        item, size = json.loads(lines[truth["line"]]), sizes[int(truth["image_id"])]
        height, width = size["height"], size["width"]
        spoken = item["timed_caption"]
        narrative = Narrative(
            item["caption"],
            tuple(TimedWord(part["utterance"], part["start_time"], part["end_time"]) for part in spoken),
            tuple(tuple((p["x"] * width, p["y"] * height, p["t"]) for p in stroke) for stroke in item["traces"]),
        )
        ends = np.cumsum([len(part["utterance"].split()) for part in spoken])  # the caption is what was spoken
        words = narrative.caption.split()
        assert ends[-1] == len(words)
        for alignment, found in hits.items():
            boxes = word_boxes(
                narrative, height=height, width=width, num_tokens=len(words), token_words=range(len(words)),
                alignment=alignment,
            )  # fmt: skip
            for phrase in truth["phrases"]:
                first, last = phrase["utterances"]
                x0, y0, w, h = phrase["bbox"]
                for box in boxes[ends[first - 1] if first else 0 : ends[last]]:
                    x, y = box.reshape(2, 2).mean(0)
                    found.append(x0 - 5 <= x <= x0 + w + 5 and y0 - 5 <= y <= y0 + h + 5)
    assert np.mean(hits["aligned"]) > 0.9
    assert np.mean(hits["proportional"]) < np.mean(hits["aligned"]) - 0.05
