"""Values on their way into a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def learning_rates(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the distinct learning rates of an optimiser's ``param_groups``, the largest first.

    Groups with one initial rate share a name: that of the first that has a ``name``, else the initial rate.
    """
    by_start: dict[float, tuple[str, float]] = {}
    for group in groups:
        start = group.get("initial_lr", group["lr"])
        by_start.setdefault(start, (group.get("name") or f"{start:g}", float(group["lr"])))
    return dict(by_start[start] for start in sorted(by_start, reverse=True))


def flat(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the numbers among values, the names of nested ones joined by "/"."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}/{inner}", number) for inner, number in flat(value)]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append((name, value))
    return rows


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with None for NaN and infinity, which JSON cannot say."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        return value if not isinstance(value, float) or math.isfinite(value) else None

    return plain(values)
