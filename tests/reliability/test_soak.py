"""Many steps, and many kills: nothing grows, and little is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from . import toy


def _held() -> list[int]:
    """Return bytes in memory, open files, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return [pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("write_ahead", [False, True], ids=["sync", "async"])
def test_nothing_grows(write_ahead, tmp_path, figure, scale):
    steps = scale(1500, 10_000)
    taken = tmp_path / "held.json"

    def train() -> None:
        held: list[list[int]] = []
        look = lambda step: held.append(_held()) if step % 100 == 50 else None  # noqa: E731
        toy.train(tmp_path / "run", steps=steps, every=100, write_ahead=write_ahead, after_step=look)
        taken.write_text(json.dumps(held))

    assert toy.in_process(train, timeout=500) == 0
    held = json.loads(taken.read_text())[5:]
    memory, files, threads = zip(*held, strict=True)
    growth = max(memory) / memory[0] - 1
    assert growth <= 0.01
    assert set(files) == {files[0]}
    assert set(threads) == {threads[0]}
    mode = "asynchronous" if write_ahead else "synchronous"
    figure("T17", f"{steps} steps, {mode} saves: memory +{growth:.2%}, {files[0]} files and {threads[0]} threads always")


def test_kills_cost_little_and_change_nothing(tmp_path, figure, scale):
    """Saves every 20 steps, a kill every 1000 or so, at any point that a step or a save passes.

    In the proportions of a run with steps of 0.6 seconds this is a save every 12 seconds and a kill every 10 minutes.
    """
    kills, between, every = scale(6, 30), 1000, 20
    steps, numbers = kills * between, random.Random(0)
    whole, part, done = tmp_path / "whole", tmp_path / "part", tmp_path / "done"
    assert toy.in_process(lambda: toy.train(whole, steps=steps, every=every), timeout=500) == 0
    began = time.monotonic()
    counted = os.open(done, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    train = lambda: toy.train(part, steps=steps, every=every, after_step=lambda step: os.write(counted, b"."))  # noqa: E731
    for _ in range(kills):
        fault = f"*@{numbers.randrange(between * 3, between * 7)}:kill"
        code = toy.in_process(train, fault, timeout=500)
        assert code in (-signal.SIGKILL, 0)
    killed = toy.in_process(train, timeout=500)
    os.close(counted)
    assert killed == 0
    assert toy.outcome(part) == toy.outcome(whole)
    share = steps / done.stat().st_size
    assert share >= 0.98
    figure(
        "T15",
        f"{kills} kills, saves every {every} steps, one kill in ~{between}: {share:.2%} of the steps done were useful "
        f"(the rest was repeated), the end bitwise equal; {time.monotonic() - began:.0f} s; imports not counted",
    )
