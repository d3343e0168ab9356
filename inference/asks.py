"""What a user may ask about an image: what is in a box or at a point, and where a phrase is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..datasets.records import Region
from ..datasets.tasks import Prompt
from ..utils.errors import UsageError


@dataclass(frozen=True, slots=True)
class Ask:
    """One question.

    Attributes:
        kind: "box", "point" or "text".
        value: (x0, y0, x1, y1) or (x, y), pixels of the original image; or the phrase.
    """

    kind: str
    value: tuple[float, ...] | str

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else " ".join(f"{number:g}" for number in self.value)
        return f"{self.kind} {value}"

    @property
    def task(self) -> str:
        """The task that answers it."""
        return "refer" if self.kind == "text" else "region"

    def to_region(self, number: int) -> Region:
        """Return what is known of its region, without an answer."""
        if self.kind == "text":
            return Region(number, expressions=(self.value,))
        return Region(number, box_xyxy=self.value) if self.kind == "box" else Region(number, points=(self.value,))

    def to_prompt(self, number: int, instruction: str) -> Prompt:
        """Return the prompt about region ``number``; of a point, the point itself goes beside it."""
        text = self.value if self.kind == "text" else ""
        box = self.value if self.kind == "box" else None
        return Prompt(
            self.task,
            instruction.replace("{}", text),
            text,
            box,
            located=self.task == "region",
            region=self.to_region(number),
            learns=(False, False, False),
        )

    def answer(self, number: int, found: Region) -> Region:
        """Return what was found, with what was asked exactly as it was asked."""
        asked = self.to_region(number)
        box = found.box_xyxy if self.kind == "text" else asked.box_xyxy
        return replace(found, id=number, box_xyxy=box, points=asked.points, expressions=asked.expressions)


def make_asks(given: Iterable[tuple[str, Sequence[float] | str]]) -> list[Ask]:
    """Return the questions of a command line.

    Args:
        given: (kind, numbers or phrase) in their order.

    Raises:
        UsageError: coordinates are not finite or inverted, a phrase is empty or not text.
    """
    asks = []
    for kind, value in given:
        if kind == "text":
            asks.append(Ask(kind, _checked_phrase(value)))
        else:
            asks.append(Ask(kind, tuple(float(number) for number in value)))
            _check_numbers(asks[-1])
    return asks


def _checked_phrase(text: str) -> str:
    phrase = " ".join(text.split())
    if not any(map(str.isalnum, phrase)):
        raise UsageError("The phrase is empty.", where="--text", value=text, allowed="words for a thing in the image")
    try:
        phrase.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("The phrase is not text.", where="--text", value=text, allowed="UTF-8") from None
    return phrase


def _check_numbers(ask: Ask) -> None:
    if not all(map(math.isfinite, ask.value)):
        raise UsageError("Not a place in an image.", where=f"--{ask.kind}", value=ask.value, allowed="finite numbers")
    if ask.kind == "box" and not (ask.value[0] < ask.value[2] and ask.value[1] < ask.value[3]):
        x0, y0, x1, y1 = ask.value
        corners = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        empty = x0 == x1 or y0 == y1
        raise UsageError(
            "The box has no area." if empty else "The corners of the box are exchanged.",
            where="--box",
            value=ask.value,
            allowed="x0 y0 x1 y1 with x0 < x1 and y0 < y1, pixels from the upper left corner",
            fix=None if empty else str(Ask("--box", corners)),
        )


def check_inside(asks: Sequence[Ask], height: int, width: int, image: str) -> None:
    """Raise UsageError unless all boxes and points lie in an image of this size; ``image`` names it."""
    for ask in asks:
        numbers = () if ask.kind == "text" else ask.value
        inside = all(0 <= x <= width for x in numbers[::2]) and all(0 <= y <= height for y in numbers[1::2])
        if not inside:
            raise UsageError(
                f"The {ask.kind} lies outside the image.",
                where=f"--{ask.kind}, image {image}",
                value=ask.value,
                allowed=f"x from 0 to {width}, y from 0 to {height}: the image is {width} wide and {height} high",
            )
