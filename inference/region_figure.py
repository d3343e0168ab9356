"""A picture and its captions as HTML: pointing at a region marks its caption, and the other way round.

Everything that belongs together carries one key: ``data-key="3"`` the region at index 3 (its area, its badge, its
caption), ``data-key="w0.12"`` word 12 of the first narrative (in the text, and its place in the image).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence

import contourpy
import numpy as np
from matplotlib.path import Path as Outline
from PIL import Image
from scipy import ndimage

from ..datasets.records import Category, Record
from .badges import Badge, place_badges
from .caption_list import Entry, list_entries
from .drawing import Color, ImageLike, Shapes, as_picture, distance_to_edge, ink_on, printable, rasterise, region_color
from .narratives import PlacedWord, path_pieces, place_words

GROUND = 640  # longer side of the coordinates in which regions stand over the image
SMOOTH = 0.6  # of these, how far an outline may leave the mask's
BADGE = 14  # radius
HIGHEST = 46  # rem, of a picture in the page
FLAT = 256  # colours of a drawing at most
SHARP = 400  # pixels; a smaller picture is shown enlarged and keeps the resolution of its colours

STYLE = """
.regions { margin: 0; min-width: 0; content-visibility: auto; contain-intrinsic-size: auto 420px; }
.regions figcaption { font-weight: 600; margin-bottom: .4rem; overflow-wrap: anywhere; }
.regions .stage { position: relative; line-height: 0; }
.regions img { width: 100%; height: auto; border-radius: 6px; }
.regions .stage svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.regions svg :focus { outline: none; }
.regions path, .regions polyline { vector-effect: non-scaling-stroke; stroke-linejoin: round; fill-rule: evenodd; }
.regions .area { fill-opacity: .3; cursor: pointer; transition: opacity .12s; }
.regions .area path + path { stroke-width: 1.6; }
.regions .area .rim { stroke: #fff; stroke-width: 3.2; fill: none; }
.regions .box { fill-opacity: 0; }
.regions svg.pointed .area:not(.on) { opacity: .22; }
.regions .area.on { fill-opacity: .14; }
.regions .area.on path + path { stroke-width: 3; }
.regions .area.on .rim { stroke-width: 6; }
.regions .badge { cursor: pointer; font: 700 14px system-ui, sans-serif; text-anchor: middle; user-select: none; }
.regions .badge circle { stroke: #fff; stroke-width: 1.5; }
.regions svg.pointed .badge:not(.on) { opacity: .35; }
.regions svg:has(.trace.shown) :is(.area, .badge) { opacity: .25; }
.regions ol { list-style: none; margin: .6rem 0 0; padding: 0; }
.regions li { display: grid; grid-template-columns: 1.9rem 1fr; gap: .55rem; padding: .3rem .4rem; border-radius: 6px;
  cursor: pointer; overflow-wrap: anywhere; }
.regions li.on { background: var(--mark); }
.regions li.pinned { box-shadow: inset 3px 0 var(--ink); }
.regions li:focus-visible, .regions .word:focus-visible { outline: 2px solid var(--ink); outline-offset: 1px; }
.regions .number { width: 1.9rem; height: 1.9rem; font: 700 14px system-ui, sans-serif; text-anchor: middle; }
.regions .score { color: var(--muted); font-size: .85em; margin-left: .35em; }
.regions .told { margin: .6rem 0 0; line-height: 1.75; overflow-wrap: anywhere; }
.regions .word { border-radius: 4px; padding: .1em .15em; border-bottom: 2px solid; cursor: default; }
.regions .word.on { background: var(--mark); }
.regions .trace { pointer-events: none; }
.regions .trace polyline { fill: none; stroke-width: 2.5; stroke-linecap: round; opacity: .85; }
.regions .trace circle { stroke: #fff; stroke-width: 1; }
.regions .trace circle.on { stroke-width: 3; r: 11px; }
.regions.many .trace { visibility: hidden; }
.regions.many .trace.shown { visibility: visible; }
.regions.beside { display: grid; grid-template-columns: 3fr 2fr; gap: 0 1.2rem; align-items: start; }
.regions.beside figcaption { grid-column: 1 / -1; }
.regions.beside .stage { position: sticky; top: .8rem; }
.regions.beside .texts { position: relative; max-height: min(46rem, 90vh); overflow-y: auto; }
.regions.beside ol { margin-top: 0; }
@media (max-width: 760px) { .regions.beside { display: block; } .regions.beside .stage { top: 0; z-index: 1; }
  .regions.beside .texts { max-height: none; } }
@media print { .regions { content-visibility: visible; } .regions.beside .texts { max-height: none; } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll('.regions')) {
  const pinned = new Set();
  const stage = figure.querySelector('svg');
  let pointed = null;
  const keyOf = event => event.target.closest('[data-key]')?.dataset.key ?? null;
  const show = () => {
    let some = false;
    for (const part of figure.querySelectorAll('[data-key]')) {
      const on = part.dataset.key === pointed || pinned.has(part.dataset.key);
      part.classList.toggle('on', on);
      part.classList.toggle('pinned', pinned.has(part.dataset.key));
      if (part.hasAttribute('aria-pressed')) part.setAttribute('aria-pressed', pinned.has(part.dataset.key));
      some = some || (on && part.matches('.area, .badge'));
    }
    stage.classList.toggle('pointed', some);
  };
  const point = key => { if (key !== pointed) { pointed = key; show(); } };
  const reveal = event => {  // the caption of what is pointed at in the picture
    const item = stage.contains(event.target) && figure.querySelector('li[data-key="' + keyOf(event) + '"]');
    if (!item) return;
    const box = item.closest('.texts');
    const frame = box.getBoundingClientRect(), seen = item.getBoundingClientRect();
    const bottom = Math.min(frame.bottom, innerHeight);
    if (seen.top < frame.top || seen.bottom > bottom)
      box.scrollTop = item.offsetTop - (bottom - frame.top - seen.height) / 2;
  };
  const pin = key => { pinned.delete(key) || pinned.add(key); show(); };
  figure.addEventListener('mouseover', event => { point(keyOf(event)); reveal(event); });
  figure.addEventListener('mouseleave', () => point(null));
  figure.addEventListener('focusin', event => { point(keyOf(event)); reveal(event); });
  figure.addEventListener('focusout', () => point(null));
  figure.addEventListener('click', event => { const key = keyOf(event); if (key) pin(key); });
  figure.addEventListener('keydown', event => {
    const key = keyOf(event);
    if (event.key === 'Escape') { pinned.clear(); point(null); show(); }
    else if (key && (event.key === 'Enter' || event.key === ' ')) { event.preventDefault(); pin(key); }
  });
  for (const told of figure.querySelectorAll('.told')) {
    const trace = figure.querySelector('.trace[data-told="' + told.dataset.told + '"]');
    const toggle = on => trace.classList.toggle('shown', on);
    for (const name of ['mouseenter', 'focusin']) told.addEventListener(name, () => toggle(true));
    for (const name of ['mouseleave', 'focusout']) told.addEventListener(name, () => toggle(false));
  }
}
"""


def region_figure(
    image: ImageLike | None,
    record: Record,
    categories: Sequence[Category],
    *,
    title: str = "",
    beside: bool = True,
    max_width: int = 960,
) -> str:
    """Return a ``<figure>`` that needs `STYLE` and `SCRIPT` once in its page and nothing from elsewhere.

    Regions and narratives stand over the image as SVG, the image itself is embedded once and untouched. The path of a
    narrative shows while its text is pointed at, and always where it is the only one and there are no regions.

    Args:
        image: as for `draw_record`.
        record: truth or prediction.
        categories: names for the regions' ``category_id``.
        title: caption of the figure.
        beside: the list stands at the right of the picture, else beneath.
        max_width: of the embedded picture's longer side, pixels; a smaller one is embedded as it is.
    """
    picture = as_picture(record.read_image() if image is None else image)
    scale = GROUND / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    told = [place_words(each, (size[0] / record.width, size[1] / record.height), size) for each in record.narratives]
    entries = list_entries(record, categories)
    kind = ["regions"] + ["beside"] * beside + ["many"] * bool(record.regions or len(told) > 1)
    picture.thumbnail((max_width, max_width), Image.Resampling.BICUBIC)
    return (
        f'<figure class="{" ".join(kind)}"><figcaption dir="auto">{_safe(printable(title))}</figcaption>'
        f'<div class="stage" style="max-width:{HIGHEST * size[0] / size[1]:.2f}rem"><img src="{data_uri(picture)}"'
        f' width="{picture.width}" height="{picture.height}"'
        f' loading="lazy" decoding="async" alt="{len(entries)} numbered regions">'
        f'<svg viewBox="0 0 {size[0]} {size[1]}" preserveAspectRatio="none">'
        f"{_areas(record, entries, size)}{_traces(record, told, size)}</svg></div>"
        f'<div class="texts">'
        f"{_list(entries) if entries or not told else ''}{_told(told)}</div></figure>"
    )


def _safe(text: str) -> str:
    return html.escape(text)


def _areas(record: Record, entries: Sequence[Entry], size: tuple[int, int]) -> str:
    """Return areas, points and, over all of them, the badges."""
    shapes = rasterise(record, size)
    distance = distance_to_edge(shapes.owner)
    badges, radius = place_badges(shapes, distance, BADGE)
    areas = (
        _area(entries[index], path, index in shapes.boxes) for index, path in _from_large(outlines(shapes), shapes)
    )
    dots = (
        f'<circle data-key="{index}" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_hex(region_color(index))}"'
        f' stroke="#fff" stroke-width="1.5"/>'
        for index, points in (*shapes.points.items(), *shapes.pins.items())
        for x, y in points
    )
    return "".join((*areas, *dots, *(_badge(badge, radius) for badge in badges)))


def _from_large(paths: dict[int, str], shapes: Shapes) -> list[tuple[int, str]]:
    """Return masks, then boxes from large to small, so that each can be pointed at."""
    sizes = {index: abs((x1 - x0) * (y1 - y0)) for index, (x0, y0, x1, y1) in shapes.boxes.items()}
    return sorted(paths.items(), key=lambda item: -sizes.get(item[0], float("inf")))


def _area(entry: Entry, path: str, is_box: bool) -> str:
    color = _hex(region_color(entry.index))
    said = _safe(" ".join(filter(None, (f"region {entry.index + 1}", entry.name, entry.caption))))
    return (
        f'<g class="area{" box" if is_box else ""}" data-key="{entry.index}" tabindex="0" role="button"'
        f' aria-pressed="false" aria-label="{said}" fill="{color}"><path class="rim" d="{path}"/>'
        f'<path d="{path}" stroke="{color}"/></g>'
    )


def _badge(badge: Badge, radius: int) -> str:
    x, y = badge.center
    return f'<g class="badge" data-key="{badge.index}">{_disc(badge.index, (x, y), radius)}</g>'


def _disc(index: int, center: tuple[int, int], radius: int) -> str:
    color, (x, y) = region_color(index), center
    return (
        f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{_hex(color)}"/>'
        f'<text x="{x}" y="{y}" dy=".35em" fill="{_hex(ink_on(color))}">{index + 1}</text>'
    )


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def outlines(shapes: Shapes) -> dict[int, str]:
    """Return the SVG path of each region that is visible, in pixels of the picture."""
    paths = {}
    for index, (x0, y0, x1, y1) in (*shapes.boxes.items(), *shapes.frames.items()):
        paths[index] = f"M{x0:.0f} {y0:.0f}H{x1:.0f}V{y1:.0f}H{x0:.0f}Z"
    for index, place in enumerate(ndimage.find_objects(shapes.owner)):
        if place is not None:
            traced = _traced(shapes.owner[place] == index + 1, place[1].start, place[0].start)
            paths[index] = traced + paths[index] if index in shapes.frames else traced
    return paths


def _traced(mask: np.ndarray, left: int, top: int) -> str:
    """Return the contours of a mask as path data; its first pixel is at (left, top)."""
    corner = np.array((left, top)) - 0.5  # of the padded mask's first pixel
    rings = contourpy.contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    return "".join(_path(ring + corner) for ring in rings)


def _path(ring: np.ndarray) -> str:
    """Return a closed contour, (n, 2) points x, y, as path data with few corners."""
    outline = Outline(ring)
    outline.simplify_threshold = SMOOTH
    points = outline.cleaned(simplify=True).vertices[:-1]  # the last row ends the path
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points) + "Z"


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a ``data:`` address: a flat drawing as PNG, anything else as JPEG, several times smaller."""
    kind, options = (
        ("jpeg", {"quality": 88, "subsampling": 0 if max(picture.size) < SHARP else 2})
        if picture.getcolors(FLAT) is None
        else ("png", {})
    )
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _list(entries: Sequence[Entry]) -> str:
    items = (
        f'<li data-key="{entry.index}" tabindex="0" role="button" aria-pressed="false">'
        f'<svg class="number" viewBox="-14 -14 28 28" aria-hidden="true">{_disc(entry.index, (0, 0), 14)}</svg>'
        f'<span dir="auto"><b>{_safe(entry.name)}</b><span class="score">{entry.score}</span>'
        f"{'<br>' if entry.name or entry.score else ''}{_safe(entry.caption)}</span></li>"
        for entry in entries
    )
    return f'<ol role="group" aria-label="captions">{"".join(items) or "<li>no regions</li>"}</ol>'


def _told(narratives: Sequence[Sequence[PlacedWord]]) -> str:
    """Return the texts; a word with a place can be pointed at."""
    return "".join(
        f'<p class="told" data-told="{number}" dir="auto">{" ".join(_words(number, words))}</p>'
        for number, words in enumerate(narratives)
    )


def _words(number: int, words: Sequence[PlacedWord]) -> Iterator[str]:
    for index, word in enumerate(words):
        if word.point is None:
            yield _safe(word.text)
        else:
            line = f'style="border-color:{_hex(word.color)}"'
            yield f'<span class="word" data-key="w{number}.{index}" tabindex="0" {line}>{_safe(word.text)}</span>'


def _traces(record: Record, told: Sequence[Sequence[PlacedWord]], size: tuple[int, int]) -> str:
    """Return the pointer's paths and the places of the words."""
    scale = size[0] / record.width, size[1] / record.height
    return "".join(
        f'<g class="trace" data-told="{number}">'
        + "".join(map(_polyline, path_pieces(narrative, words, scale, size)))
        + "".join(
            f'<circle data-key="w{number}.{index}" cx="{word.point[0]:.0f}" cy="{word.point[1]:.0f}" r="4"'
            f' fill="{_hex(word.color)}"/>'
            for index, word in enumerate(words)
            if word.point is not None
        )
        + "</g>"
        for number, (narrative, words) in enumerate(zip(record.narratives, told, strict=True))
    )


def _polyline(piece: tuple[Color, list[tuple[float, float]]]) -> str:
    color, points = piece
    places = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    return f'<polyline points="{places}" stroke="{_hex(color)}"/>'
