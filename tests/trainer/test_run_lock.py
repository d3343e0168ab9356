"""One run folder, one run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time

import filelock
import pytest

from locap.trainer import run_lock
from locap.trainer.run_lock import RunLock
from locap.utils.errors import CheckpointError


def hold(folder, ready) -> None:
    with RunLock(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def owner(tmp_path):
    """A process that works in the folder."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(10)
    yield process
    process.kill()


@pytest.mark.fault("B5")
def test_a_second_run_is_told_who_is_there_and_changes_nothing(owner, tmp_path):
    before = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=f"process {owner.pid} on .*, since 20") as caught:
        RunLock(tmp_path)
    assert time.monotonic() - started < 1
    assert caught.value.exit_code == 4
    after = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert before["run.json"] == after["run.json"]
    assert before.keys() == after.keys()


@pytest.mark.fault("B5")
def test_a_killed_run_leaves_no_lock(owner, tmp_path):
    os.kill(owner.pid, signal.SIGKILL)
    owner.join(10)
    with RunLock(tmp_path):
        assert (tmp_path / "run.json").exists()
    assert not (tmp_path / "run.json").exists()


def test_a_folder_that_cannot_be_locked_for_another_reason_is_told(tmp_path, monkeypatch):
    def acquire(self, timeout=None):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(CheckpointError, match="cannot be locked: Permission denied"):
        RunLock(tmp_path)


@pytest.mark.fault("B6")
@pytest.mark.parametrize("error", [NotImplementedError("no flock here"), OSError(errno.ENOLCK, "No locks available")])
def test_without_locks_the_age_of_a_file_decides(tmp_path, monkeypatch, caplog, error):
    def acquire(self, timeout=None):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    monkeypatch.setattr(run_lock, "_BEAT", 0.05)
    lock = RunLock(tmp_path)
    assert "cannot be locked" in caplog.text
    os.utime(tmp_path / "run.json", (0, 0))
    time.sleep(0.3)
    assert (tmp_path / "run.json").stat().st_mtime > 0, "its owner shows that it lives"
    with pytest.raises(CheckpointError, match="Another run works in this folder"):
        RunLock(tmp_path)
    lock._ended.set()
    time.sleep(0.1)
    os.utime(tmp_path / "run.json", (0, 0))  # the owner died long ago
    RunLock(tmp_path).release()
