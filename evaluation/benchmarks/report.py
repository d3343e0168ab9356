"""Measurements as a table and as JSON."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ...utils.files import write_json
from ..report import library_versions
from .measuring import Measurement


@dataclass(slots=True)
class Report:
    """The measurements of one command.

    Attributes:
        command: its name.
        items, unit: how much was done, and of what.
        ours, others: every one of ours is compared with the first of the others, the opponent.
        facts: what else was found; ``same figures`` is always among them.
        goal: the ratio to reach, if there is one.
    """

    command: str
    items: int
    unit: str
    ours: list[Measurement]
    others: list[Measurement]
    facts: dict[str, Any] = field(default_factory=dict)
    goal: float | None = None

    def ratios(self) -> dict[str, dict[str, float]]:
        """Return way of ours -> other way -> how many times our processor time, Java's included, it takes."""
        return {
            ours.name: {other.name: other.total / ours.total for other in self.others if ours.total}
            for ours in self.ours
        }

    def show(self, console: Console) -> None:
        """Print a row per way."""
        table = Table(title=f"{self.command}: {self.items} {self.unit}, one thread")
        opponent = self.others[0]
        for column in ("", "Python s", "Java s", "wall s", f"ms per {self.unit.removesuffix('s')}", "speed"):
            table.add_column(column, justify="left" if not column else "right")
        for row in (*self.others, *self.ours):
            values = (row.cpu_seconds, row.java_seconds, row.wall_seconds)
            per_item, speed = 1e3 * row.total / self.items, opponent.total / row.total if row.total else float("inf")
            table.add_row(row.name, *(f"{value:.3f}" for value in values), f"{per_item:.3f}", f"{speed:.2f} x")
        console.print(table)
        for name, value in self.facts.items():
            console.print(f"{name}: {value}", highlight=False)
        if self.goal is not None:
            console.print(f"goal: {self.goal:g} x {opponent.name}", highlight=False)

    def write(self, path: Path, options: dict[str, Any]) -> None:
        """Write everything as JSON, with the machine it was measured on."""
        body = {"options": options, "machine": platform.machine(), "versions": library_versions()}
        write_json(path, {**body, **asdict(self), "ratios": self.ratios()}, indent=1)


def same_figures(turns: list[list[dict[str, float]]], tolerance: float) -> bool:
    """Return whether in every turn all ways found the figures of the first, integers exactly."""
    return all(_near(turn[0], other, tolerance) for turn in turns for other in turn[1:])


def _near(first: dict[str, float], second: dict[str, float], tolerance: float) -> bool:
    pairs = [(value, second.get(name)) for name, value in first.items()]
    return first.keys() == second.keys() and all(
        a == b if isinstance(a, int) else abs(a - b) <= tolerance for a, b in pairs
    )
