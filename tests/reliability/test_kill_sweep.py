"""A run that is killed anywhere in a step or a save goes on as if nothing had happened, to the last bit.

Every passage of every fault point of a short run is one trial: the process is killed there, then the same command is
given again. No trial hangs on luck.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from locap.trainer.checkpoint import verify
from locap.utils import fault_points

from . import toy

SYNC_ASYNC = pytest.mark.parametrize("write_ahead", [False, True], ids=["sync", "async"])


def passages(run: Callable[[], None], folder: Path) -> dict[str, int]:
    """Return how often a whole run passes each point, and all of them ("*")."""
    counted = folder / "passages.json"

    def count() -> None:
        fault_points._active = fault_points.Faults([])
        run()
        counted.write_text(repr(fault_points._active.passages))

    assert toy.in_process(count) == 0
    return eval(counted.read_text())


def readable(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("checkpoints/step_????????")) if verify(path)]


@SYNC_ASYNC
@pytest.mark.fault("A1")
@pytest.mark.fault("A2")
@pytest.mark.fault("A3")
def test_one_process(write_ahead, tmp_path, figure, scale):
    whole = tmp_path / "whole"
    run = lambda folder: toy.train(folder, write_ahead=write_ahead)  # noqa: E731
    points = passages(lambda: run(whole), tmp_path)
    wanted = toy.outcome(whole)
    assert set(points) >= {"step.begin", "step.optimizer", "checkpoint.write", "checkpoint.rename", "metrics.write"}
    step = scale(3 if write_ahead else 2, 1)
    trials = range(1, points["*"] + 1, step)
    for trial in trials:
        folder = tmp_path / f"killed_{trial}"
        assert toy.in_process(lambda f=folder: run(f), f"*@{trial}:kill") == -signal.SIGKILL, trial
        before = readable(folder)
        assert toy.in_process(lambda f=folder: run(f)) == 0, trial
        assert toy.outcome(folder) == wanted, (trial, [path.name for path in before])
        shutil.rmtree(folder)
    mode = "asynchronous" if write_ahead else "synchronous"
    figure("T1", f"1 rank, {mode}: {len(trials)} of {len(trials)} kill points ({points['*']} in the run), bitwise")


@SYNC_ASYNC
@pytest.mark.fault("A1")
def test_two_processes(write_ahead, tmp_path, figure, scale):
    """Either of the two is killed, the other ends with it."""
    whole = tmp_path / "whole"
    run = lambda folder: toy.on_ranks(lambda world: toy.train(folder, write_ahead=write_ahead, world=world), 2)  # noqa: E731
    assert run(whole) == [0, 0]
    wanted = toy.outcome(whole)
    points = passages(lambda: toy.train(tmp_path / "alone", write_ahead=write_ahead), tmp_path)
    own = sum(points[name] for name in points if name.startswith("step."))  # rank 1 writes nothing
    trials = [(0, trial) for trial in range(1, points["*"] + 1, scale(23, 2))]
    trials += [(1, trial) for trial in range(1, own + 1, scale(5, 1))]
    for rank, trial in trials:
        folder = tmp_path / f"killed_{rank}_{trial}"
        train = lambda world, f=folder: toy.train(f, write_ahead=write_ahead, world=world)  # noqa: E731
        assert toy.on_ranks(train, 2, f"*@{trial}:kill#{rank}") != [0, 0], (rank, trial)
        readable(folder)
        assert run(folder) == [0, 0], (rank, trial)
        assert toy.outcome(folder) == wanted, (rank, trial)
        shutil.rmtree(folder)
    mode = "asynchronous" if write_ahead else "synchronous"
    figure("T1", f"2 ranks, {mode}: {len(trials)} of {len(trials)} kill points, bitwise")
