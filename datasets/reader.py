"""What every reader offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .records import Category, Record


class Reader(Protocol):
    """A sequence of records of some categories.

    A reader whose records lie together in large files also has ``blocks``: lengths of the runs that should be read
    together, which orders of training follow (`draw_order`).
    """

    categories: Sequence[Category]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
