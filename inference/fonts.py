"""Text in any script: characters that a font lacks are drawn in one of the system's fonts that has them.

Chinese, Japanese, Korean and many other scripts need a font of the machine (``apt install fonts-noto-cjk``); without
one, each such character becomes a box, with the sign of its script where matplotlib ships that font. Colour emoji fonts
are bitmaps that Pillow cannot scale; emoji are drawn where a font with outlines has them (DejaVu Sans has the smileys).
In HTML the browser chooses the fonts.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont
MARKS = ("Mn", "Me", "Cf")  # they belong to the character before them


def text_length(text: str, font: Font) -> float:
    """Return the width of one line, pixels."""
    return sum(own.getlength(part) for part, own in font_runs(text, font))


def draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    font: Font,
    fill: tuple[int, ...],
    anchor: str = "la",
) -> None:
    """Draw one line.

    Args:
        draw: where to.
        place: (x, y), pixels.
        text: in any script.
        font: for the characters that it has.
        fill: colour.
        anchor: Pillow's: l, m or r for x, then a (top), m (middle) or s (base line) for y.
    """
    runs = font_runs(text, font)
    if len(runs) == 1 and runs[0][1] is font:
        draw.text(place, text, font=font, fill=fill, anchor=anchor)
        return
    ascent, descent = font.getmetrics()
    x = place[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * text_length(text, font)
    base = place[1] + {"a": ascent, "m": (ascent - descent) / 2, "s": 0}[anchor[1]]
    for part, own in runs:
        draw.text((x, base), part, font=own, fill=fill, anchor="ls")
        x += own.getlength(part)


def font_runs(text: str, font: Font) -> list[tuple[str, Font]]:
    """Return the text in pieces, each with the font that has its characters: ``font`` wherever it does."""
    if text.isascii() or not text:
        return [(text, font)]
    paths = list(itertools.accumulate(text, lambda path, char: _path(char, path, font.path), initial=font.path))[1:]
    groups = itertools.groupby(zip(text, paths, strict=True), key=lambda pair: pair[1])
    return [("".join(char for char, _ in group), _sized(path, font)) for path, group in groups]


def _path(char: str, before: str, own: str) -> str:
    """Return the file of the font for a character; ``before`` is that of the one before it."""
    if unicodedata.category(char) in MARKS and ord(char) in _characters(before):
        return before
    return own if ord(char) in _characters(own) else _system_font(char) or own


def _sized(path: str, font: Font) -> Font:
    return font if path == font.path else _load(path, font.size)


@functools.lru_cache(maxsize=64)
def _load(path: str, size: float) -> Font:
    return ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


@functools.lru_cache(maxsize=4096)
def _system_font(char: str) -> str | None:
    """Return the file of an installed font with outlines that has the character."""
    return next((path for path in _system_fonts() if _is_usable(path) and ord(char) in _characters(path)), None)


@functools.lru_cache(maxsize=1)
def _system_fonts() -> list[str]:
    """Upright sans-serif fonts of medium weight first; the one with a box for every script last."""

    def rank(font: font_manager.FontEntry) -> tuple[bool, bool, bool, bool, str]:
        odd = font.style != "normal", font.weight not in (400, "normal", "regular")
        return "Last Resort" in font.name, *odd, "Sans" not in font.name, font.name

    return list(dict.fromkeys(font.fname for font in sorted(font_manager.fontManager.ttflist, key=rank)))


@functools.lru_cache(maxsize=1024)
def _is_usable(path: str) -> bool:
    """Whether both libraries can read a font at any size; those of bitmaps only (colour emoji) they cannot."""
    try:
        _load(path, 15)
        _characters(path)
    except (OSError, RuntimeError, ValueError):
        return False
    return True
