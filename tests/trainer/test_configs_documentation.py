"""The commands of docs/configs.md run, and what it shows is what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from locap.entry import main
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "configs.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert all(line.startswith("python entry.py configs ") for line in lines)
    return [shlex.split(line.partition(" > ")[0], comments=True)[2:] for line in lines]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_run(arguments, capsys):
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_what_is_shown_is_what_is_said(capsys):
    explained, mistaken = blocks("text")
    assert (
        main(next(arguments for arguments in commands() if "explain" in arguments and "--overrides" in arguments)) == 0
    )
    assert capsys.readouterr().out.strip() == explained.strip()
    words = re.search(r"`python entry.py (train .*?)`", TEXT)[1].split()
    assert main(words) == 2
    assert capsys.readouterr().err.strip() == mistaken.strip()


def test_the_example_file_loads(tmp_path):
    (tmp_path / "quickstart.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    assert load_config([tmp_path / "mine.yaml"], model_schemas=MODEL_SCHEMAS).SOLVER.BASE_LR == 5e-4
