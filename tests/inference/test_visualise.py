"""Pictures, table and JSON of a record."""

from __future__ import annotations

import io
import itertools
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from locap.datasets.records import Category, Narrative, Record, Region, encode_mask
from locap.inference.badges import place_badges
from locap.inference.drawing import (
    PALETTE,
    Shapes,
    distance_to_edge,
    load_font,
    printable,
    region_color,
    resize_mask,
    wrap_text,
)
from locap.inference.fonts import draw_text, font_runs, text_length
from locap.inference.visualise import comparison_grid, draw_record, paint_regions, print_regions

CATEGORIES = [Category(1, "circle"), Category(2, "Straßenbahn")]
CAPTION = "A small spotted crimson triangle lies to the left of the large striped turquoise hexagon, partly hidden " * 2


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def crowd(count: int, height: int = 480, width: int = 640) -> Record:
    rng = np.random.default_rng(0)
    regions = [
        Region(
            id=index + 1,
            category_id=1 + index % 2,
            captions=(CAPTION,),
            mask=encode_mask(disc(height, width, *(rng.random(2) * (width, height)), int(rng.integers(1, 60)))),
        )
        for index in range(count)
    ]
    return Record("crowd", height, width, np.full((height, width, 3), 120, np.uint8), regions)


def test_colors_are_stable_and_distinct():
    colors = [region_color(index) for index in range(60)]
    assert len(set(colors)) == 60
    assert colors[:2] == [(47, 111, 237), (255, 140, 26)]
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def lightness(color: tuple[int, int, int]) -> float:
    """CIE L*."""
    channels = np.array(color) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 116 * float(np.cbrt(linear @ (0.2126, 0.7152, 0.0722))) - 16


def test_colors_of_successive_regions_differ_for_the_colour_blind_too():
    assert min(abs(lightness(one) - lightness(other)) for one, other in itertools.pairwise(PALETTE)) > 15


def test_text_is_wrapped_within_the_width():
    font = load_font(15)
    for text in (CAPTION, "http://" + "x" * 300, "Ein Kind läuft; ребёнок бежит; 犬が走る", "犬" * 200):
        lines = wrap_text(text, font, 280, max_lines=100)
        assert max(font.getlength(line) for line in lines) <= 280
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap_text("", font, 280) == []
    cut = wrap_text(CAPTION * 20, font, 280, max_lines=3)
    assert len(cut) == 3
    assert cut[-1].endswith("…")


@pytest.mark.parametrize("panel", ["right", "below"])
@pytest.mark.parametrize("max_width", [512, 1024, 1800])
def test_twelve_captions_of_thirty_words_stand_complete_and_inside(monkeypatch, panel: str, max_width: int):
    record = crowd(12)
    captions = [" ".join(f"{word}{index}" for word in (CAPTION * 2).split()[:30]) for index in range(12)]
    record.regions = [replace(each, captions=(text,)) for each, text in zip(record.regions, captions, strict=True)]
    lines: list[tuple[tuple[float, float], str, ImageFont.FreeTypeFont, tuple[int, int]]] = []

    def keep(draw, place, text, *, font, fill, anchor="la"):
        lines.append((place, text, font, draw.im.size))

    monkeypatch.setattr("locap.inference.caption_list.draw_text", keep)
    draw_record(None, record, CATEGORIES, panel=panel, title="twelve", max_width=max_width)
    assert Counter(" ".join(text for _, text, _, _ in lines).split()) == Counter(
        " ".join([*captions, "twelve", *["circle", "Straßenbahn"] * 6]).split()
    )
    for (x, y), text, font, (width, height) in lines:
        left, top, right, bottom = font.getbbox(text)
        assert min(x + left, y + top) >= 0
        assert x + right <= width
        assert y + bottom <= height
        assert font.size >= 15
    corners = [(x, y, x + font.getlength(text), y + font.size) for (x, y), text, font, size in lines if size[1] > 99]
    for one, other in itertools.combinations(corners, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_character_that_the_font_lacks_comes_from_one_that_has_it():
    font = load_font(15)
    assert font_runs("plain é ребёнок", font) == [("plain é ребёнок", font)]
    lacking = next(chr(code) for code in range(0x1D400, 0x1D800) if code not in FT2Font(font.path).get_charmap())
    (before, own), (char, other), (after, last) = font_runs(f"x {lacking} y", font)
    assert (before, char, after, own, last) == ("x ", lacking, " y", font, font)
    assert other.path != font.path
    assert ord(lacking) in FT2Font(other.path).get_charmap()
    assert text_length(f"x {lacking} y", font) == pytest.approx(
        font.getlength("x ") + other.getlength(lacking) + font.getlength(" y")
    )


@pytest.mark.parametrize("anchor", ["la", "lm", "rm", "ms"])
def test_text_of_several_fonts_stands_where_it_would_in_one(anchor: str):
    places = []
    for text in ("xxxxx", "xx犬xx"):
        picture = Image.new("L", (200, 60), 255)
        draw_text(ImageDraw.Draw(picture), (100, 30), text, font=load_font(15), fill=(0,), anchor=anchor)
        columns, rows = (np.flatnonzero((np.asarray(picture) < 128).any(axis)) for axis in (0, 1))
        places.append((columns[0] if anchor[0] == "l" else columns[-1] if anchor[0] == "r" else 0, rows.mean()))
    np.testing.assert_allclose(*places, atol=4)


@pytest.mark.parametrize(
    "text",
    [
        "一辆红色的公共汽车" * 9,
        "حافلة حمراء وبيضاء تسير على الطريق " * 9,
        "🚌 😀 👩‍👩‍👧 🇺🇳 ",
        "हिन्दी 한국어 ไทย e\u0301",
        "\u200f\ufeff",
    ],
)
def test_any_script_is_drawn_within_its_lines(text: str):
    font = load_font(15)
    assert all(text_length(line, font) <= 280 for line in wrap_text(text, font, 280))
    record = Record(text, 60, 80, np.zeros((60, 80, 3), np.uint8), [Region(1, 1, captions=(text,))])
    record.narratives = (Narrative(text),)
    assert draw_record(None, record, [Category(1, text)], title=text).width == 1024


def test_text_that_no_renderer_accepts_is_cleaned():
    assert printable("a\x1b[31m\n\tb\ud800") == "a [31m b?"


def test_region_is_tinted_and_the_rest_is_untouched():
    image = np.full((600, 600, 3), 100, np.uint8)
    record = Record(1, 600, 600, regions=[Region(id=1, mask=encode_mask(disc(600, 600, 200, 300, 100)))])
    pixels = np.asarray(draw_record(image, record, [], panel="none"))
    expected = 100 + 0.35 * (np.array(region_color(0)) - 100)
    np.testing.assert_allclose(pixels[300, 150], expected, atol=1)
    np.testing.assert_array_equal(pixels[300, 450], [100, 100, 100])


def test_small_region_lies_on_a_large_one_whatever_their_order():
    masks = [disc(600, 600, 300, 300, 40), disc(600, 600, 300, 300, 200)]
    for order in (masks, masks[::-1]):
        record = Record(1, 600, 600, regions=[Region(id=i + 1, mask=encode_mask(m)) for i, m in enumerate(order)])
        _, shapes = paint_regions(np.zeros((600, 600, 3), np.uint8), record, 600, 600)
        assert (shapes.owner > 0).sum() == masks[1].sum()
        assert shapes.owner[300, 300] == 1 + [id(mask) for mask in order].index(id(masks[0]))


def test_badges_do_not_overlap_and_stand_in_their_regions():
    _, shapes = paint_regions(crowd(60).image, crowd(60), 640, 640)
    badges, radius = place_badges(shapes, distance_to_edge(shapes.owner), radius=11)
    assert len(badges) == 60
    for one, other in itertools.combinations(badges, 2):
        assert np.hypot(one.center[0] - other.center[0], one.center[1] - other.center[1]) > 2 * radius
    inside = sum(shapes.owner[badge.center[1], badge.center[0]] == badge.index + 1 for badge in badges)
    assert inside >= 45  # the others are specks, edge slivers or covered
    for badge in badges:
        assert badge.index in shapes.hidden or shapes.owner[badge.anchor[1], badge.anchor[0]] == badge.index + 1


def test_badge_stands_at_the_most_interior_point():
    owner = np.zeros((200, 300), np.int32)
    owner[20:60, 20:280] = 1  # a bar with a knob at the right end
    owner[disc(200, 300, 230, 100, 60)] = 1
    (badge,), _ = place_badges(Shapes(owner), distance_to_edge(owner), radius=10)
    assert np.hypot(badge.center[0] - 230, badge.center[1] - 100) < 12


def test_badges_shrink_where_there_is_no_room():
    owner = np.repeat(np.arange(1, 31, dtype=np.int32), 4)[None].repeat(60, 0)
    badges, radius = place_badges(Shapes(owner), distance_to_edge(owner), radius=18)
    assert len(badges) == 30
    assert radius < 18


def test_small_mask_survives_any_resizing():
    speck = np.zeros((400, 600), bool)
    speck[123, 456] = True
    for size in ((600, 400), (60, 40), (1200, 800), (1800, 1200), (1, 1)):
        assert resize_mask(speck, size).any()
        assert resize_mask(speck, size).shape == size[::-1]


def test_a_phrase_shows_its_box_beside_its_mask():
    mask = encode_mask(disc(600, 600, 300, 300, 40))
    region = Region(1, mask=mask, box_xyxy=(100.0, 150.0, 500.0, 450.0), expressions=("the disc",))
    image = np.full((600, 600, 3), 100, np.uint8)
    for captions in ((), ("a disc",)):
        record = Record(1, 600, 600, regions=[replace(region, captions=captions)])
        pixels = np.asarray(draw_record(image, record, [], panel="none"))
        framed = (pixels[150, 200:400] == region_color(0)).all(-1).any() or (pixels[150, 200:400] == 255).all()
        assert framed == (not captions)


@pytest.mark.parametrize("panel", ["right", "below", "none"])
@pytest.mark.parametrize("size", [(1, 1), (128, 128), (640, 480), (4000, 2), (5, 3000)])
def test_every_size_gets_a_legible_picture(size: tuple[int, int], panel: str):
    width, height = size
    record = Record("x", height, width, regions=[Region(id=1, category_id=1, captions=(CAPTION,), score=0.5)])
    record.regions[0].mask = encode_mask(np.ones((height, width), bool))
    picture = draw_record(Image.new("L", size, 90), record, CATEGORIES, panel=panel, title="a title")
    assert picture.width <= 1024
    assert min(picture.size) >= 48
    assert max(picture.size) >= 512  # small images are enlarged


def test_list_stands_beside_and_a_long_one_flows_on_below():
    few, many = (draw_record(None, crowd(count), CATEGORIES) for count in (2, 60))
    assert few.size == (1024, 480)
    assert many.width == 1024
    assert 1500 < many.height < 4000
    assert draw_record(None, crowd(60), CATEGORIES, panel="none").size == (640, 480)


def odd_record() -> Record:
    return Record(
        "odd",
        300,
        400,
        regions=[
            Region(id=1, box_xyxy=(10, 10, 200, 150), captions=("ребёнок бежит; 犬が走る 🐶",)),
            Region(id=2, mask=encode_mask(disc(300, 400, 300, 100, 0)), category_id=2, captions=("",)),
            Region(id=3, category_id=77, captions=("http://" + "x" * 300 + " \ud800 [bold]x",)),
            Region(id=4, points=((50.0, 250.0),), phrases=("a point",)),
            Region(id=5, mask=encode_mask(np.zeros((300, 400), bool))),
            Region(id=6, mask=encode_mask(disc(300, 400, 300, 200, 30))),
            Region(id=7, mask=encode_mask(disc(300, 400, 300, 200, 30))),
            Region(id=8, box_xyxy=(300.0, 10.0, 250.0, 400.0)),
            Region(id=9, box_xyxy=(-50.0, -50.0, -10.0, -10.0), keypoints=((5.0, 5.0, 2),)),
        ],
    )


def test_odd_regions_are_drawn():
    draw_record(np.zeros((300, 400, 3), np.uint8), odd_record(), CATEGORIES)
    assert draw_record(np.zeros((300, 400, 3), np.uint8), Record("none", 300, 400), []).width == 1024


def test_a_point_that_was_asked_about_is_marked_on_its_answer():
    image = np.full((600, 600, 3), 100, np.uint8)
    mask = encode_mask(disc(600, 600, 300, 300, 200))
    for answer in ({"mask": mask}, {"box_xyxy": (100.0, 100.0, 500.0, 500.0)}, {}):
        record = Record(1, 600, 600, regions=[Region(1, points=((200.0, 250.0),), **answer)])
        picture, shapes = paint_regions(image, record, 600, 600)
        assert (shapes.pins or shapes.points) == {0: [(200.0, 250.0)]}
        if answer:
            assert picture.getpixel((200, 250)) == region_color(0)


def test_regions_come_from_the_id_map():
    ids = np.zeros((600, 600), np.int32)
    ids[:, 300:] = 70000
    record = Record(1, 600, 600, np.zeros((600, 600, 3), np.uint8), [Region(id=70000)], id_map=ids)
    _, shapes = paint_regions(record.image, record, 600, 600)
    np.testing.assert_array_equal(shapes.owner > 0, ids > 0)


def test_masks_of_another_size_than_the_image_are_brought_to_it():
    record = Record(1, 100, 100, regions=[Region(id=1, mask=encode_mask(np.tri(100, dtype=bool)))])
    _, shapes = paint_regions(np.zeros((600, 600, 3), np.uint8), record, 600, 600)
    assert shapes.owner[500, 100] == 1
    assert shapes.owner[100, 500] == 0


def test_comparison_grid_sets_truth_beside_prediction():
    truth, prediction = crowd(3), crowd(2)
    grid = comparison_grid([(None, truth, prediction)] * 3, CATEGORIES, columns=2, pair_width=900)
    one = comparison_grid([(None, truth, prediction)], CATEGORIES, pair_width=900)
    assert grid.size == (1800, 2 * one.height)
    left, right = np.asarray(one)[:, :440], np.asarray(one)[:, 460:900]
    assert (left != right).any()
    assert comparison_grid([], CATEGORIES).width >= 1


def test_table_shows_numbers_boxes_and_raw_captions():
    out = io.StringIO()
    record = Record(
        1, 300, 400, regions=[Region(1, 2, box_xyxy=(1, 2, 30, 40), captions=("[red]x[/red]",), score=0.876)]
    )
    print_regions(record, CATEGORIES, Console(file=out, width=120))
    row = next(line for line in out.getvalue().splitlines() if "Straßenbahn" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "1",
        "Straßenbahn",
        "0.88",
        "1 2 30 40",
        "[red]x[/red]",
    ]
    print_regions(odd_record(), CATEGORIES, Console(file=out, width=80))


def test_drawing_is_fast():
    record = crowd(15)
    draw_record(None, record, CATEGORIES)  # fonts are loaded once
    start = time.process_time()
    draw_record(None, record, CATEGORIES)
    assert time.process_time() - start < 0.6
