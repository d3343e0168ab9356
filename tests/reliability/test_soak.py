"""Many steps, and many kills: nothing grows, and little is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from locap.utils import fault_points

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
    figure(
        "T17", f"{steps} steps, {mode} saves: memory +{growth:.2%}, {files[0]} files and {threads[0]} threads always"
    )


def test_kills_cost_little_and_change_nothing(tmp_path, figure, scale):
    """Saves 50 times as often as kills, which come at any point that a step or a save passes.

    With steps of 0.6 seconds and a kill every 10 minutes, that is a save every 12 seconds.
    """
    kills, between, every = scale(4, 30), scale(300, 1000), scale(6, 20)
    steps, numbers = kills * between, random.Random(0)
    whole, part, done = tmp_path / "whole", tmp_path / "part", tmp_path / "done"

    def count() -> None:
        fault_points._active = fault_points.Faults([])
        toy.train(whole, steps=steps, every=every)
        (tmp_path / "passages").write_text(str(fault_points._active.passages["*"]))

    assert toy.in_process(count, timeout=500) == 0
    passages = int((tmp_path / "passages").read_text()) // kills
    counted, codes = os.open(done, os.O_CREAT | os.O_APPEND | os.O_WRONLY), []
    train = lambda: toy.train(part, steps=steps, every=every, after_step=lambda step: os.write(counted, b"."))  # noqa: E731
    while len(codes) < 2 * kills and 0 not in codes:
        fault = f"*@{numbers.randrange(passages // 2, passages * 3 // 2)}:kill" if len(codes) < kills else None
        codes.append(toy.in_process(train, fault, timeout=500))
    os.close(counted)
    *killed, last = codes
    assert last == 0
    assert set(killed) == {-signal.SIGKILL}
    assert toy.outcome(part) == toy.outcome(whole)
    share = steps / done.stat().st_size
    assert share >= 0.98
    figure(
        "T15",
        f"{len(killed)} kills, {done.stat().st_size / len(killed):.0f} steps apart, saves every {every}: {share:.2%} "
        "of the steps done were useful, the others repeated (restart and saving not counted); the end bitwise equal",
    )
