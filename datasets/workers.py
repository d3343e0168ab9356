"""Loader processes as their owner sees them: which sample each is at, whether one died, whether memory is shared."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..utils.errors import LocapError
from ..utils.memory import give_memory_back
from ..utils.untrusted import shown
from .batches import Batch
from .reader import Reader

_log = logging.getLogger(__name__)
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - asked for its size only
_SHARED_BYTES_PER_BATCH = 2**26  # four images of 1024 x 1024 pixels with their id maps are 29 MB


class Board:
    """What each loader process is at, in memory that all of them share.

    Args:
        num_workers: how many there are; 0: nothing is noted.
    """

    def __init__(self, num_workers: int) -> None:
        # process id, index of a sample or -1, when it was begun; whole numbers below 2^53 are exact
        self._rows = torch.full((num_workers, 3), -1.0, dtype=torch.float64)
        if num_workers:
            self._rows.share_memory_()

    def enter(self, worker: int) -> None:
        """Note a process's id, in that process, and leave requests to stop to the one that trains.

        Terminals and launchers signal whole process groups; the training process needs its loaders to finish its step.
        """
        if hasattr(os, "setpgrp"):
            os.setpgrp()
            for number in (signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
        gc.freeze()  # collecting what was there before the fork would copy its pages
        self._rows[worker, 0] = os.getpid()

    @contextlib.contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Note a sample while it is made."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        row = self._rows[worker.id]
        row[2], row[1] = time.monotonic(), index
        try:
            yield
        finally:
            row[1] = -1

    def slowest(self) -> int | None:
        """Return the worker that has been at its sample longest, None when all are idle."""
        busy = [(row[2], worker) for worker, row in enumerate(self._rows.tolist()) if row[1] >= 0]
        return min(busy)[1] if busy else None

    def worker_of(self, pid: int) -> int | None:
        """Return the number of a process."""
        return next((worker for worker, row in enumerate(self._rows.tolist()) if row[0] == pid), None)

    def sample_of(self, worker: int) -> int | None:
        """Return the index of the sample a worker is at."""
        index = int(self._rows[worker, 1])
        return index if index >= 0 else None

    def kill(self, worker: int) -> None:
        """End a worker that hangs: one that waits for a file server does not hear any other signal."""
        if (pid := int(self._rows[worker, 0])) > 0:
            deaths.expected.add(pid)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class _Deaths:
    """Hears of dead loader processes through torch, which raises wherever the program happens to be; waits for a place
    where that can be told: the next time that a batch is asked for."""

    def __init__(self) -> None:
        self.error: RuntimeError | None = None
        self.expected: set[int] = set()  # of processes that were killed on purpose
        self._waiting = False
        self._handler: Callable | None = None
        self._torch_handler: Callable | None = None

    def watch(self) -> None:
        """Stand before torch's handler, once it is there."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return
        current = signal.getsignal(signal.SIGCHLD)
        if callable(current) and current is not self._handler:
            self._torch_handler, self._handler = current, self._handle
            signal.signal(signal.SIGCHLD, self._handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a death be raised at once, one that happened before as well."""
        self._waiting = True
        try:
            self._raise()
            yield
        finally:
            self._waiting = False

    def _handle(self, signum: int, frame: Any) -> None:
        try:
            self._torch_handler(signum, frame)
        except RuntimeError as err:
            if _pid_in(str(err)) not in self.expected:
                self.error = err.with_traceback(None)
        if self._waiting:
            self._raise()

    def _raise(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error


deaths = _Deaths()


def explained(error: Exception, board: Board, reader: Reader, timeout: float) -> Exception:
    """Return what torch's error about loader processes means, or the error itself if it is about something else."""
    told = error.__cause__ or error  # torch's handler knows how a process ended, what waits for it only that it did
    text = str(told if _pid_in(str(told)) else error)
    if "timed out" in text:
        return _hung(board, reader, timeout)
    pid = _pid_in(text)
    if pid is None:
        return error
    worker = board.worker_of(pid)
    name = "A loader process" if worker is None else f"Loader worker {worker}"
    how = re.search(r"killed by signal: (.*?)\.|exit code (-?\d+)", text)
    killed = how is not None and how[1]
    cause = {"Killed": " (out of memory?)", "Bus error": f" ({SHARED_MEMORY} full?)"}.get(killed or "", "")
    free = shared_memory_free()
    return LocapError(
        f"{name} was killed{cause}." if killed else f"{name} ended unexpectedly.",
        where=None if worker is None else _place(board.sample_of(worker), reader),
        value=how[0] if how else None,
        fix="lower COCO.DATALOADER.NUM_WORKERS or PREFETCH, or give the machine more memory"
        + ("" if free is None else f"; {SHARED_MEMORY} has {free / 1e6:.0f} MB free (docker run --shm-size=8g)"),
    )


def _pid_in(text: str) -> int | None:
    """Return the first process that torch's error is about."""
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? (\d+)", text)
    return int(found[1]) if found else None


def _hung(board: Board, reader: Reader, timeout: float) -> LocapError:
    worker = board.slowest()
    if worker is None:
        return LocapError(f"The loader processes gave no batch in {timeout:g} s.", fix=_HUNG_FIX)
    where = _place(board.sample_of(worker), reader)
    board.kill(worker)
    return LocapError(f"Loader worker {worker} hangs: it gave no batch in {timeout:g} s.", where=where, fix=_HUNG_FIX)


_HUNG_FIX = "check the file system (a network drive that is gone?), or raise COCO.DATALOADER.TIMEOUT"


def _place(index: int | None, reader: Reader) -> str | None:
    return None if index is None else f"sample {index}{_file_of(index, reader)}"


def _file_of(index: int, reader: Reader, seconds: float = 2.0) -> str:
    """Return the file of a sample; asked for in a thread, since what hung a worker may hang its owner as well."""
    found: list[str] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            found.append(file_of(reader[index]))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return f" ({found[0]})" if found else ""


def file_of(record: Any) -> str:
    """Return where a record's image lies, or its id."""
    image = getattr(record, "image", None)
    return shown(image) if isinstance(image, str) else f"image {getattr(record, 'image_id', '?')}"


def shared_memory_free() -> int | None:
    """Return how many bytes processes can still share; None where that is not limited by a file system."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return found.f_bavail * found.f_frsize


def shares_memory(num_workers: int, prefetch: int) -> bool:
    """Return whether shared memory suffices for the batches under way, and warn where it does not.

    torch keeps shared tensors in /dev/shm with either of its sharing strategies, so a full one can only be avoided by
    sending what tensors hold through pipes, which is slower.
    """
    free, needed = shared_memory_free(), num_workers * (prefetch + 1) * _SHARED_BYTES_PER_BATCH
    if free is None or free >= needed:
        return True
    _log.warning(
        "Shared memory (%s) has %.0f MB free, and %d loader processes may need %.0f MB: batches go through pipes, "
        "which is slower (docker run --shm-size=8g, or fewer COCO.DATALOADER.NUM_WORKERS).",
        SHARED_MEMORY,
        free / 1e6,
        num_workers,
        needed / 1e6,
    )
    return False


@dataclasses.dataclass(slots=True)
class ByValue:
    """A batch whose tensors cross processes as bytes: torch would put them into shared memory."""

    packed: Batch

    @classmethod
    def pack(cls, batch: Batch) -> ByValue:
        """Take a batch apart, in the loader process."""
        return cls(_with_leaves(batch, Tensor, Tensor.numpy))

    def batch(self) -> Batch:
        """Put it together again."""
        return _with_leaves(self.packed, np.ndarray, torch.from_numpy)

    def pin_memory(self) -> Batch:
        """Pin every tensor; the data loader calls this."""
        return self.batch().pin_memory()


def _with_leaves(batch: Batch, kind: type, change: Callable) -> Batch:
    def changed(targets: Any) -> Any:
        values = {f.name: getattr(targets, f.name) for f in dataclasses.fields(targets)}
        return dataclasses.replace(targets, **{k: change(v) for k, v in values.items() if isinstance(v, kind)})

    return dataclasses.replace(
        batch, images=[change(image) for image in batch.images], targets=[changed(t) for t in batch.targets]
    )


def trim_worker() -> None:
    """Give freed memory of a loader process back, which costs a fraction of decoding an image.

    At 1024 pixels a process grew from 60 to 180 MB without this.
    """
    if get_worker_info() is not None:
        give_memory_back()


def allow_open_files(wanted: int = 65_536) -> None:
    """Raise the limit on open files: every tensor on its way from a worker is one, and 1024 is a common limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; a fixed limit may still suffice
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
