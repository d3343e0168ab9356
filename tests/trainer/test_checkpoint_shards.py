"""Checkpoints that several ranks write: one rename when all have reported, or nothing on any of them."""

from __future__ import annotations

import errno
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import FileStore, HashStore

from locap.trainer.checkpoint import CheckpointFolder
from locap.trainer.checkpoint_commit import DiskError
from locap.trainer.checkpoint_files import verify
from locap.trainer.distributed import World
from locap.utils.errors import CheckpointError
from locap.utils.fault_points import activate

RANKS = 3
BOTH = pytest.mark.parametrize("ahead", [False, True], ids=["here", "in a thread"])


def part(rank: int, step: int) -> torch.Tensor:
    return torch.full((4,), 10.0 * step + rank)


def writes(rank: int, step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file({"w": part(rank, step)}, folder / f"model-{rank}.safetensors")
        (folder / "optimizer").mkdir()
        save_file({"m": part(rank, step)}, folder / "optimizer" / f"{rank}.safetensors")

    return write


class Ranks:
    """Several ranks as threads of this process, each with its own `CheckpointFolder` of the same run."""

    def __init__(self, path: Path, ahead: bool = False) -> None:
        self.store = HashStore()
        self.runs = [CheckpointFolder(path, keep=2, write_ahead=ahead) for _ in range(RANKS)]

    def save(self, step: int, write=writes, wait: bool = True, limit: float = 20) -> list[Exception | None]:
        """Save on every rank; returns what each one raised."""
        raised: list[Exception | None] = [None] * RANKS

        def work(rank: int) -> None:
            try:
                run, world = self.runs[rank], World(rank, RANKS)
                run.save_shards(write(rank, step), {"step": step}, step, world, self.store, limit)
                if wait:
                    run.wait()
            except Exception as err:
                raised[rank] = err

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


def names(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "checkpoints").iterdir())


@BOTH
def test_every_ranks_files_are_in_one_checkpoint(tmp_path, ahead):
    ranks = Ranks(tmp_path, ahead)
    for step in (1, 2, 3):
        assert ranks.save(step) == [None] * RANKS
    assert names(tmp_path) == ["step_00000002", "step_00000003"]
    folder = ranks.runs[0].newest()
    assert verify(folder) == {"format": 1, "step": 3}
    for rank in range(RANKS):
        assert torch.equal(load_file(folder / f"model-{rank}.safetensors")["w"], part(rank, 3))
        assert torch.equal(load_file(folder / "optimizer" / f"{rank}.safetensors")["m"], part(rank, 3))
    assert not list(folder.rglob(".rank*"))


def test_a_step_that_is_there_is_left_alone_on_all_ranks(tmp_path):
    ranks = Ranks(tmp_path)
    ranks.save(1)
    called = []
    assert ranks.save(1, lambda rank, step: called.append) == [None] * RANKS
    assert not called


def failing(error: Exception, bad: int):
    def write(rank: int, step: int):
        def fail(folder: Path) -> None:
            raise error

        return fail if rank == bad else writes(rank, step)

    return write


@BOTH
@pytest.mark.parametrize("bad", [0, 2])
def test_one_ranks_error_is_every_ranks(tmp_path, ahead, bad):
    ranks = Ranks(tmp_path, ahead)
    ranks.save(1)
    raised = ranks.save(2, failing(ValueError("no such tensor"), bad))
    assert all(isinstance(err, CheckpointError) and f"rank {bad}: no such tensor" in str(err) for err in raised)
    assert names(tmp_path) == ["step_00000001"]
    assert ranks.save(2) == [None] * RANKS, "the same step may be tried again"


@BOTH
@pytest.mark.fault("B1")
def test_the_full_disk_of_one_rank_is_put_up_with_twice_by_all(tmp_path, ahead):
    ranks, full = Ranks(tmp_path, ahead), failing(OSError(errno.ENOSPC, "No space left on device"), 1)
    assert ranks.save(1, full, wait=False) == [None] * RANKS
    assert ranks.save(2, full, wait=False) == [None] * RANKS
    raised = ranks.save(3, full)
    assert all(isinstance(err, DiskError) and "rank 1: No space left" in str(err) for err in raised)
    assert names(tmp_path) == []


def test_two_ranks_with_one_file_name_are_told(tmp_path):
    def same(rank: int, step: int):
        return lambda folder: (folder / "model-0.safetensors").write_text("x" * (rank + 1))

    raised = Ranks(tmp_path).save(1, same)
    assert all("two ranks wrote it" in str(err) for err in raised)


def test_a_rank_that_does_not_report_is_named(tmp_path):
    def late(rank: int, step: int):
        return (lambda folder: time.sleep(1.0)) if rank == 2 else writes(rank, step)

    raised = Ranks(tmp_path).save(1, late, limit=0.3)
    assert "these ranks have not reported their files" in str(raised[0])
    assert "value:   'rank 2'" in str(raised[0])
    assert names(tmp_path) == []


def test_one_rank_needs_no_store(tmp_path):
    run = CheckpointFolder(tmp_path)
    assert verify(run.save_shards(writes(0, 1), {}, 1, World(), None)) == {"format": 1}


def live(path: Path, rank: int, fault: str) -> None:
    """One rank as a process: saves the steps 1 and 2."""
    activate({"LOCAP_FAULT": fault} if fault else {}, rank)
    store, run = FileStore(str(path / "store"), 2), CheckpointFolder(path, keep=1)
    for step in (1, 2):
        run.save_shards(writes(rank, step), {"step": step}, step, World(rank, 2), store, 0.5)
    run.wait()


@pytest.mark.fault("A2")
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("checkpoint.write@4:kill#0", 1),
        ("checkpoint.write@2:kill#1", 1),
        ("checkpoint.sync@5:kill#0", 1),
        ("checkpoint.sync@3:kill#1", 1),
        ("checkpoint.manifest@2:kill#0", 1),
        ("checkpoint.rename@2:kill#0", 1),
        ("checkpoint.renamed@2:kill#0", 2),
        ("checkpoint.prune@1:kill#0", 2),
    ],
)
def test_a_rank_that_is_killed_leaves_the_old_or_the_new(tmp_path, fault, expected):
    """Processes that share a file as their store; the passage is that of the second save."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=live, args=(tmp_path, each, fault)) for each in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert processes[int(fault[-1])].exitcode == -signal.SIGKILL
    folder = CheckpointFolder(tmp_path).newest()
    assert folder.name == f"step_{expected:08d}"
    for each in range(2):
        assert torch.equal(load_file(folder / f"model-{each}.safetensors")["w"], part(each, expected))
