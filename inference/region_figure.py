"""A picture and its captions as HTML: pointing at a region marks its caption, and the other way round."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import contourpy
import numpy as np
from PIL import Image

from ..datasets.records import Category, Record
from .caption_list import list_entries
from .drawing import ImageLike, Shapes, ink_on, printable, region_color
from .visualise import paint_regions

OUTLINE_SIDE = 320  # outlines are traced on masks of this longer side

STYLE = """
.regions { margin: 0; min-width: 0; }
.regions figcaption { font-weight: 600; margin-bottom: .4rem; }
.regions .stage { position: relative; line-height: 0; }
.regions img { width: 100%; border-radius: 6px; }
.regions svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.regions path { fill: transparent; stroke: none; fill-rule: evenodd; }
.regions path.on { fill: rgba(255,255,255,.28); stroke: #fff; stroke-width: 3; vector-effect: non-scaling-stroke; }
.regions ol { list-style: none; margin: .6rem 0 0; padding: 0; }
.regions li { display: grid; grid-template-columns: 1.9rem 1fr; gap: .55rem; padding: .3rem .4rem; border-radius: 6px; }
.regions li.on { background: var(--mark); }
.regions .number { height: 1.9rem; border-radius: 50%; display: grid; place-items: center; font-weight: 700;
  font-size: .85rem; }
.regions .score { color: var(--muted); font-size: .85em; margin-left: .35em; }
.regions.beside { display: grid; grid-template-columns: 3fr 2fr; gap: 0 1.2rem; align-items: start; }
.regions.beside figcaption { grid-column: 1 / -1; }
.regions.beside ol { margin-top: 0; }
@media (max-width: 760px) { .regions.beside { display: block; } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll('.regions')) {
  const mark = (event, on) => {
    const part = event.target.closest('[data-region]');
    if (part) for (const twin of figure.querySelectorAll('[data-region="' + part.dataset.region + '"]'))
      twin.classList.toggle('on', on);
  };
  for (const name of ['mouseover', 'focusin']) figure.addEventListener(name, event => mark(event, true));
  for (const name of ['mouseout', 'focusout']) figure.addEventListener(name, event => mark(event, false));
}
"""


def region_figure(
    image: ImageLike | None,
    record: Record,
    categories: Sequence[Category],
    *,
    title: str = "",
    beside: bool = True,
    max_width: int = 800,
) -> str:
    """Return a ``<figure>`` that needs `STYLE` and `SCRIPT` once in its page and nothing from elsewhere.

    Args:
        image: as for `draw_record`.
        record: truth or prediction.
        categories: names for the regions' ``category_id``.
        title: caption of the figure.
        beside: the list stands at the right of the picture, else beneath.
        max_width: of the embedded picture, pixels.
    """
    image = record.read_image() if image is None else image
    picture, shapes = paint_regions(image, record, max_width, max_width)
    paths = "".join(f'<path data-region="{index}" d="{path}"/>' for index, path in outlines(shapes).items())
    return (
        f'<figure class="regions{" beside" if beside else ""}"><figcaption>{html.escape(printable(title))}</figcaption>'
        f'<div class="stage"><img src="{data_uri(picture)}" alt="{len(record.regions)} numbered regions">'
        f'<svg viewBox="0 0 {picture.width} {picture.height}" aria-hidden="true">{paths}</svg></div>'
        f"<ol>{_items(record, categories)}</ol></figure>"
    )


def outlines(shapes: Shapes) -> dict[int, str]:
    """Return the SVG path of each region that is visible, in pixels of the picture."""
    paths = {}
    for index, (x0, y0, x1, y1) in shapes.boxes.items():
        paths[index] = f"M{x0:.0f} {y0:.0f}H{x1:.0f}V{y1:.0f}H{x0:.0f}Z"
    step = max(1, round(max(shapes.owner.shape) / OUTLINE_SIDE))
    reduced = np.pad(shapes.owner[::step, ::step], 1)
    for owner in np.unique(reduced[reduced > 0]).tolist():
        rings = contourpy.contour_generator(z=(reduced == owner).astype(float)).lines(0.5)
        paths[owner - 1] = "".join(_path(ring, step) for ring in rings)
    return paths


def _path(ring: np.ndarray, step: int) -> str:
    """Return a closed contour as path data; (n, 2) points x, y of the padded, reduced owner map."""
    points = np.rint((ring - 0.5) * step).astype(int).tolist()
    return "M" + "L".join(f"{x} {y}" for x, y in points[:-1]) + "Z"


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a ``data:`` address: JPEG, several times smaller than PNG on photographs."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _items(record: Record, categories: Sequence[Category]) -> str:
    items = []
    for entry in list_entries(record, categories):
        color = region_color(entry.index)
        style = f"background:rgb{color};color:rgb{ink_on(color)}"
        items.append(
            f'<li data-region="{entry.index}" tabindex="0">'
            f'<span class="number" style="{style}">{entry.index + 1}</span>'
            f'<span><b>{html.escape(entry.name)}</b><span class="score">{entry.score}</span><br>'
            f"{html.escape(entry.caption)}</span></li>"
        )
    return "".join(items) or "<li>no regions</li>"
