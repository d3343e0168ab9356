"""A hang is found, and the rank that is behind is told from those that wait for it."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from locap.trainer.distributed import World
from locap.trainer.watchdog import Watchdog


def state(step: int = 5, calls: int = 9, marks: int = 5, beats: int = 3) -> dict:
    return {"phase": "step", "step": step, "marks": marks, "calls": calls, "beats": beats, "place": "x.py:1 in f"}


@pytest.fixture
def dog() -> Watchdog:
    made = Watchdog(World(0, 3), {"step": 1})
    now = time.monotonic()
    made._seen = dict.fromkeys(range(3), (5, now, 3, now))
    return made


def test_the_rank_with_fewer_steps_or_exchanges_is_behind(dog):
    assert dog._behind({0: state(), 1: state(step=4), 2: state()}) == [1]
    assert dog._behind({0: state(), 1: state(), 2: state(calls=8)}) == [2]
    assert dog._behind({0: state(), 1: state(), 2: state()}) == []


def test_a_rank_that_says_nothing_is_behind_whatever_it_said_last(dog):
    dog._seen[1] = (5, 0.0, 3, time.monotonic() - 10)
    assert dog._behind({0: state(), 1: state(step=6), 2: state()}) == [1]


@pytest.mark.fault("A15")
def test_a_single_process_that_hangs_ends_with_its_stack(tmp_path, capfd):
    def hang() -> None:
        dog = Watchdog(World(), {"step": 0.5}, tmp_path)
        dog.start()
        dog.mark("evaluate", 1)
        time.sleep(1.5)  # a phase without a limit
        dog.mark("step", 2)
        time.sleep(30)

    process = multiprocessing.get_context("fork").Process(target=hang, daemon=True)
    process.start()
    process.join(15)
    assert process.exitcode == 70
    err = capfd.readouterr().err
    assert "step lasts longer than 0.5 s" in err
    assert f"step of step 2, last seen at {os.path.basename(__file__)}" in err
    assert "in hang" in (tmp_path / "logs" / "rank_0.log").read_text()


def test_marks_in_time_and_a_closed_watchdog_do_nothing():
    dog = Watchdog(World(), {"step": 1.5})
    dog.start()
    for step in range(4):
        dog.mark("step", step)
        time.sleep(0.5)
    dog.close()
    time.sleep(2)
