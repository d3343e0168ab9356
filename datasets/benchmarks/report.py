"""Measurements as a table and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...utils.files import write_json
from .measuring import Measurement


@dataclass(slots=True)
class Report:
    """The measurements of one command: the loader to compare with first, then ours."""

    command: str
    options: dict[str, Any]
    measurements: list[Measurement]
    facts: dict[str, Any] = field(default_factory=dict)

    def ratios(self) -> dict[str, dict[str, float]]:
        """Return for each of ours how many times faster, lighter and smaller it is than the other."""
        other, *ours = self.measurements
        return {each.name: _ratios(each, other) for each in ours}

    def show(self, console: Console) -> None:
        """Print a row per loader."""
        title = f"{self.command} ({', '.join(f'{value} {name}' for name, value in self.options.items())})"
        table = Table(title=title)
        names = (
            "images/s",
            "CPU ms an image",
            "MB a batch",
            "own memory MB",
            "with its share MB",
            "after each epoch",
            "growth",
        )
        for column in ("", *names):
            table.add_column(column, justify="left" if not column else "right")
        for each in self.measurements:
            last, over = each.memory[-1], " ".join(f"{memory.own:.1f}" for memory in (each.started, *each.memory))
            values = [f"{each.images_per_second:.2f}", f"{1e3 * each.cpu_per_image:.1f}"]
            values += [f"{each.batch_bytes / 1e6:.2f}", f"{last.own:.1f}"]
            table.add_row(each.name, *values, f"{last.share:.1f}", over, f"{each.growth():.1%}")
        console.print(table)
        for name, value in {**self.facts, **self.ratios()}.items():
            text = ", ".join(f"{k} {v:.2f} x" for k, v in value.items()) if isinstance(value, dict) else value
            console.print(f"{name}: {text}", highlight=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything, for a file."""
        growth = {each.name: each.growth() for each in self.measurements}
        return {**asdict(self), "ratios": self.ratios(), "growth after the first epoch": growth}


def write(path: Path, reports: list[Report]) -> None:
    """Write reports as JSON, with the machine they were measured on."""
    machine = {"torch": torch.__version__, "machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    write_json(path, {"machine": machine, "reports": [report.to_json() for report in reports]}, indent=1)


def _ratios(ours: Measurement, other: Measurement) -> dict[str, float]:
    return {
        "images/s": ours.images_per_second / other.images_per_second,
        **({"bytes a batch": other.batch_bytes / ours.batch_bytes} if ours.batch_bytes and other.batch_bytes else {}),
        "CPU time": other.cpu_per_image / ours.cpu_per_image,
        "own memory": other.memory[-1].own / ours.memory[-1].own,
    }
