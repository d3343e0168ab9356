"""Checkpoints survive kills, full disks and damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from locap.trainer.checkpoint import CheckpointFolder
from locap.trainer.checkpoint_files import step_folders, verify
from locap.utils.errors import CheckpointError
from locap.utils.fault_points import POINTS, activate

PIECE = 32
FORK = multiprocessing.get_context("fork")


def files(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return a small model's and optimiser's tensors as they are at a step."""
    drawn = torch.Generator().manual_seed(step)
    model = {
        "embed.weight": torch.randn(9, 8, generator=drawn),
        "norm.bias": torch.randn(8, generator=drawn).bfloat16(),
    }
    optimizer = {f"exp_avg/{name}": tensor.float().square() for name, tensor in model.items()}
    optimizer["step/norm.bias"] = torch.tensor(float(step))
    return {"model.safetensors": model, "optimizer.safetensors": optimizer}


def save_twice(path: Path, ahead: bool) -> CheckpointFolder:
    """Save the steps 1 and 2, of which the second replaces the first."""
    run = CheckpointFolder(path, keep=1, write_ahead=ahead, piece_bytes=PIECE)
    for step in (1, 2):
        run.save(files(step), {"step": step, "seconds": 0.5}, step)
    run.wait()
    return run


def forked(job: Callable[[], None]) -> int:
    """Do it in a child; returns its exit code."""
    process = FORK.Process(target=job)
    process.start()
    process.join(60)
    return process.exitcode


def assert_as_saved(folder: Path) -> int:
    """Every bit of a checkpoint is that of its step; returns the step."""
    step = verify(folder)["step"]
    for name, tensors in files(step).items():
        loaded = load_file(folder / name)
        assert loaded.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded[key].dtype == tensor.dtype
            assert torch.equal(loaded[key], tensor)
    return step


@pytest.fixture
def counted(tmp_path, monkeypatch) -> Callable[[bool], list[str]]:
    """Return a function: the points that two saves pass by, in order."""

    def count(ahead: bool) -> list[str]:
        monkeypatch.setenv("LOCAP_FAULT", "step.begin:kill")
        passed: list[str] = []
        faults = activate()
        original = faults.pass_by
        faults.pass_by = lambda point: (passed.append(point), original(point))[1]
        save_twice(tmp_path / f"counted-{ahead}", ahead)
        monkeypatch.delenv("LOCAP_FAULT")
        activate()
        return passed

    return count


def test_two_saves_pass_by_every_point_of_checkpoints_and_files(counted):
    """No point is dead, and a thread passes by the same ones in the same order."""
    passed = counted(False)
    assert set(passed) == {point for point in POINTS if point.startswith(("checkpoint.", "file."))}
    assert counted(True) == passed
    assert Counter(passed)["checkpoint.write"] > 50, "each file in many pieces"


@pytest.mark.fault("A2")
@pytest.mark.fault("A3")
@pytest.mark.fault("A6")
@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_a_kill_anywhere_in_a_save_leaves_the_old_or_the_new(tmp_path, monkeypatch, counted, ahead, scale, figure):
    """Killed at every passage of two saves; then a resumed run deletes what was left half written."""
    passed = counted(ahead)
    visible = [k for k, point in enumerate(passed, start=1) if point == "checkpoint.renamed"]
    seen = Counter()
    trials = range(1, len(passed) + 1, scale(3, 1))
    for k in sorted({*trials, *visible, *(k - 1 for k in visible), *(k + 1 for k in visible)}):
        path = tmp_path / str(k)
        monkeypatch.setenv("LOCAP_FAULT", f"*@{k}:kill")
        assert forked(lambda p=path: (activate(), save_twice(p, ahead))) == -signal.SIGKILL, k
        monkeypatch.delenv("LOCAP_FAULT")
        for folder in step_folders(path / "checkpoints"):
            assert_as_saved(folder)  # nothing half written is ever visible
        run = CheckpointFolder(path, keep=1)
        expected = sum(k >= at for at in visible)
        if expected:
            assert assert_as_saved(run.newest()) == expected, (k, passed[k - 1])
        else:
            with pytest.raises(CheckpointError, match="no usable checkpoint"):
                run.newest()
        run.save(files(3), {"step": 3}, 3)
        assert sorted(each.name for each in run.root.iterdir()) == ["step_00000003"]
        assert (path / "latest").read_text() == "step_00000003\n"
        seen[expected] += 1
        shutil.rmtree(path)
    assert all(seen[number] for number in (0, 1, 2))
    figure(
        "T1", f"save alone, {'async' if ahead else 'sync'}: {sum(seen.values())} of {sum(seen.values())} kill points"
    )


@pytest.mark.fault("A3")
def test_the_folders_decide_and_not_latest(tmp_path):
    run = CheckpointFolder(tmp_path, keep=0)
    for step in (1, 2):
        run.save(files(step), {"step": step}, step)
    for text in ("step_00000001\n", "step_00000009\n", "", None):
        (tmp_path / "latest").unlink() if text is None else (tmp_path / "latest").write_text(text)
        assert run.newest().name == "step_00000002"


@pytest.mark.fault("A6")
def test_a_signal_during_a_save_leaves_the_whole_of_it_or_nothing(tmp_path, counted):
    """Ctrl-C here removes what is half written; in a thread the save is finished while the process ends."""

    passage = Counter(counted(False))["checkpoint.write"] * 3 // 4  # in the middle of the second

    def interrupted(path: Path, ahead: bool) -> None:
        os.environ["LOCAP_FAULT"] = f"checkpoint.write@{passage}:sigterm"
        activate()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        save_twice(path, ahead)

    for ahead, left in ((False, ["step_00000001"]), (True, ["step_00000002"])):
        path = tmp_path / str(ahead)
        assert forked(lambda p=path, a=ahead: interrupted(p, a)) == 1, "a KeyboardInterrupt"
        assert sorted(each.name for each in (path / "checkpoints").iterdir()) == left
        assert_as_saved(path / "checkpoints" / left[0])


@pytest.mark.fault("B1")
@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_a_full_disk_anywhere_in_a_save_leaves_the_old_or_the_new(tmp_path, monkeypatch, counted, ahead, scale):
    passed = counted(ahead)
    first = passed.index("checkpoint.end") + 1
    writing = range(first + passed[first:].index("checkpoint.staged") + 2, len(passed))
    for k in list(writing)[:: scale(4, 1)]:
        path = tmp_path / str(k)
        monkeypatch.setenv("LOCAP_FAULT", f"*@{k}:enospc")
        activate()
        run = CheckpointFolder(path, keep=1, write_ahead=ahead, piece_bytes=PIECE)
        for step in (1, 2):
            run.save(files(step), {"step": step}, step)
        run._writer.join()
        monkeypatch.delenv("LOCAP_FAULT")
        activate()
        assert assert_as_saved(run.newest()) in (1, 2)
        assert not list(run.root.glob(".tmp-*")) or passed[k - 1] == "checkpoint.prune"
        run.save(files(3), {"step": 3}, 3)
        run.wait()
        assert sorted(each.name for each in run.root.iterdir()) == ["step_00000003"]
        shutil.rmtree(path)


@pytest.mark.fault("B1")
def test_a_limit_of_the_system_is_a_full_disk(tmp_path):
    """RLIMIT_FSIZE, without the help of a fault point."""
    run = CheckpointFolder(tmp_path, keep=1)
    run.save(files(1), {"step": 1}, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        for step in (2, 3):
            run.save(files(step), {"step": step}, step)
        with pytest.raises(CheckpointError, match="could not be written: File too large") as caught:
            run.save(files(4), {"step": 4}, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 5
    assert [each.name for each in run.root.iterdir()] == ["step_00000001"]
    assert assert_as_saved(run.newest()) == 1


class Damaged:
    """Two checkpoints of a run, of which the newer is damaged in many ways, one at a time."""

    def __init__(self, path: Path) -> None:
        self.run = CheckpointFolder(path, keep=0)
        for step in (1, 2):
            self.run.save(files(step), {"step": step}, step)
        self.older, self.newer = step_folders(self.run.root)
        self.sound = {file: file.read_bytes() for folder in (self.older, self.newer) for file in folder.iterdir()}
        self.found = self.tried = 0

    def files(self) -> list[Path]:
        return sorted(file for file in self.sound if file.parent == self.newer)

    def finds(self, *changed: tuple[Path, bytes | None], bad: Path | None = None) -> None:
        """Count whether a change of files' bytes (None: no such file) is found, and mend them."""
        for file, data in changed:
            file.unlink(missing_ok=True) if data is None else file.write_bytes(data)
        self.tried += 1
        try:
            verify(bad or self.newer)
        except CheckpointError:
            self.found += 1
        for file, _ in changed:
            if file in self.sound:
                file.write_bytes(self.sound[file])
            else:
                file.unlink()

    def uses_the_older(self, caplog) -> None:
        """The run goes on from the checkpoint before, and says so with both names."""
        caplog.clear()
        assert self.run.newest() == self.older
        assert "step_00000002" in caplog.text
        assert "step_00000001 is used" in caplog.text
        (self.newer.with_name(self.newer.name + ".invalid")).rename(self.newer)


@pytest.fixture
def damaged(tmp_path) -> Iterator[Damaged]:
    made = Damaged(tmp_path)
    yield made
    assert verify(made.newer), "each test mends what it damaged"
    assert made.found == made.tried > 0


@pytest.mark.fault("B7")
def test_every_truncation_is_found(damaged, figure, caplog):
    """Of every file after every 7th byte, to nothing, and away; and files too many."""
    for file in damaged.files():
        data = damaged.sound[file]
        for end in range(0, len(data), 7):
            damaged.finds((file, data[:end]))
        for changed in (None, data[:-1], data + b"\n"):
            damaged.finds((file, changed))
    damaged.finds((damaged.newer / "model-00002.safetensors", b"x"))
    figure("T5", f"{damaged.found} of {damaged.tried} truncations, missing and extra files")
    for file in damaged.files():
        file.write_bytes(b"")
        damaged.uses_the_older(caplog)
        file.write_bytes(damaged.sound[file])


@pytest.mark.fault("B7")
def test_every_exchange_of_files_is_found(damaged, figure):
    """Of two files of a checkpoint, of one file of two checkpoints, and of all."""
    files_, sound = damaged.files(), damaged.sound
    for one in files_:
        for other in files_:
            if one != other:
                damaged.finds((one, sound[other]), (other, sound[one]))
        twin = damaged.older / one.name
        damaged.finds((one, sound[twin]), (twin, sound[one]))
        damaged.finds((one, sound[twin]), (twin, sound[one]), bad=damaged.older)
    every = [
        (file, sound[(damaged.older if file.parent == damaged.newer else damaged.newer) / file.name]) for file in sound
    ]
    damaged.finds(*every)
    damaged.finds(*every, bad=damaged.older)
    figure("T5", f"{damaged.found} of {damaged.tried} swaps of files and checkpoints")


@pytest.mark.fault("B7")
def test_two_files_of_one_size_exchanged_are_found(tmp_path):
    run = CheckpointFolder(tmp_path)
    one, other = ({"w": torch.full((9,), value)} for value in (1.0, 2.0))
    folder = run.save({"model.safetensors": one, "ema.safetensors": other}, {}, 1)
    names = [folder / "model.safetensors", folder / "ema.safetensors"]
    data = [name.read_bytes() for name in names]
    assert len(data[0]) == len(data[1])
    for name, swapped in zip(names, reversed(data), strict=True):
        name.write_bytes(swapped)
    with pytest.raises(CheckpointError, match=r"is damaged: ema\.safetensors"):
        verify(folder)


@pytest.mark.fault("B8")
def test_every_flipped_bit_and_zeroed_block_is_found(damaged, figure, caplog, scale):
    drawn, files_, number = random.Random(0), damaged.files(), scale(400, 1500)
    weights = [len(damaged.sound[file]) for file in files_]
    for file in drawn.choices(files_, weights, k=number):
        data = bytearray(damaged.sound[file])
        data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        damaged.finds((file, bytes(data)))
    flips = f"{damaged.found} of {damaged.tried} bit flips"
    for file in drawn.choices(files_, weights, k=scale(100, 300)):
        data = bytearray(damaged.sound[file])
        start = drawn.randrange(len(data))
        length = min(drawn.choice([8, 64, 512]), len(data) - start)
        data[start : start + length] = bytes(length)
        if data != damaged.sound[file]:
            damaged.finds((file, bytes(data)))
    figure("T5", f"{flips}, {damaged.found - number} of {damaged.tried - number} zeroed blocks")
    file = damaged.newer / "model.safetensors"
    file.write_bytes(damaged.sound[file][:-1] + b"\x01")
    damaged.uses_the_older(caplog)
    file.write_bytes(damaged.sound[file])


@pytest.mark.fault("B7")
def test_strict_takes_no_other_than_the_newest(damaged):
    assert damaged.run.newest(strict=True) == damaged.newer
    file = damaged.newer / "state.json"
    damaged.finds((file, b"{}"))
    file.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"step_00000002 is incomplete: state\.json") as caught:
        damaged.run.newest(strict=True)
    assert caught.value.exit_code == 4
    assert damaged.newer.is_dir(), "and moves nothing"
    file.write_bytes(damaged.sound[file])


@pytest.mark.fault("B9")
def test_where_all_are_damaged_each_has_its_reason(damaged):
    changes = ((damaged.older / "manifest.json", None), (damaged.newer / "model.safetensors", b"x"))
    damaged.finds(*changes)
    aside = damaged.run.root / "step_00000003.invalid"
    aside.mkdir()
    for file, data in changes:
        file.unlink() if data is None else file.write_bytes(data)
    for _ in range(2):  # nothing is moved, so that it can be asked again
        with pytest.raises(CheckpointError, match="The run holds no usable checkpoint") as caught:
            damaged.run.newest()
        assert caught.value.exit_code == 4
        for line in (
            "step_00000002: The checkpoint step_00000002 is incomplete: model.safetensors.",
            "step_00000001: The checkpoint step_00000001 has no manifest.",
            "step_00000003.invalid: set aside before",
        ):
            assert line in str(caught.value)
    for file, _ in changes:
        file.write_bytes(damaged.sound[file])


def test_a_save_in_a_thread_blocks_for_a_fraction_of_the_time(tmp_path, scale, figure):
    megabytes = scale(32, 400)
    tensors = {f"w{i}": torch.randn(megabytes * 1024 * 1024 // 4 // 16) for i in range(16)}
    blocked = {}
    for ahead in (False, True):
        run, times = CheckpointFolder(tmp_path / str(ahead), keep=1, write_ahead=ahead), []
        for step in (1, 2, 3):
            start = time.perf_counter()
            run.save({"model.safetensors": tensors}, {}, step)
            times.append(time.perf_counter() - start)
            run.wait()
        blocked[ahead] = min(times)
    ratio = blocked[False] / blocked[True]
    figure("T14", f"{megabytes} MB, CPU: {blocked[True]:.2f} s async, {blocked[False]:.2f} s sync, {ratio:.1f} x")
    assert ratio > 1.5
    assert json.loads((tmp_path / "True/checkpoints/step_00000003/state.json").read_text()) == {"format": 1}
