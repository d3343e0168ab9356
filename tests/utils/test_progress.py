"""Progress: a bar on a terminal, a line now and then elsewhere, and never two bars across each other."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from locap.utils import progress
from locap.utils.progress import ProgressBar, training_note


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """What a terminal of 80 columns shows."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "terminal", lambda: console)
    return text


def test_a_bar_makes_room_for_another(screen):
    with ProgressBar("training", 4, done=1) as outer:
        outer.advance(note="loss 0.5")
        with outer.hidden():
            assert not outer._bar.live.is_started
            with ProgressBar("predicting", 2) as inner:
                inner.advance()
                assert inner._bar.live.is_started
        assert outer._bar.live.is_started
        outer.advance(2)
    assert outer.done == 4
    shown = screen.getvalue()
    assert shown.index("training") < shown.index("predicting") < shown.rindex("training")
    assert "4/4" in shown
    assert "loss 0.5" in shown


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(progress, "terminal", lambda: Console(file=io.StringIO(), force_terminal=False))
    clock = iter([0.0, *range(10, 1000, 10)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), ProgressBar("training", 7200, done=10) as bar:
        for _ in range(5):
            bar.advance(note="loss 0.5")
        with bar.hidden():
            pass
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) < 5
    assert lines[0].startswith("training 1")
    assert lines[0].endswith("left. loss 0.5")


def test_other_ranks_say_nothing(screen, caplog):
    with caplog.at_level(logging.INFO), ProgressBar("training", 2, enabled=False) as bar:
        bar.advance()
    assert bar.done == 1
    assert screen.getvalue() == ""
    assert caplog.text == ""


def test_waiting_for_data_is_said_when_it_is_long():
    assert training_note(1.23456, 7.04, 0.05) == "loss 1.235  7.0 images/s"
    assert training_note(1.0, 7.0, 0.35, 0.41) == "loss 1.000  7.0 images/s  35% waiting for data  41% of peak"
