"""Tables and files of ViP-Bench in the layouts of the published evaluation.

Its arithmetic is kept for the tables: scores are added one after another in the order of the grades, divided by the
number of items and multiplied by 100; the mean over runs and the (population) standard deviation of the runs' totals
are rounded to one decimal as numpy rounds, half to even after multiplying by 10. Where it leaves the order of columns
to chance (ties, and the capabilities within the name of a combination), names decide.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import write_json, write_text
from .results import Table

DECIMALS = 1


@dataclass(frozen=True, slots=True)
class Grade:
    """What the judge said about one answer in one run; ``parsed`` is False where it said no score."""

    model: str
    content: str
    score: float
    parsed: bool = True


@dataclass(frozen=True, slots=True)
class GradedItem:
    """An item with its grades, one per run."""

    key: str
    capabilities: tuple[str, ...]
    grades: tuple[Grade, ...]


def capability_table(items: Sequence[GradedItem], name: str) -> Table:
    """Return the cap-score table: one row, a column per capability (an item counts in each of its own)."""
    return _score_table(items, name, lambda item: item.capabilities)


def combination_table(items: Sequence[GradedItem], name: str) -> Table:
    """Return the cap-int-score table: a column per set of capabilities that occurs."""
    return _score_table(items, name, lambda item: ("_".join(item.capabilities),))


def _score_table(items: Sequence[GradedItem], name: str, groups: Callable[[GradedItem], Sequence[str]]) -> Table:
    counts = Counter(group for item in items for group in groups(item))
    columns = sorted(counts, key=lambda group: (-counts[group], group))
    means = [_percent([item for item in items if group in groups(item)]).mean() for group in columns]
    totals = _percent(items)
    values = [float(np.round(value, DECIMALS)) for value in (*means, totals.mean(), totals.std())]
    runs = str([float(value) for value in np.round(totals, DECIMALS)])
    return Table(("", *columns, "total", "std", "runs"), [(name, *values, runs)])


def _percent(items: Sequence[GradedItem]) -> np.ndarray:
    """Return the mean score of each run in percent, float64 (runs,)."""
    scores = np.array([[grade.score for grade in item.grades] for item in items])
    return np.cumsum(scores, axis=0)[-1] / len(items) * 100  # cumsum adds in order, sum does not


def grade_document(items: Sequence[GradedItem]) -> dict[str, dict[str, list[Any]]]:
    """Return what the published evaluation stores: id -> lists of model, content and score, one entry per run."""
    fields = ("model", "content", "score")
    return {item.key: {name: [getattr(grade, name) for grade in item.grades] for name in fields} for item in items}


def write_published_files(
    folder: str | Path, items: Sequence[GradedItem], tables: tuple[Table, Table], *, name: str, split: str, judge: str
) -> list[Path]:
    """Write ``…-grade-Nruns.json``, ``…-cap-score-Nruns.csv``, ``…-cap-int-score-Nruns.csv``; returns their paths."""
    stem = re.sub(r"[^\w.+-]+", "_", f"{name}-{split}_{judge}")
    runs, folder = f"{len(items[0].grades)}runs", Path(folder)
    written = [write_json(folder / f"{stem}-grade-{runs}.json", grade_document(items), indent=4)]
    for kind, table in zip(("cap-score", "cap-int-score"), tables, strict=True):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([table.columns, *table.rows])
        written.append(write_text(folder / f"{stem}-{kind}-{runs}.csv", buffer.getvalue()))
    return written
