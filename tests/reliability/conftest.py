"""Tests of reliability hand their figures to the table that `make reliability` prints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from . import goals

FULL = os.environ.get("LOCAP_RELIABILITY") == "full"


@pytest.fixture
def scale() -> Callable[[int, int], int]:
    """``scale(short, full)``: how many trials, in `make test` and in `make reliability`."""
    return lambda short, full: full if FULL else short


@pytest.fixture
def figure(record_property) -> Callable[[str, str], None]:
    """``figure("T5", "100 % of 1 500 bit flips")``: what was measured for a goal; several lines may belong to one."""

    def add(goal: str, measured: str) -> None:
        assert goal in goals.GOALS, goal
        record_property(goal, measured)

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    """Print each goal with what was measured."""
    if not FULL:
        return
    measured: dict[str, list[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for goal, text in getattr(report, "user_properties", []):
                if goal in goals.GOALS and report.when == "call":
                    measured.setdefault(goal, []).append(text if outcome == "passed" else f"FAILED: {text}")
    table = Table("", "what", "best known", "goal", "measured here", show_lines=True)
    for goal, row in goals.GOALS.items():
        table.add_row(goal, *row, "\n".join(measured.get(goal, ["not measured"])))
    Console(width=200).print(table)
    if path := os.environ.get("LOCAP_FIGURES"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(measured, indent=1), encoding="utf-8")
