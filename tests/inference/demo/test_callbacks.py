"""What happens behind the page, without a browser."""

from __future__ import annotations

import math
import time
from contextlib import closing

import numpy as np
import pytest

from locap.datasets.records import Record, Region, decode_mask, encode_mask
from locap.inference.demo.callbacks import Callbacks, rows_of, text_of
from locap.inference.demo.limits import MAX_CHARACTERS, MAX_REGIONS
from locap.inference.demo.questions import checked_asks, checked_words
from locap.inference.demo.uploads import decode_bytes, decode_data_uri, painted
from locap.inference.results import Result
from locap.utils.errors import DataError, UsageError


@pytest.fixture
def callbacks(service):
    return Callbacks(service)


@pytest.fixture
def halves(kit, tmp_path):
    """An image, red at the left and blue at the right."""
    pixels = kit.plain(250, 0, 0)
    pixels[:, 30:] = (0, 0, 250)
    (tmp_path / "halves.png").write_bytes(kit.png(pixels))
    return tmp_path / "halves.png"


def last(answers):
    return list(answers)[-1]


def test_two_clicks_make_a_box(callbacks, halves):
    desk = callbacks.open_file(halves)
    desk, place = callbacks.click(desk, "Box", 55, 30)
    assert (desk.corner, place) == ((55, 30), "")
    desk, place = callbacks.click(desk, "Box", 35, 10)  # in any order
    assert (desk.corner, place) == (None, "35 10 56 31")
    answer = last(callbacks.answer(desk, "Box", place=place))
    assert answer.text == "rgb 0 0 250"
    assert answer.rows == [["1", "thing", "0.50", "35 10 56 31", "rgb 0 0 250"]]
    assert answer.picture.width >= 60


def test_a_click_makes_a_point(callbacks, halves):
    desk, place = callbacks.click(callbacks.open_file(halves), "Point", 3, 4)
    assert place == "3.5 4.5"
    assert last(callbacks.answer(desk, "Point", place=place)).text == "rgb 250 0 0"


def test_large_images_are_shown_smaller_and_asked_about_in_their_own_pixels(callbacks, kit, tmp_path):
    (tmp_path / "large.png").write_bytes(kit.png(kit.plain(9, 9, 9, height=100, width=2560)))
    desk = callbacks.open_file(tmp_path / "large.png")
    assert desk.shown.shape == (50, 1280, 3)
    desk, _ = callbacks.click(desk, "Box", 0, 0)
    assert callbacks.click(desk, "Box", 1279, 49)[1] == "0 0 2560 100"


def test_what_was_chosen_is_marked(callbacks, halves):
    desk = callbacks.open_file(halves)
    corner, _ = callbacks.click(desk, "Box", 20, 20)
    for marked in (callbacks.marked(corner, "Box", ""), callbacks.marked(desk, "Point", "20 20")):
        assert np.asarray(marked)[20, 20].tolist() == [255, 64, 96]
    boxed = np.asarray(callbacks.marked(desk, "Box", "10 5 50 35"))
    assert boxed[5, 30].tolist() == [255, 64, 96]
    assert boxed[20, 20].tolist() == [250, 0, 0]


def test_a_painting_is_a_mask(callbacks, halves, kit):
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[5:20, 32:50] = (255, 64, 96, 255)
    answer = last(callbacks.answer(callbacks.open_file(halves), "Brush", layers=[kit.png(layer)]))
    assert answer.text == "rgb 0 0 250"
    assert answer.rows[0][3] == "32 5 50 20"


def test_an_empty_painting_is_told(callbacks, halves, kit):
    layer = kit.png(np.zeros((40, 60, 4), np.uint8))
    with pytest.raises(UsageError, match="The mask is empty"):
        list(callbacks.answer(callbacks.open_file(halves), "Brush", layers=[layer]))
    with pytest.raises(DataError, match="not of the image's shape"):
        list(callbacks.answer(callbacks.open_file(halves), "Brush", layers=[kit.png(np.zeros((9, 60, 4), np.uint8))]))


def test_phrases_are_found_one_a_line(callbacks, halves):
    answer = last(callbacks.answer(callbacks.open_file(halves), "Phrase", phrase="the red part\n\na tree"))
    assert answer.text == "1. found at 1 1 5 5\n2. found at 1 1 5 5"
    assert [row[1] for row in answer.rows] == ["the red part", "a tree"]


def test_everything_is_described(callbacks, halves):
    assert last(callbacks.answer(callbacks.open_file(halves), "Everything")).text == "rgb 125 0 125"


def test_only_modes_that_the_system_takes(service, colours, halves):
    colours.takes = frozenset({"point"})
    callbacks = Callbacks(service)
    assert callbacks.modes == ["Point", "Everything"]
    with pytest.raises(UsageError, match="no such mode"):
        list(callbacks.answer(callbacks.open_file(halves), "Box", place="1 1 9 9"))


def test_own_words_reach_the_system(callbacks, colours, halves):
    desk = callbacks.open_file(halves)
    list(callbacks.answer(desk, "Box", place="1 1 9 9", question=" what\x00 is\nit? "))
    list(callbacks.answer(desk, "Box", place="1 1 9 9"))
    assert colours.prompts == ["what is it?", None]
    with pytest.raises(UsageError, match="question is empty"):
        list(callbacks.answer(desk, "Box", place="1 1 9 9", question="?!"))


def test_captions_grow_and_end_with_everything_known(callbacks, colours, halves):
    colours.words, colours.pause = 4, 0.2
    answers = list(callbacks.answer(callbacks.open_file(halves), "Box", place="0 0 9 9"))
    assert [answer.text for answer in answers[:3]] == ["rgb", "rgb 250", "rgb 250 0"]
    assert answers[0].picture is None
    assert answers[0].rows == [["1", "", "", "0 0 9 9", "rgb"]]
    assert answers[-1].picture is not None
    assert answers[-1].rows == [["1", "thing", "0.50", "0 0 9 9", "rgb 250 0 0"]]


def test_what_is_written_so_far(service, kit, monkeypatch):
    """Of everything, regions are told as they come, and words about the whole image."""
    seen = service.captioner.see(kit.plain(1, 2, 3))

    def ask(seen, asks, watch):
        for changes in ([(1, "b"), (0, "")], [(-1, "a field")]):
            time.sleep(0.2)
            watch(changes)
        return Result(Record(1, 40, 60), (), np.zeros((40, 60, 3), np.uint8))

    monkeypatch.setattr(service.captioner, "ask", ask)
    assert [text_of(result) for result in service.stream(seen)] == [
        "1. …\n2. b", "a field\n1. …\n2. b", "Nothing found."
    ]  # fmt: skip


@pytest.mark.fault("J7")
def test_a_user_who_leaves_ends_the_generation(service, colours, halves):
    colours.words, colours.pause = 1000, 0.01
    callbacks = Callbacks(service)
    desk = callbacks.open_file(halves)
    with closing(callbacks.answer(desk, "Box", place="0 0 9 9")) as answers:
        next(answers)
    service.submit(lambda: None).result()  # its turn comes at once
    assert colours.written < 50


def test_nothing_is_chosen_yet(callbacks, halves):
    for mode in ("Box", "Point"):
        with pytest.raises(UsageError, match="Nothing is chosen yet"):
            list(callbacks.answer(callbacks.open_file(halves), mode, place=" "))


def test_no_image_yet(callbacks):
    assert callbacks.open_file(None) is None
    with pytest.raises(UsageError, match="no image yet"):
        callbacks.click(None, "Box", 1, 1)


@pytest.mark.fault("J5")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("box", (50, 30, 10, 5)), (10, 5, 50, 30)),
        (("box", (-1e9, -5, 1e9, 5)), (0, 0, 60, 5)),
        (("point", (60, 40)), (60, 40)),
    ],
)
def test_places_are_put_right(given, kept):
    assert checked_asks([given], 40, 60)[0].value == kept


@pytest.mark.fault("J5")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("box", (math.nan, 0, 5, 5)), "Not a box"),
        (("box", (0, 0, math.inf, 5)), "Not a box"),
        (("box", (0, 0, 5)), "Not a box"),
        (("box", (70, 0, 90, 5)), "no area in the image"),
        (("box", (5, 5, 5, 9)), "no area in the image"),
        (("point", (61, 0)), "outside the image"),
        (("point", (math.nan, 0)), "Not a point"),
        (("text", " \n "), "phrase is empty"),
        (("text", "a" * 1_000_000), "phrase is too long"),
        (("mask", {"size": [4, 4], "counts": [16]}), "not of the image's size"),
        (("mask", {"size": [40, 60], "counts": [2400]}), "The mask is empty"),
    ],
)
def test_places_that_are_none_are_refused(given, message):
    with pytest.raises(UsageError, match=message) as err:
        checked_asks([given], 40, 60)
    assert len(str(err.value)) < 3000


@pytest.mark.fault("J5")
def test_as_many_regions_and_letters_as_allowed():
    assert len(checked_asks([("point", (1, 1))] * MAX_REGIONS, 40, 60)) == MAX_REGIONS
    with pytest.raises(UsageError, match="Too many regions"):
        checked_asks([("point", (1, 1))] * 10_000, 40, 60)
    assert len(checked_words("a" * MAX_CHARACTERS, "phrase")) == MAX_CHARACTERS


def test_masks_pass_unchanged():
    mask = np.zeros((40, 60), bool)
    mask[3:9, 5:20] = True
    (ask,) = checked_asks([("mask", encode_mask(mask))], 40, 60)
    np.testing.assert_array_equal(decode_mask(ask.value), mask)


def test_data_uris(kit):
    import base64

    pixels = np.dstack([kit.plain(1, 2, 3), np.full((40, 60), 7, np.uint8)])
    address = "data:image/png;base64," + base64.b64encode(kit.png(pixels)).decode()
    read, alpha = decode_data_uri(address)
    np.testing.assert_array_equal(read, pixels[..., :3])
    assert (alpha == 7).all()
    assert decode_bytes(kit.png(pixels[..., :3]))[1] is None
    for wrong in (address + "§", "data:image/png,abc", "data:;base64,", "/etc/passwd"):
        with pytest.raises(DataError):
            decode_data_uri(wrong)
    with pytest.raises(DataError, match="no transparent part"):
        painted(kit.png(pixels[..., :3]))


def test_a_narrative_comes_first():
    from locap.datasets.records import Narrative

    record = Record(1, 40, 60, regions=[Region(1)], narratives=(Narrative("a field"),))
    result = Result(record, (), np.zeros((40, 60, 3), np.uint8))
    assert text_of(result) == "a field\n1. not found"
    assert rows_of(result) == [["1", "", "", "", ""]]
