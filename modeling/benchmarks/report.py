"""Measurements as a table and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...utils.files import write_json
from .measuring import Cost, Measurement


@dataclass(slots=True)
class Report:
    """The measurements of one command, the product's first, what else was found, and how they compare."""

    command: str
    measurements: list[Measurement]
    facts: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path, options: dict[str, Any]) -> None:
        """Write everything as JSON, with the machine it was measured on."""
        machine = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
        write_json(path, {"options": options, "machine": machine, **asdict(self)}, indent=1)

    def show(self, console: Console) -> None:
        """Print a row per measurement and part."""
        table = Table(title=f"{self.command} ({torch.get_num_threads()} threads)")
        for column in ("", "TFLOP", "CPU s", "wall s", "peak GB", "calls"):
            table.add_column(column, justify="left" if not column else "right")
        for measurement in self.measurements:
            for row in _rows(measurement):
                table.add_row(*row)
            table.add_section()
        console.print(table)
        for name, value in self.facts.items():
            console.print(f"{name}: {value}", highlight=False)
        for name, value in self.ratios.items():
            console.print(f"{name}: {value:.1f} times less", highlight=False)


def _rows(measurement: Measurement) -> Iterator[tuple[str, ...]]:
    costs = (measurement.tflop, measurement.cpu_seconds, measurement.wall_seconds)
    yield measurement.name, f"{costs[0]:.4f}", f"{costs[1]:.3f}", f"{costs[2]:.3f}", f"{measurement.peak_gb:.2f}", ""
    for name, cost in measurement.parts.items():
        yield f"  {name}", f"{cost.tflop:.4f}", f"{cost.cpu_seconds:.3f}", "", "", str(cost.calls)


def ratios(ours: Measurement | Cost, other: Measurement | Cost) -> dict[str, float]:
    """Return how many times the work and the processor time of the first the second takes."""
    found = {"TFLOP": (ours.tflop, other.tflop), "CPU time": (ours.cpu_seconds, other.cpu_seconds)}
    return {name: slow / fast for name, (fast, slow) in found.items() if fast}
