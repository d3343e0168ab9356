"""Where each word of a narrative is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locap.datasets.records import Narrative, TimedWord
from locap.datasets.shapes import Shapes
from locap.datasets.transforms.word_places import (
    aligned_words,
    proportional_words,
    utterance_places,
    word_boxes,
    words_of_tokens,
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


def test_pieces_belong_to_their_words(tokenizer):
    def count(text):
        return len(tokenizer.encode(text)) - 2

    assert words_of_tokens("a man ' s dog.", count) == [0, 1, 2, 3, 4, 4]
    assert words_of_tokens("", count) == []


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
