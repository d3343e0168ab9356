"""Questions of users, made safe: finite, inside the image, not too many and not too long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...datasets.records import Rle, encode_mask
from ...utils import untrusted
from ...utils.errors import UsageError
from ..asks import Ask
from .limits import MAX_CHARACTERS, MAX_IMAGE_PIXELS, MAX_REGIONS


def checked_asks(given: Iterable[tuple[str, Any]], height: int, width: int, prompt: str | None = None) -> list[Ask]:
    """Return the questions about an image.

    Args:
        given: ("box", four numbers), ("point", two numbers), ("mask", run-length encoded) or ("text", a phrase).
        height: of the image; boxes are clipped to it, exchanged corners are put right.
        width: of the image.
        prompt: the user's own words; None asks in the system's.

    Raises:
        UsageError: too many; not finite, outside the image or without area; a phrase is empty or too long.
        DataError: a mask is no run-length encoding.
    """
    given = list(given)
    if len(given) > MAX_REGIONS:
        raise UsageError("Too many regions.", value=len(given), allowed=f"up to {MAX_REGIONS} at once")
    words = None if prompt is None else checked_words(prompt, "question")
    check = {"box": _box, "point": _point, "mask": _mask, "text": _text}
    return [Ask(kind, check[kind](value, height, width), words) for kind, value in given]


def checked_words(text: str, what: str) -> str:
    """Return a phrase or question on one line, without control characters.

    Raises:
        UsageError: empty or too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"The {what} is too long.", value=len(text), allowed=f"up to {MAX_CHARACTERS} characters")
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if not any(map(str.isalnum, words)):
        raise UsageError(f"The {what} is empty.", value=text, allowed="words")
    return words


def ask_of_painting(mask: np.ndarray) -> tuple[str, Rle]:
    """Return the question about a bool (height, width) mask, for `checked_asks`."""
    if not mask.any():
        raise UsageError("The mask is empty.", allowed="at least one painted pixel")
    return "mask", encode_mask(mask)


def _box(value: Sequence[float], height: int, width: int) -> tuple[float, ...]:
    x0, y0, x1, y1 = _finite(value, "box")
    (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise UsageError(
            "The box has no area in the image.", value=list(value), allowed=f"x0 y0 x1 y1 within {width} x {height}"
        )
    return clipped


def _point(value: Sequence[float], height: int, width: int) -> tuple[float, ...]:
    x, y = _finite(value, "point")
    if not (0 <= x <= width and 0 <= y <= height):
        raise UsageError(
            "The point lies outside the image.", value=list(value), allowed=f"x y within {width} x {height}"
        )
    return x, y


def _finite(value: Sequence[float], kind: str) -> list[float]:
    count = 4 if kind == "box" else 2
    numbers = [float(number) for number in value]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UsageError(f"Not a {kind}.", value=list(value)[:8], allowed=f"{count} finite numbers, pixels")
    return numbers


def _mask(value: Mapping[str, Any], height: int, width: int) -> Rle:
    if list(value["size"]) != [height, width]:  # before anything of that size is made
        raise UsageError("The mask is not of the image's size.", value=value["size"], allowed=f"[{height}, {width}]")
    return ask_of_painting(untrusted.decode_rle(value, max_pixels=MAX_IMAGE_PIXELS))[1]


def _text(value: str, height: int, width: int) -> str:
    return checked_words(value, "phrase")
