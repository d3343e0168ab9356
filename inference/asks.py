"""What a user may ask about an image: what is in a box, at a point or under a mask, and where a phrase is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from ..datasets.records import Region, box_of_mask, decode_mask, encode_mask
from ..datasets.tasks import Prompt
from ..utils import untrusted
from ..utils.errors import UsageError

LENGTHS = {"box": 4, "point": 2}


@dataclass(frozen=True, slots=True)
class Ask:
    """One question.

    Attributes:
        kind: "box", "point", "mask" or "text".
        value: (x0, y0, x1, y1) or (x, y), pixels of the original image; a run-length encoded mask of the image's size,
            ``{"size": [height, width], "counts": str}``; or the phrase.
        prompt: words of one's own instead of the system's instruction, such as a question; not for phrases.
    """

    kind: str
    value: tuple[float, ...] | str | Mapping[str, Any]
    prompt: str | None = None

    def __str__(self) -> str:
        words = "" if self.prompt is None else f' "{self.prompt}"'
        return f"{self.kind} {self._shown()}{words}"

    def _shown(self) -> str:
        if self.kind == "mask" and isinstance(self.value, Mapping):
            return "x".join(str(side) for side in reversed(self.value["size"]))
        if not _are_numbers(self.value):
            return str(self.value)
        return " ".join(f"{number:g}" for number in self.value)

    @property
    def task(self) -> str:
        """The task that answers it."""
        return "refer" if self.kind == "text" else "region"

    def to_region(self, number: int) -> Region:
        """Return what is known of its region, without an answer; a mask brings its tight box."""
        if self.kind == "text":
            return Region(number, expressions=(self.value,))
        if self.kind == "mask":
            return Region(number, mask=self.value, box_xyxy=box_of_mask(decode_mask(self.value)))
        return Region(number, box_xyxy=self.value) if self.kind == "box" else Region(number, points=(self.value,))

    def to_prompt(self, number: int, instruction: str) -> Prompt:
        """Return the prompt about region ``number``; of a point, the point itself goes beside it.

        A mask asks with its tight box: prompted systems learnt from boxes and points.
        """
        text = self.value if self.kind == "text" else ""
        region = self.to_region(number)
        return Prompt(
            self.task,
            instruction.replace("{}", text) if self.prompt is None else self.prompt,
            text,
            region.box_xyxy,
            located=self.task == "region",
            region=region,
            learns=(False, False, False),
        )

    def answer(self, number: int, found: Region) -> Region:
        """Return what was found, with what was asked exactly as it was asked."""
        asked = self.to_region(number)
        return replace(
            found,
            id=number,
            box_xyxy=asked.box_xyxy or found.box_xyxy,
            mask=asked.mask or found.mask,
            points=asked.points,
            expressions=asked.expressions,
        )


def make_asks(given: Iterable[tuple[str, Any]], prompt: str | None = None) -> list[Ask]:
    """Return the questions of a command line.

    Args:
        given: (kind, numbers, phrase or file of a mask) in their order.
        prompt: words of one's own about each region.

    Raises:
        UsageError: as `check_ask`; or a prompt is without a region.
        DataError: a mask cannot be read.
    """
    asks = []
    for kind, value in given:
        asks.append(Ask(kind, _given_value(kind, value), None if kind == "text" else prompt))
        check_ask(asks[-1], where=f"--{kind}")
    if prompt is not None and all(ask.prompt is None for ask in asks):
        regions = "--box, --point or --mask"
        raise UsageError("A prompt is about a region.", where="--prompt", value=prompt, allowed=f"with {regions}")
    return asks


def _given_value(kind: str, value: Any) -> Any:
    if kind == "text":
        return " ".join(value.split())
    return read_mask(value) if kind == "mask" else tuple(float(number) for number in value)


def read_mask(path: str) -> dict[str, Any]:
    """Return a mask, run-length encoded, from a JSON file that is so, or an image whose pixels inside are not black.

    Raises:
        DataError: it is neither.
    """
    if path.lower().endswith(".json"):
        return untrusted.compressed_rle(untrusted.read_json(path))
    return dict(encode_mask(untrusted.read_image(path).any(-1)))


def check_ask(ask: Ask, where: str | None = None) -> None:
    """Check a question by itself.

    Args:
        ask: the question.
        where: how the user named it; by default, its kind.

    Raises:
        UsageError: coordinates are not finite or inverted, a mask is empty, a phrase is empty or not text.
    """
    where = where or ask.kind
    if ask.kind == "text":
        check_words(ask.value, where)
    elif ask.kind == "mask":
        if not decode_mask(ask.value).any():
            raise UsageError("The mask is empty.", where=where, allowed="at least one pixel of the image")
    else:
        _check_numbers(ask, where)
    if ask.prompt is not None:
        check_words(ask.prompt, "prompt", what="prompt")


def check_words(text: str, where: str, *, what: str = "phrase") -> None:
    """Raise UsageError unless a text says something, in UTF-8."""
    if not isinstance(text, str) or not any(map(str.isalnum, text)):
        allowed = "words for a thing in the image" if what == "phrase" else "words"
        raise UsageError(f"The {what} is empty.", where=where, value=text, allowed=allowed)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"The {what} is not text.", where=where, value=text, allowed="UTF-8") from None


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(number, Real) for number in value)


def _check_numbers(ask: Ask, where: str) -> None:
    if not _are_numbers(ask.value) or len(ask.value) != LENGTHS[ask.kind] or not all(map(math.isfinite, ask.value)):
        allowed = f"{LENGTHS[ask.kind]} finite numbers: " + ("x0 y0 x1 y1" if ask.kind == "box" else "x y")
        raise UsageError("Not a place in an image.", where=where, value=ask.value, allowed=allowed)
    if ask.kind == "box" and not (ask.value[0] < ask.value[2] and ask.value[1] < ask.value[3]):
        x0, y0, x1, y1 = ask.value
        corners = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        empty = x0 == x1 or y0 == y1
        raise UsageError(
            "The box has no area." if empty else "The corners of the box are exchanged.",
            where=where,
            value=ask.value,
            allowed="x0 y0 x1 y1 with x0 < x1 and y0 < y1, pixels from the upper left corner",
            fix=None if empty else str(Ask(where, corners)),
        )


def check_inside(asks: Sequence[Ask], height: int, width: int, image: str) -> None:
    """Raise UsageError unless all boxes, points and masks fit an image of this size; ``image`` names it."""
    size = f"the image is {width} wide and {height} high"
    for ask in asks:
        where = f"{ask.kind}, image {image}"
        if ask.kind == "mask" and list(ask.value["size"]) != [height, width]:
            shown = "{} wide and {} high".format(*reversed(ask.value["size"]))
            raise UsageError("The mask is of another size than the image.", where=where, value=shown, allowed=size)
        numbers = ask.value if ask.kind in LENGTHS else ()
        inside = all(0 <= x <= width for x in numbers[::2]) and all(0 <= y <= height for y in numbers[1::2])
        if not inside:
            raise UsageError(
                f"The {ask.kind} lies outside the image.",
                where=where,
                value=ask.value,
                allowed=f"x from 0 to {width}, y from 0 to {height}: {size}",
            )
