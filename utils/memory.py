"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # only glibc has it
        return None


_trim = _find_trim()


def give_memory_back() -> None:
    """Return what was freed but kept for later to the system: pictures of ever other sizes leave holes in the heap."""
    if _trim is not None:
        _trim(0)
