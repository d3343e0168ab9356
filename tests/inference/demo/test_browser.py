"""The page in a real browser: an image is uploaded, a box is clicked, the caption is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api", reason="playwright is absent: no browser was driven")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HERE = ("127.0.0.1", "localhost", None)  # None: an image within the page


@pytest.fixture
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is absent: no browser was driven")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def click(page, x, y):
    """Click where the image of 450 x 300 pixels has the pixel (x, y)."""
    box = page.locator("#image img").bounding_box()
    scale = min(box["width"] / 450, box["height"] / 300, 1)  # it stands in the middle of its frame
    left, top = box["x"] + (box["width"] - 450 * scale) / 2, box["y"] + (box["height"] - 300 * scale) / 2
    page.mouse.click(left + (x + 0.5) * scale, top + (y + 0.5) * scale)


def caption_is(page, text):
    page.wait_for_function(
        "text => document.querySelector('#caption textarea').value === text", arg=text, timeout=10_000
    )


@pytest.mark.slow
@pytest.mark.fault("J11")
def test_a_box_is_clicked_and_its_caption_read(serve, service, kit, tmp_path, page):
    pixels = kit.plain(250, 0, 0, height=300, width=450)
    pixels[:, 225:] = (0, 0, 250)
    (tmp_path / "halves.png").write_bytes(kit.png(pixels))
    (tmp_path / "text.png").write_text("<html>")
    asked: set[str | None] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    page.goto(serve(service, examples=[np.zeros((40, 60, 3), np.uint8)]))
    page.locator("#image input[type=file]").wait_for(state="attached", timeout=30_000)

    page.set_input_files("#image input[type=file]", tmp_path / "text.png")
    page.get_by_text("The image cannot be read").wait_for()
    page.reload()
    page.locator("#image input[type=file]").wait_for(state="attached")
    page.set_input_files("#image input[type=file]", tmp_path / "halves.png")
    page.locator("#image img").wait_for()
    page.wait_for_timeout(500)  # the picture that comes back takes the place of the upload
    click(page, 260, 80)
    page.wait_for_timeout(500)  # the corner is drawn
    click(page, 380, 220)
    caption_is(page, "rgb 0 0 250")
    chosen = [float(side) for side in page.locator("#place input, #place textarea").first.input_value().split()]
    np.testing.assert_allclose(chosen, (260, 80, 380, 220), atol=2)
    page.locator("#picture img").wait_for()

    page.get_by_label("Point", exact=True).click()
    page.wait_for_timeout(500)
    click(page, 40, 40)
    caption_is(page, "rgb 250 0 0")
    page.set_viewport_size({"width": 390, "height": 844})  # of a phone
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert asked <= set(HERE)
