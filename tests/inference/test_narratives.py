"""Pictures of narratives: the path, its colours, the words at their places."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import Narrative, Record, Region, TimedWord
from locap.datasets.shapes import CATEGORIES, Shapes
from locap.inference.caption_list import ListStyle
from locap.inference.narratives import draw_narrative, path_color, place_labels, place_words
from locap.inference.visualise import comparison_grid, draw_record

GREY = np.full((600, 800, 3), 120, np.uint8)


def answer(*words: tuple[str, float, float]) -> Narrative:
    """A narrative as a model tells it: a point per word."""
    return Narrative(
        " ".join(word for word, _, _ in words),
        tuple(TimedWord(word, k, k + 1) for k, (word, _, _) in enumerate(words)),
        tuple(((x, y, k + 0.5),) for k, (_, x, y) in enumerate(words)),
    )


WALK = answer(("horses", 100, 100), ("run", 400, 100), ("towards", 400, 500), ("houses", 700, 500))


def test_words_have_their_places_and_colours():
    words = place_words(WALK, (0.5, 0.25), (400, 150))
    assert [word.point for word in words] == [(50, 25), (200, 25), (200, 125), (350, 125)]
    assert [word.color for word in words] == [path_color(share) for share in (0, 1 / 3, 2 / 3, 1)]
    assert len({word.color for word in words}) == 4


def test_the_path_is_drawn_in_the_colours_of_its_words():
    pixels = np.asarray(draw_narrative(GREY, WALK, (600, 800), panel="none", picture_width=800)).astype(int)
    for share, (x, y) in ((0.1667, (250, 100)), (0.5, (400, 300)), (0.8333, (550, 500))):
        near = pixels[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
        assert np.abs(near - path_color(share)).sum(1).min() < 90
    np.testing.assert_array_equal(pixels[300, 100], [120, 120, 120])


def test_labels_stand_in_the_picture_and_not_over_each_other():
    rng = np.random.default_rng(0)
    crowd = answer(*((f"word{k:03d}", *(rng.random(2) * (800, 600))) for k in range(200)))
    words = place_words(crowd, (1.0, 1.0), (800, 600))
    labels = place_labels(words, (800, 600), ListStyle.for_width(1024))
    assert len(labels) == 24
    for x0, y0, x1, y1 in labels.values():
        assert 0 <= x0 < x1 < 800
        assert 0 <= y0 < y1 < 600
    for one, other in itertools.combinations(labels.values(), 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def test_words_without_a_thing_get_no_label():
    words = place_words(answer(("There", 50, 50), ("is", 90, 90), ("grass.", 400, 300)), (1.0, 1.0), (800, 600))
    assert list(place_labels(words, (800, 600), ListStyle.for_width(1024))) == [2]


def test_a_word_said_twice_at_one_place_stands_there_once():
    told = answer(("grass", 100, 100), ("Grass,", 105, 100), ("is", 200, 300), ("grass", 700, 500))
    words = place_words(told, (1.0, 1.0), (800, 600))
    assert sorted(place_labels(words, (800, 600), ListStyle.for_width(1024))) in ([0, 3], [1, 3])


@pytest.mark.parametrize("panel", ["right", "below", "none"])
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (2000, 4), (5, 1500)])
def test_every_size_is_drawn(size: tuple[int, int], panel: str):
    record = Record("x", size[1], size[0], narratives=(WALK,))
    picture = draw_record(Image.new("RGB", size), record, (), panel=panel, title="a title")
    assert 0 < picture.width <= 1024


@pytest.mark.parametrize(
    "narrative",
    [
        Narrative(""),
        Narrative("no path at all"),
        Narrative("a path, no times", traces=(((1.0, 1.0, 0.0), (90.0, 90.0, 1.0)), ())),
        Narrative("times, no path", (TimedWord("times", 0, 1),)),
        Narrative("far away", (TimedWord("far", 3, 1),), (((-1e30, 1e30, 0.0), (1e30, 0.0, 1.0)),)),
        Narrative("犬 \ud800 " + "x" * 3000, (TimedWord("", 0, 0), TimedWord("犬", 0, 0)), (((5.0, 5.0, 0.0),),)),
        replace(WALK, caption="said otherwise"),
    ],
)
def test_odd_narratives_are_drawn(narrative: Narrative):
    assert draw_record(GREY, Record("odd", 600, 800, narratives=(narrative,)), ()).width <= 1024


def test_narratives_stand_below_the_regions():
    record = Shapes(1, image_size=96)[0]
    whole = draw_record(None, record, CATEGORIES)
    regions = draw_record(None, replace(record, narratives=()), CATEGORIES)
    told = draw_record(None, replace(record, regions=[], id_map=None), CATEGORIES)
    assert whole.height == regions.height + 12 + told.height
    np.testing.assert_array_equal(np.asarray(whole)[: regions.height], np.asarray(regions))
    np.testing.assert_array_equal(np.asarray(whole)[-told.height :], np.asarray(told))


def test_a_comparison_leaves_out_what_one_side_lacks():
    truth = Record("x", 600, 800, regions=[Region(1, box_xyxy=(10, 10, 90, 90))], narratives=(WALK,))
    bare = replace(truth, narratives=())
    compared = [comparison_grid([(GREY, truth, other)], ()).height for other in (truth, bare)]
    assert compared[0] > compared[1] == comparison_grid([(GREY, bare, bare)], ()).height
