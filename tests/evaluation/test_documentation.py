"""What docs/evaluation.md says there is, is there, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from locap.evaluation import EVALUATORS
from locap.evaluation.formats import PREDICTIONS, TRUTHS

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def rows(heading: str) -> list[list[set[str]]]:
    """The names in code style of each cell of the table below a heading."""
    lines = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")][2:]
    return [[set(re.findall(r"`([a-z_0-9]+)`", cell)) for cell in line.strip("|").split("|")] for line in table]


def test_every_protocol_and_variant_is_described():
    described = {name: row[2] for row in rows("Protocols") for name in row[0]}
    assert described.keys() == EVALUATORS.keys()
    for name, evaluator in EVALUATORS.items():
        if name not in ("detection", "instances", "keypoints"):  # one row for three
            assert described[name] == set(evaluator.variants), name
    assert described["detection"] == set(EVALUATORS["detection"].variants)


def test_every_form_is_described():
    table = rows("Forms of files")
    assert set().union(*(row[0] for row in table)) == TRUTHS.keys()
    assert set().union(*(row[1] for row in table)) == PREDICTIONS.keys()
