"""Two-way tables of names: what another code base calls each tensor of ours.

A row pairs two patterns, theirs and ours. ``{}`` stands for an index and ``*`` for the rest of a component; both sides
have the same wildcards in the same order. Rows match whole names, so a table renames nothing that it doesn't list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Row = tuple[str, str]
_WILDCARDS = {"{}": r"(0|[1-9]\d*)", "*": r"([a-z]+)"}
_SPLIT = re.compile(r"(\{\}|\*)")


class KeyTable:
    """A one-to-one map between two sets of names.

    Args:
        rows: pairs (their pattern, our pattern).

    Raises:
        ValueError: the two sides of a row have different wildcards.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        for theirs, ours in self.rows:
            if _SPLIT.findall(theirs) != _SPLIT.findall(ours):
                raise ValueError(f"the wildcards of {theirs} and {ours} differ")
        self._to_ours = [(_regex(theirs), _template(ours)) for theirs, ours in self.rows]
        self._to_theirs = [(_regex(ours), _template(theirs)) for theirs, ours in self.rows]

    def ours(self, name: str) -> str | None:
        """Return our name of one of theirs, None when the table has none."""
        return _rename(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Return their name of one of ours, None when the table has none."""
        return _rename(name, self._to_theirs)


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_WILDCARDS.get(piece, re.escape(piece)) for piece in _SPLIT.split(pattern)))


def _template(pattern: str) -> str:
    return _SPLIT.sub("{}", pattern)


def _rename(name: str, rows: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rows:
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    return None


@dataclass(frozen=True)
class Layout:
    """How the weights of another code base are laid out.

    Attributes:
        name: what messages call it.
        marks: beginnings of their names; a file with any of them has this layout.
        table: their names and ours.
        inert: their names of tensors that nothing reads.
        ignored: beginnings of their names of parts that our system does not have.
        tied: their name -> their other name for the same tensor; we keep one of them.
        advice: beginning of our names -> what to do when a file of this layout lacks such tensors.
    """

    name: str
    marks: tuple[str, ...]
    table: KeyTable
    inert: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Return whether a name of theirs is one that the layout has a place for."""
        return name in self.inert or self.table.ours(name) is not None or name.startswith(self.ignored)
