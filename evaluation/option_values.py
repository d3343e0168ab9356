"""What a command line gives as text, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.errors import UsageError


def numbers(name: str, value: str | Sequence[float]) -> tuple[float, ...]:
    """Return finite numbers above 0 from ``"0.1,0.2"`` or a sequence.

    Raises:
        UsageError: there is none, or one is no such number.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise UsageError(f"{name} is not a list of numbers above 0.", value=value, allowed="such as 0.1,0.2")
    return found


def ascending_counts(name: str, value: str | Sequence[int]) -> tuple[int, ...]:
    """Return ascending whole numbers above 0 from ``"1,10,100"`` or a sequence.

    Raises:
        UsageError: they are not.
    """
    found = tuple(int(number) for number in numbers(name, value) if number == int(number))
    if len(found) < len(numbers(name, value)) or list(found) != sorted(set(found)):
        raise UsageError(f"{name} is not a list of ascending whole numbers.", value=value, allowed="such as 1,10,100")
    return found


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return the value; raises `UsageError` when it is not among those allowed."""
    if value not in allowed:
        raise UsageError(f"{name} has no such value.", value=value, allowed=", ".join(allowed))
    return value
