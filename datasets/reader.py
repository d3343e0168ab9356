"""What every reader offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .records import Category, Record


class Reader(Protocol):
    """A sequence of records of some categories."""

    categories: Sequence[Category]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
