"""Checkpoints in a thread: what is saved is what was, errors arrive, a full disk is put up with twice."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from locap.trainer import checkpoint_commit
from locap.trainer.checkpoint import CheckpointFolder
from locap.trainer.checkpoint_commit import DiskError, disk_reason
from locap.trainer.checkpoint_files import hash_file, verify
from locap.utils.errors import CheckpointError
from locap.utils.files import write_tensors

BOTH = pytest.mark.parametrize("ahead", [False, True], ids=["here", "in a thread"])


def drawn(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return {"model.safetensors": {"w": torch.randn(40, generator=made), "n": torch.tensor(seed)}}


def steps(run: CheckpointFolder) -> list[int]:
    return [int(path.name[5:]) for path in sorted(run.root.glob("step_????????"))]


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """Checkpoints are not renamed until the event is set."""
    event, original = threading.Event(), checkpoint_commit.write_manifest
    monkeypatch.setattr(checkpoint_commit, "write_manifest", lambda *args: event.wait(20) and original(*args))
    return event


@pytest.mark.fault("B14")
def test_changes_after_save_do_not_reach_the_file(tmp_path, held):
    """Of parameters and of the state."""
    run, files, state = CheckpointFolder(tmp_path, write_ahead=True), drawn(1), {"nested": {"a": 1}}
    for step in (1, 2):  # the second in the buffers of the first
        expected = {name: tensor.clone() for name, tensor in files["model.safetensors"].items()}
        state["nested"]["a"] = step
        held.clear()
        folder = run.save(files, state, step)
        assert not folder.exists(), "save has returned before the checkpoint is there"
        for tensor in files["model.safetensors"].values():
            tensor += 1
        state["nested"]["a"] = 9
        held.set()
        run.wait()
        loaded = load_file(folder / "model.safetensors")
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        assert verify(folder)["nested"] == {"a": step}


def test_buffers_are_kept_and_follow_the_tensors(tmp_path):
    run = CheckpointFolder(tmp_path, write_ahead=True)
    run.save(drawn(1), {}, 1)
    first = dict(run._staging._buffers)
    run.save(drawn(2), {}, 2)
    assert [run._staging._buffers[key] is first[key] for key in first] == [True, True]
    run.save({"model.safetensors": {"w": torch.ones(3, dtype=torch.bfloat16)}}, {}, 3)
    assert list(run._staging._buffers) == [("model.safetensors", "w")]
    run.wait()
    assert load_file(tmp_path / "checkpoints/step_00000003/model.safetensors")["w"].tolist() == [1, 1, 1]
    assert torch.equal(
        load_file(tmp_path / "checkpoints/step_00000002/model.safetensors")["w"], drawn(2)["model.safetensors"]["w"]
    )


def test_the_next_save_waits_for_the_one_under_way(tmp_path, held):
    run = CheckpointFolder(tmp_path, write_ahead=True)
    run.save(drawn(1), {}, 1)
    threading.Timer(0.2, held.set).start()
    run.save(drawn(2), {}, 2)
    assert 1 in steps(run)
    assert run.newest().name == "step_00000002", "newest waits as well"


def test_both_ways_write_the_same_bytes(tmp_path):
    """I11: and so does a checkpoint that was loaded."""
    folders = []
    for name, ahead in (("here", False), ("thread", True)):
        run = CheckpointFolder(tmp_path / name, write_ahead=ahead)
        folders.append(run.save(drawn(3), {"a": [1, None]}, 3))
        run.wait()
    loaded = {"model.safetensors": load_file(folders[0] / "model.safetensors")}
    folders.append(CheckpointFolder(tmp_path / "again").save(loaded, {"a": [1, None]}, 3))
    for name in ("model.safetensors", "state.json", "manifest.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def fail_at(monkeypatch, *, times: int, error: Exception) -> list[int]:
    """Make the next writes of a manifest fail."""
    left, original = [times], checkpoint_commit.write_manifest

    def write(*args) -> None:
        if left[0]:
            left[0] -= 1
            raise error
        original(*args)

    monkeypatch.setattr(checkpoint_commit, "write_manifest", write)
    return left


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@BOTH
@pytest.mark.fault("B1")
def test_a_full_disk_is_put_up_with_twice(tmp_path, monkeypatch, caplog, ahead):
    run = CheckpointFolder(tmp_path, write_ahead=ahead)
    run.save(drawn(1), {}, 1)
    run.wait()
    fail_at(monkeypatch, times=3, error=NO_SPACE)
    with caplog.at_level(logging.WARNING):
        run.save(drawn(2), {}, 2)
        run.save(drawn(3), {}, 3)
        run._writer.join()
    assert caplog.text.count("No space left on device") == 2
    assert "until 1 more fail" in caplog.text
    assert sorted(path.name for path in run.root.iterdir()) == ["step_00000001"], "what was written aside is gone"

    def third() -> None:
        run.save(drawn(4), {}, 4)
        run.save(drawn(5), {}, 5)  # a thread's error is raised by the next

    with pytest.raises(DiskError, match="No space left") as caught:
        third()
    assert caught.value.exit_code == 5
    assert "step_00000004" in caught.value.where
    assert run.newest().name == "step_00000001"


@BOTH
@pytest.mark.fault("B1")
def test_a_disk_that_recovers_is_forgiven(tmp_path, monkeypatch, ahead):
    run = CheckpointFolder(tmp_path, write_ahead=ahead)
    left = fail_at(monkeypatch, times=2, error=NO_SPACE)
    for step in (1, 2, 3):
        run.save(drawn(step), {}, step)
    run.wait()
    left[0] = 2
    for step in (4, 5, 6):
        run.save(drawn(step), {}, step)
    run.wait()
    assert steps(run) == [3, 6]


@BOTH
def test_waiting_for_the_last_one_is_not_content_with_a_warning(tmp_path, monkeypatch, ahead):
    run = CheckpointFolder(tmp_path, write_ahead=ahead)
    fail_at(monkeypatch, times=1, error=NO_SPACE)
    run.save(drawn(1), {}, 1)
    with pytest.raises(DiskError, match="No space left"):
        run.wait()
    run.save(drawn(1), {}, 1)
    run.wait()
    assert steps(run) == [1]


@pytest.mark.fault("B1")
def test_space_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    run = CheckpointFolder(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run.save({"model.safetensors": {"w": torch.zeros(750_000)}}, {}, 1)
    with pytest.raises(DiskError, match="3 MB are needed and 3 MB are free"):
        run.wait()
    run.save({"model.safetensors": {"w": torch.zeros(600_000)}}, {}, 1)
    run.wait()


def test_another_error_of_the_thread_comes_with_the_next_save_or_wait(tmp_path, monkeypatch):
    run = CheckpointFolder(tmp_path, write_ahead=True)
    fail_at(monkeypatch, times=2, error=RuntimeError("of another kind"))
    run.save(drawn(1), {}, 1)
    with pytest.raises(CheckpointError, match="RuntimeError: of another kind") as caught:
        run.save(drawn(2), {}, 2)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.exit_code == 4
    run.save(drawn(2), {}, 2)
    with pytest.raises(CheckpointError, match="of another kind"):
        run.wait()
    run.wait()
    assert not list(run.root.glob("*"))


def test_another_error_here_is_raised_as_it_is(tmp_path, monkeypatch):
    run = CheckpointFolder(tmp_path)
    fail_at(monkeypatch, times=1, error=RuntimeError("of another kind"))
    with pytest.raises(RuntimeError, match="of another kind"):
        run.save(drawn(1), {}, 1)
    assert not list(run.root.glob("*"))


def test_whose_fault_an_error_is():
    wrapped = CheckpointError("x")
    wrapped.__cause__ = NO_SPACE
    several = RuntimeError("of many ranks")
    several.failures = {0: (NO_SPACE, None)}
    for err in (NO_SPACE, wrapped, several):
        assert disk_reason(err) == "No space left on device"
    assert disk_reason(RuntimeError("x")) is None


@BOTH
@pytest.mark.fault("B16")
def test_a_valid_step_is_never_written_over_and_a_damaged_one_is_set_aside(tmp_path, ahead):
    run = CheckpointFolder(tmp_path, write_ahead=ahead)
    folder = run.save(drawn(1), {}, 1)
    run.wait()
    before = hash_file(folder / "model.safetensors")
    run.save(drawn(2), {}, 1)
    run.wait()
    assert hash_file(folder / "model.safetensors") == before
    (folder / "state.json").unlink()
    run.save(drawn(2), {}, 1)
    run.wait()
    assert load_file(folder / "model.safetensors")["n"] == 2
    assert {path.name for path in run.root.iterdir()} == {"step_00000001", "step_00000001.invalid"}


@pytest.mark.fault("B15")
def test_the_source_may_be_the_file_itself(tmp_path):
    """Tensors that are mapped from the file or checkpoint that they are saved to."""
    path: Path = tmp_path / "w.safetensors"
    expected = {"a": torch.arange(5000.0), "b": torch.ones(3)}
    save_file(expected, path)
    write_tensors(path, load_file(path))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(path).items())
    run = CheckpointFolder(tmp_path)
    folder = run.save({"model.safetensors": expected}, {}, 1)
    mapped = load_file(folder / "model.safetensors")
    (folder / "state.json").unlink()
    run.save({"model.safetensors": mapped}, {}, 1)
    assert json.loads((folder / "state.json").read_text())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(folder / "model.safetensors").items())
