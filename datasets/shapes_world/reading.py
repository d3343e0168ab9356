"""Read captions back into facts and hold the facts against a scene."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..records import Record, Region
from .scene import COLOURS, GROUNDS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES

_WORDS = {
    "shape": frozenset(SHAPES),
    "colour": frozenset(COLOURS),
    "size": frozenset(SIZES),
    "texture": frozenset(TEXTURES),
    "ground": frozenset(GROUNDS),
}
_ATTRIBUTES = frozenset().union(*(_WORDS[kind] for kind in ("shape", "colour", "size", "texture")))
_ARTICLES = frozenset(("a", "an", "the"))
_LENIENCE = 0.5  # a sideways relation holds while its component is at least this share of the other component


@dataclass(frozen=True, slots=True)
class CaptionFacts:
    """What a caption states; None where it says nothing."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    relation: str | None = None
    other_colour: str | None = None
    other_shape: str | None = None
    ground: str | None = None
    place: str | None = None  # of a piece of ground


def read_caption(text: str) -> CaptionFacts:
    """Read a caption, also one with mistakes.

    The noun phrase that a relation governs ("to the left of *the blue heart*") is the other object, in the first
    relation if there are more; whatever else is said belongs to the subject, wherever it stands. Of contradicting
    words the first counts. In a sentence
    about a piece of ground, one with "... of the picture", the object lying on it is the other object.
    """
    words = re.findall(r"[a-z]+", text.lower())
    if "picture" in words:
        place = next((word for word in words if word in PLACES), None)
        return CaptionFacts(
            other_colour=_first(words, "colour"), other_shape=_first(words, "shape"),
            ground=_first(words, "ground"), place=place,
        )  # fmt: skip
    relation, other, subject = _separate(words)
    return CaptionFacts(
        **{kind: _first(subject, kind) for kind in ("shape", "colour", "size", "texture", "ground")},
        relation=relation, other_colour=_first(other, "colour"), other_shape=_first(other, "shape"),
    )  # fmt: skip


def _separate(words: list[str]) -> tuple[str | None, list[str], list[str]]:
    """Return the first relation, the noun phrase it governs and all words no relation governs."""
    first, other, subject = None, [], []
    while words:
        relation, start, end = _find_relation(words)
        stop = _noun_phrase_end(words, end)
        subject += words[:start]
        if first is None:
            first, other = relation, words[end:stop]
        words = words[stop:]
    return first, other, subject


def _first(words: Sequence[str], kind: str) -> str | None:
    return next((word for word in words if word in _WORDS[kind]), None)


def _find_relation(words: Sequence[str]) -> tuple[str | None, int, int]:
    """Return the first relation and the span it takes; an empty span at the end when there is none."""
    for start in range(len(words)):
        for relation in RELATIONS:
            parts = relation.split()
            if words[start : start + len(parts)] == parts:
                return relation, start, start + len(parts)
    return None, len(words), len(words)


def _noun_phrase_end(words: Sequence[str], start: int) -> int:
    """Return the end of [article] attribute* that starts here; a shape ends it."""
    end = start + (start < len(words) and words[start] in _ARTICLES)
    while end < len(words) and words[end] in _ATTRIBUTES:
        end += 1
        if words[end - 1] in SHAPES:
            break
    return end


def relates(relation: str, offset: tuple[float, float], reach: float, *, in_front: bool) -> bool:
    """Decide leniently whether a relation holds.

    Args:
        relation: one of `RELATIONS`.
        offset: subject's centre minus other's centre, y down.
        reach: centres nearer than this overlap; same unit as ``offset``.
        in_front: whether the subject is drawn after the other object.
    """
    dx, dy = offset
    if relation in ("in front of", "behind"):
        return math.hypot(dx, dy) < reach and in_front == (relation == "in front of")
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    if relation in ("left of", "above"):
        along = -along
    return along > 0 and along >= _LENIENCE * abs(across)


def holds(facts: CaptionFacts, region: Region, record: Record) -> dict[str, bool | None]:
    """Hold a caption's facts against the truth about its region.

    Args:
        facts: from `read_caption`.
        region: the region of ``record`` that the caption is about.
        record: a record of the embedded data set, whose things are listed back to front.

    Returns:
        For each of shape, colour, size, texture, ground and place whether it is right, and for relation whether
        another object of the stated colour and shape is really there (for ground: lies on it); None where not said.
    """
    said = {field.name: getattr(facts, field.name) for field in fields(facts)}
    checks = {
        name: None if said[name] is None else said[name] == region.attributes.get(name)
        for name in ("shape", "colour", "size", "texture", "ground", "place")
    }
    others = [other for other in record.regions if other is not region and _fits(facts, other)]
    checks["relation"] = None
    if facts.relation is not None:
        checks["relation"] = any(_region_relates(facts.relation, region, other, record) for other in others)
    elif "place" in region.attributes and (facts.other_shape or facts.other_colour):
        checks["relation"] = any(other.attributes["ground"] == region.attributes["ground"] for other in others)
    return checks


def _fits(facts: CaptionFacts, other: Region) -> bool:
    """Tell whether a thing has the colour and shape stated of the other object; at least one must be stated."""
    stated = {"colour": facts.other_colour, "shape": facts.other_shape}
    stated = {name: value for name, value in stated.items() if value is not None}
    return bool(stated) and all(other.attributes.get(name) == value for name, value in stated.items())


def _region_relates(relation: str, region: Region, other: Region, record: Record) -> bool:
    if not region.keypoints or not other.keypoints:  # ground has no centre
        return False
    (x, y, _), (other_x, other_y, _) = region.keypoints[0], other.keypoints[0]
    extents = (SIZES[item.attributes["size"]][1] for item in (region, other))
    reach = 0.5 * sum(extents) * min(record.height, record.width)
    return relates(relation, (x - other_x, y - other_y), reach, in_front=region.id > other.id)
