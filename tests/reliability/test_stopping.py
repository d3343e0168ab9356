"""A run that is asked to stop finishes its step, saves, says how to go on, and then goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from locap.trainer import stopping
from locap.trainer.checkpoint import verify
from locap.trainer.experiment import TrainingRun
from locap.utils import fault_points
from locap.utils.errors import EXIT_STOPPED

from . import tiny
from .jobs import OF_LAUNCHERS, mpirun, torchrun

ROOT = Path(__file__).resolve().parents[2]
STEPS, MANY = 6, 12  # the latter so that a launcher can be asked before the end


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[int, int], Path]:
    """``whole(ranks, steps)``: the folder of a run that nothing disturbed."""
    runs: dict[tuple[int, int], Path] = {}

    def get(size: int, steps: int = STEPS) -> Path:
        if (size, steps) not in runs:
            folder = tmp_path_factory.mktemp(f"whole_{size}_{steps}")
            assert tiny.train_on(size, tiny.config("Pix2Cap", folder, SOLVER__MAX_STEPS=steps)) == [0] * size
            runs[size, steps] = tiny.run_of(folder)
        return runs[size, steps]

    return get


def last_step(run: Path) -> int:
    return json.loads((newest(run) / "state.json").read_text())["step"]


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "latest").read_text().strip()


def assert_goes_on(run: Path, whole: Path, size: int, steps: int = STEPS, **changes: object) -> None:
    """The stopped run has what the other had at that step, and ends as it did."""
    verify(newest(run))
    twin = whole / "checkpoints" / newest(run).name
    for path in newest(run).glob("*.safetensors"):
        assert path.read_bytes() == (twin / path.name).read_bytes(), path.name
    assert [line["step"] for line in tiny.metrics(run)] == list(range(1, last_step(run) + 1))
    changes |= {"RESUME": True, "RESUME_FROM": run, "SOLVER__MAX_STEPS": steps}
    assert tiny.train_on(size, tiny.config("Pix2Cap", run.parents[1], **changes)) == [0] * size
    assert tiny.differences(whole, run) == []


def assert_says_how(error: str, run: Path, reason: str) -> None:
    assert error.count("Training has stopped on request") == 1, error
    assert reason in error
    assert f"to go on: the same command with RESUME True RESUME_FROM {run}" in error
    assert "Traceback" not in error


def at_step(step: int, act: Callable[[TrainingRun], None], rank: int | None = None) -> Callable[[TrainingRun], None]:
    return lambda run: act(run) if run.loop.state.step == step and rank in (None, run.world.rank) else None


@pytest.mark.fault("A4", "A8")
@pytest.mark.parametrize(
    ("name", "size", "rank"), [("SIGUSR1", 1, 0), ("SIGTERM", 1, 0), ("SIGINT", 1, 0), ("SIGTERM", 2, 1)]
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(name, size, rank, whole, tmp_path, capfd, figure):
    """The request is agreed on in the step after it."""
    act = at_step(3, lambda run: os.kill(os.getpid(), getattr(signal, name)), rank)
    cfg = tiny.config("Pix2Cap", tmp_path, SOLVER__MAX_STEPS=STEPS, CHECKPOINT_EVERY_STEPS=100)
    assert tiny.train_on(size, cfg, after_step=act) == [EXIT_STOPPED] * size
    run = tiny.run_of(tmp_path)
    assert_says_how(capfd.readouterr().err, run, f"(signal {name})")
    assert last_step(run) == 4
    assert json.loads((run / "stopped.json").read_text()) == {"step": 4, "reason": f"signal {name}"}
    assert_goes_on(run, whole(size), size, CHECKPOINT_EVERY_STEPS=100)
    assert not (run / "stopped.json").exists()
    figure("T3", f"{name} to rank {rank} of {size}: exit 75, 0 steps lost, resumed bitwise")


@pytest.mark.fault("A7")
@pytest.mark.parametrize("what", ["STOP file", "MAX_HOURS"])
def test_a_file_or_the_clock_stops_a_run(what, whole, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(stopping, "_SECONDS_BETWEEN_LOOKS", 0.0)
    changes = {"SOLVER__MAX_STEPS": STEPS}
    act = at_step(2, lambda run: (run.folder / "STOP").touch(), 0)
    if what == "MAX_HOURS":
        changes["MAX_HOURS"] = 0.0003
        act = at_step(2, lambda run: time.sleep(1.1))
    assert tiny.train_on(2, tiny.config("Pix2Cap", tmp_path, **changes), after_step=act) == [EXIT_STOPPED] * 2
    run = tiny.run_of(tmp_path)
    assert_says_how(capfd.readouterr().err, run, "STOP is there)" if what == "STOP file" else "MAX_HOURS have passed")
    assert last_step(run) <= 3
    assert not (run / "STOP").exists()
    assert_goes_on(run, whole(2), 2)


@pytest.mark.fault("A6")
@pytest.mark.parametrize("write_ahead", [False, True], ids=["sync", "async"])
def test_signals_during_a_save_let_it_complete(write_ahead, whole, tmp_path):
    changes = {"SOLVER__MAX_STEPS": STEPS, "ASYNC_CHECKPOINTS": write_ahead}
    twice = "checkpoint.write@5:sigterm;checkpoint.rename@1:sigterm"
    assert tiny.train_on(1, tiny.config("Pix2Cap", tmp_path, **changes), twice) == [EXIT_STOPPED]
    run = tiny.run_of(tmp_path)
    assert last_step(run) in (2, 3)
    assert_goes_on(run, whole(1), 1)


@pytest.mark.fault("A6")
@pytest.mark.parametrize("write_ahead", [False, True], ids=["sync", "async"])
def test_two_interruptions_during_a_save_leave_the_checkpoint_before(write_ahead, whole, tmp_path, monkeypatch):
    """The second Ctrl-C does not wait."""
    interrupt = lambda point: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]  # noqa: E731
    monkeypatch.setitem(fault_points.ACTIONS, "sigterm", interrupt)
    changes = {"SOLVER__MAX_STEPS": STEPS, "ASYNC_CHECKPOINTS": write_ahead}
    (code,) = tiny.train_on(1, tiny.config("Pix2Cap", tmp_path, **changes), "checkpoint.manifest@3:sigterm")
    # two signals that reach a busy thread together are one
    assert code in ((130, EXIT_STOPPED) if write_ahead else (130,))
    run = tiny.run_of(tmp_path)
    verify(newest(run))
    again = tiny.config("Pix2Cap", tmp_path, RESUME=True, RESUME_FROM=run, SOLVER__MAX_STEPS=STEPS)
    assert tiny.train_on(1, again) == [0]
    assert tiny.differences(whole(1), run) == []


@pytest.mark.fault("A4", "A8")
@pytest.mark.parametrize("size", [1, 2])
def test_a_stop_during_an_evaluation_ends_it_early(size, whole, tmp_path, capfd):
    """Of two processes the second is asked."""
    changes = {"SOLVER__MAX_STEPS": STEPS, "EVAL_EVERY_STEPS": 3, "EVAL_MAX_IMAGES": 2}
    changes |= {"COCO__TEST__IMAGES_PER_FORWARD": 1}
    fault = f"evaluate.batch@1:sigterm#{size - 1}"
    cfg = tiny.config("Pix2Cap", tmp_path, **changes)
    assert tiny.train_on(size, cfg, fault, evaluates=True) == [EXIT_STOPPED] * size
    run = tiny.run_of(tmp_path)
    assert_says_how(capfd.readouterr().err, run, "")
    assert last_step(run) == 4
    assert tiny.metrics(run, "evaluate") == []
    assert_goes_on(run, whole(size), size)


@pytest.mark.fault("A4")
def test_a_stop_during_the_last_evaluation_evaluates_again(whole, tmp_path):
    changes = {"SOLVER__MAX_STEPS": 2}
    cfg = tiny.config("Pix2Cap", tmp_path, **changes)
    assert tiny.train_on(1, cfg, "evaluate.batch@1:sigterm", evaluates=True) == [EXIT_STOPPED]
    run = tiny.run_of(tmp_path)
    assert not (run / "model.safetensors").exists()
    again = tiny.config("Pix2Cap", tmp_path, RESUME=True, RESUME_FROM=run, **changes)
    assert tiny.train_on(1, again, evaluates=True) == [0]
    assert [line["step"] for line in tiny.metrics(run, "evaluate") if "metrics" in line] == [2]
    assert tiny.differences(whole(1, 2), run) == []


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"} | more


def alone() -> list[str]:
    return [sys.executable]


def started(launcher: Callable[[], list[str]], folder: Path, **more: str) -> tuple[subprocess.Popen, Path]:
    """Start the real command, in a session of its own, with a process that loads."""
    changes = {"SOLVER__MAX_STEPS": MANY, "COCO__DATALOADER__NUM_WORKERS": 1}
    words = [*launcher(), str(ROOT / "entry.py"), "train", *tiny.words("Pix2Cap", folder, **changes)]
    process = subprocess.Popen(
        words,
        env=environment(**more),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, folder / "tiny" / "run_1"


def wait_for(ready: Callable[[], bool], process: subprocess.Popen, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.fault("A4")
@pytest.mark.parametrize(
    ("launcher", "name", "code"),
    [(mpirun, "SIGUSR1", EXIT_STOPPED), (torchrun, "SIGTERM", None), (alone, "SIGINT", EXIT_STOPPED)],
)
def test_a_signal_to_the_launcher(launcher, name, code, whole, tmp_path, figure):
    """Ctrl-C of a terminal reaches the processes that load as well; torchrun has exit codes of its own."""
    process, run = started(launcher, tmp_path)
    wait_for(lambda: steps_done(run) >= 2, process)
    before, asked = steps_done(run), time.monotonic()
    if launcher is alone:
        os.killpg(process.pid, getattr(signal, name))
    else:
        process.send_signal(getattr(signal, name))
    error = process.communicate(timeout=60)[1]
    seconds, size = time.monotonic() - asked, 1 if launcher is alone else 2
    assert process.returncode == code if code else process.returncode != 0, error
    assert error.count("Training has stopped on request") == 1, error
    assert f"RESUME True RESUME_FROM {run}" in error
    later = last_step(run) - before
    assert 0 < later <= 2
    assert seconds < 20
    assert_goes_on(run, whole(size, MANY), size, MANY)
    figure(
        "T3",
        f"{name} to {launcher.__name__}: exit code {process.returncode} after {seconds:.1f} s, "
        f"{later} step(s) later, 0 steps lost, resumed bitwise",
    )


@pytest.mark.fault("A5")
def test_mpirun_terminated_during_a_save_leaves_the_checkpoint_before(whole, tmp_path, figure):
    """It leaves its processes a fifth of a second, and the save takes longer."""
    process, run = started(mpirun, tmp_path, LOCAP_FAULT="checkpoint.manifest@3:hang")
    wait_for(lambda: steps_done(run) >= 3, process)
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert [path.name for path in sorted((run / "checkpoints").glob("step_????????"))][-1] == "step_00000002"
    verify(newest(run))
    again = tiny.config("Pix2Cap", tmp_path, RESUME=True, RESUME_FROM=run, SOLVER__MAX_STEPS=MANY)
    assert tiny.train_on(2, again) == [0, 0]
    assert tiny.differences(whole(2, MANY), run) == []
    figure("T3", f"SIGTERM to mpirun during a save: exit code {process.returncode}, 1 interval lost, resumed bitwise")
