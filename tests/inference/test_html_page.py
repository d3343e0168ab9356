"""Results as one HTML file: safe, complete, and linked both ways."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import Category, Narrative, Record, Region, TimedWord, encode_mask
from locap.datasets.shapes import Shapes
from locap.inference.drawing import rasterise, region_color
from locap.inference.html_page import figures_page, result_figure, result_page
from locap.inference.region_figure import SCRIPT, outlines, region_figure
from locap.inference.results import Result

from .pages import Page

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \"' \ud800"
CATEGORIES = (Category(1, f"circle {EVIL}"),)
CHROMIUM = Path("/usr/bin/chromium")


def square_record(captions: tuple[str, ...] = (EVIL,)) -> Record:
    mask = np.zeros((120, 160), bool)
    mask[20:80, 30:110] = True
    mask[40:60, 50:80] = False
    regions = [
        Region(1, 1, encode_mask(mask), captions=captions, score=0.9, points=((40.0, 30.0),)),
        Region(2, 1, box_xyxy=(0, 0, 40, 40), captions=("a corner",)),
        Region(3, points=((150.0, 110.0),), captions=("a point",)),
    ]
    words = tuple(TimedWord(f"word{k}", k / 2, k / 2 + 0.4) for k in range(5))
    path = tuple((10.0 + 30 * k, 60.0, k / 2) for k in range(6))
    told = Narrative(" ".join(word.text for word in words), words, (path,))
    return Record("scene <1>", 120, 160, np.full((120, 160, 3), 90, np.uint8), regions, narratives=(told,))


def result(**more) -> Result:
    record = square_record(**more)
    return Result(record, CATEGORIES, record.image)


def test_outlines_follow_region_and_hole():
    record = square_record()
    paths = outlines(rasterise(record, (640, 480)))
    rings = [np.array(re.findall(r"(-?\d+) (-?\d+)", ring), int) for ring in paths[0].split("M")[1:]]
    boxes = sorted((*ring.min(0), *ring.max(0)) for ring in rings)
    np.testing.assert_allclose(boxes, [(120, 80, 440, 320), (200, 160, 320, 240)], atol=2)
    assert max(map(len, rings)) < 40  # corners, not every pixel
    assert paths[1] == "M0 0H160V160H0Z"


def test_regions_captions_and_words_are_linked_both_ways():
    page = Page(region_figure(None, square_record(), CATEGORIES))
    assert page.keyed("0") == ["circle", "g", "g", "li"]  # the point asked about, area, badge, caption
    assert page.keyed("1") == ["g", "g", "li"]
    assert page.keyed("2") == ["circle", "g", "li"]
    for word in range(5):
        assert page.keyed(f"w0.{word}") == ["circle", "span"]
    reached = [attrs["data-key"] for tag, attrs in page.tags if attrs.get("tabindex") == "0" and tag in ("li", "g")]
    assert sorted(reached) == ["0", "0", "1", "1", "2"]  # without a mouse


def test_a_number_has_one_colour_in_picture_list_and_page():
    text = region_figure(None, square_record(), CATEGORIES)
    for index in range(3):
        color = "#{:02x}{:02x}{:02x}".format(*region_color(index))
        discs = re.findall(rf'fill="(#\w+)"/><text [^>]*>{index + 1}</text>', text)
        assert discs == [color, color]  # badge in the picture, number in the list


def test_page_is_one_safe_file():
    text = result_page([result()], f"Title {EVIL}")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert all(attrs.get("src", "data:").startswith("data:") and "href" not in attrs for _, attrs in page.tags)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(re.search(r"<script>(.*)</script>", text, re.S)[1].encode()).digest())
    assert f"script-src 'sha256-{digest.decode()}'" in policy
    assert SCRIPT in text
    assert EVIL.replace("\ud800", "?") in " ".join(page.words)  # as text, complete
    text.encode("utf-8")


@pytest.mark.parametrize("size", [(1, 1), (3000, 4), (5, 2000), (1500, 900)])
def test_images_of_any_size_are_embedded_and_never_enlarged(size: tuple[int, int]):
    record = Record("x", size[1], size[0], np.zeros((*size[::-1], 3), np.uint8), [Region(1, box_xyxy=(0, 0, 1, 1))])
    text = region_figure(None, record, ())
    embedded = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)", text)[1])))
    assert max(embedded.size) == min(960, max(size))


def test_many_images_load_late_and_the_page_states_its_size():
    scenes = Shapes(1, split="test", image_size=64)
    figure = result_figure(Result(scenes[0], scenes.categories, scenes[0].read_image()))
    text = figures_page((figure for _ in range(50)), "50 scenes")
    images = [attrs for tag, attrs in Page(text).tags if tag == "img"]
    assert len(images) == 50
    assert all(attrs["loading"] == "lazy" and attrs["width"] == "64" for attrs in images)
    assert float(re.search(r"50 images, ([\d.]+) MB", text)[1]) == pytest.approx(len(text) / 1e6, abs=0.1)
    assert len(text) < 4e6


def test_a_result_is_a_page_of_its_own():
    assert result().to_html() == result_page([result()], "scene <1>")
    assert "<h1>mine</h1>" in result().to_html("mine")


def test_a_result_without_regions_says_so():
    empty = Record(1, 20, 20, np.zeros((20, 20, 3), np.uint8))
    assert "no regions" in result_page([Result(empty, (), empty.image)], "empty")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium at /usr/bin/chromium (apt install chromium)")
def test_pointing_marks_the_other_side_in_a_browser(tmp_path: Path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file = tmp_path / "page.html"
    file.write_text(result_page([result()], f"fine {EVIL}"), encoding="utf-8")
    marked = "[...document.querySelectorAll('.on')].map(part => part.localName + part.dataset.key).sort().join(' ')"
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        failures: list[object] = []
        page.on("pageerror", lambda error: failures.append(error))
        page.on("console", lambda message: failures.append(message.text))
        page.on("request", lambda request: failures.append(request.url) if request.url.startswith("http") else None)
        page.goto(file.as_uri())
        page.hover("li[data-key='1']")
        assert page.evaluate(marked) == "g1 g1 li1"
        page.hover(".badge[data-key='0']")
        assert page.evaluate(marked) == "circle0 g0 g0 li0"
        page.hover(".word >> nth=2")
        assert page.evaluate(marked) == "circlew0.2 spanw0.2"
        page.click("li[data-key='1']")
        page.hover("h1")
        assert page.evaluate(marked) == "g1 g1 li1"  # pinned
        page.keyboard.press("Escape")
        assert page.evaluate(marked) == ""
        page.focus(".area[data-key='0']")
        page.keyboard.press("Enter")
        assert page.get_attribute("li[data-key='0']", "aria-pressed") == "true"
        page.set_viewport_size({"width": 1000, "height": 300})  # the list is longer than its box
        page.mouse.move(0, 0)
        page.evaluate("document.querySelector('.texts').scrollTop = 0")
        page.hover(".badge[data-key='2']")
        bottom = "document.querySelector('li[data-key=\"2\"]').getBoundingClientRect().bottom"
        assert page.evaluate(bottom) <= 300
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.title().startswith("fine <script>")
        assert not failures
        browser.close()
