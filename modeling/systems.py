"""The systems, by MODEL.NAME. Each is one file and its builder; deleting both and the line here removes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..datasets.records import Category
from ..utils.errors import UsageError, nearest
from .build_pix2cap import build_pix2cap, build_tokenizer


@dataclass(frozen=True, slots=True)
class System:
    """How to make a system's caption tokenizer and the system itself."""

    tokenizer: Callable[[Any], Any]
    model: Callable[[Any, Sequence[Category], Any], nn.Module]


SYSTEMS = {"pix2cap_model": System(build_tokenizer, build_pix2cap)}


def find_system(name: str) -> System:
    """Return the system called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in SYSTEMS:
        guess = nearest(name, SYSTEMS)
        raise UsageError(
            "There is no such system.",
            where="MODEL.NAME",
            value=name,
            allowed=", ".join(SYSTEMS),
            fix=f"--overrides MODEL.NAME {guess}" if guess else None,
        )
    return SYSTEMS[name]
