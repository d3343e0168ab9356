"""Two-way tables of names: what another code base calls each tensor of ours.

A row pairs two patterns, theirs and ours. ``{}`` stands for an index and ``*`` for the rest of a component; both sides
have the same wildcards in the same order. Rows match whole names, so a table renames nothing that it doesn't list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Row = tuple[str, str]
Conversion = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_WILDCARDS = {"{}": r"(0|[1-9]\d*)", "*": r"([a-z]+)"}
_SPLIT = re.compile(r"(\{\}|\*)")


class KeyTable:
    """A map between two sets of names, one-to-one for any one model.

    Args:
        rows: pairs (their pattern, our pattern). Of several rows for one name the first is taken, unless `ours` is told
            which names a model has.

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

    def ours(self, name: str, is_ours: Callable[[str], bool] | None = None) -> str | None:
        """Return our name of one of theirs, None when the table has none; of several one that ``is_ours`` accepts."""
        found = _rename(name, self._to_ours)
        first = next(found, None)
        if first is None or is_ours is None or is_ours(first):
            return first
        return next(filter(is_ours, found), first)

    def theirs(self, name: str) -> str | None:
        """Return their name of one of ours, None when the table has none."""
        return next(_rename(name, self._to_theirs), None)


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_WILDCARDS.get(piece, re.escape(piece)) for piece in _SPLIT.split(pattern)))


def _template(pattern: str) -> str:
    return _SPLIT.sub("{}", pattern)


def _rename(name: str, rows: list[tuple[re.Pattern[str], str]]) -> Iterator[str]:
    for pattern, template in rows:
        if match := pattern.fullmatch(name):
            yield template.format(*match.groups())


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
        parts: beginnings of our names of all that such a file holds; empty: a whole system.
        to_torch: brings a file's tensors under the names that the table knows, with values as PyTorch orders them; its
            names have dots where the file's may have slashes. None: they are so already.
    """

    name: str
    marks: tuple[str, ...]
    table: KeyTable
    inert: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    to_torch: Conversion | None = None

    def knows(self, name: str) -> bool:
        """Return whether a name of theirs is one that the layout has a place for."""
        return name in self.inert or self.table.ours(name) is not None or name.startswith(self.ignored)
