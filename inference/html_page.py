"""One HTML file that shows results anywhere: no network, no file beside it, no script but its own.

The page's content security policy allows its one script by its hash, so text that found a way around the escaping
could still run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .drawing import printable
from .region_figure import SCRIPT, STYLE, region_figure

if TYPE_CHECKING:
    from .results import Result

HINT = "Point at a region, a caption or a word; click, or press Enter, to keep it marked; Escape lets go."
PAGE_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --ink: #1d2026; --muted: #646a76; --line: #dfe1e5; --card: #fff;
  --mark: #e6edfb; --good: #1c7c3c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #15171b; --ink: #e6e8ec; --muted: #9aa1ad; --line: #30343c;
  --card: #1c1f25; --mark: #2b3853; --good: #62c784; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 1180px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; }
p.lead { color: var(--muted); margin: 0 0 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 0 0 1rem; }
@media (max-width: 760px) { body { padding: 1rem .6rem 3rem; } .card { padding: .6rem; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{digest}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{script}</script>
</body>
</html>
"""


def result_page(results: Iterable[Result], title: str) -> str:
    """Return a page with every result: the image, its regions over it, and the captions beside it.

    Results are taken one by one, so a generator needs the memory of one image and of the page. A page of 50
    photographs of 640 x 480 pixels with 7 regions and a narrative each has about 8 MB.

    Args:
        results: in the order of the page.
        title: its heading.
    """
    return figures_page([result_figure(result) for result in results], title)


def result_figure(result: Result) -> str:
    """Return the part of a page about one image."""
    return region_figure(result.pixels, result.record, result.categories, title=str(result.record.image_id))


def figures_page(figures: Iterable[str], title: str) -> str:
    """Return the page around figures that `result_figure` made."""
    cards = [f'<div class="card">{figure}</div>' for figure in figures]
    body = "\n".join(cards)
    size, images = len(body) / 1e6, "1 image" if len(cards) == 1 else f"{len(cards)} images"
    return whole_page(title, f'<p class="lead">{images}, {max(size, 0.1):.1f} MB. {HINT}</p>\n{body}')


def whole_page(title: str, body: str, *, style: str = "") -> str:
    """Return a complete page.

    Args:
        title: any text.
        body: HTML; figures of `region_figure` work in it.
        style: more CSS.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    return PAGE.format(
        title=html.escape(printable(title)),
        digest=f"sha256-{digest}",
        style=PAGE_STYLE + STYLE + style,
        script=SCRIPT,
        body=body,
    )
