"""Messages go to standard error, once, and only rank 0 tells everything."""

from __future__ import annotations

import logging

import pytest

from locap.utils.logging import RANK_VARIABLES, as_called, set_up_logging


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    logger = logging.getLogger("locap")
    before = (logger.handlers[:], logger.level, logger.propagate)
    logger.handlers.clear()
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["hello", "careful"]),
        ({"RANK": "0"}, ["hello", "careful"]),
        ({"OMPI_COMM_WORLD_RANK": "1"}, ["careful"]),
        ({"SLURM_PROCID": "3"}, ["careful"]),
    ],
)
def test_what_each_rank_says(environ, expected, monkeypatch, capsys):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    set_up_logging()
    set_up_logging()
    logging.getLogger("locap.trainer").info("hello")
    logging.getLogger("locap.trainer").warning("careful")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [("/home/me/.venv/bin/locap", "locap data list"), ("entry.py", "python entry.py data list")],
)
def test_commands_are_told_as_the_user_gives_them(monkeypatch, program, expected):
    monkeypatch.setattr("sys.argv", [program, "data"])
    assert as_called("fix: python entry.py data list") == f"fix: {expected}"
