"""Who am I among how many, and the few collectives the loop needs."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..utils import fault_points
from ..utils.devices import pick_device
from ..utils.endings import describe
from ..utils.errors import LocapError, MissingDependencyError, UsageError
from . import rendezvous
from .failures import Failures
from .launch import Launch, discover, says_it

_log = logging.getLogger(__name__)
_active: Failures | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long processes wait for each other, seconds: to start, for a step, for the first step or an evaluation."""

    rendezvous: float = 60.0
    step: float = 300.0
    first_step: float = 1800.0


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    Attributes:
        rank, size: over all machines.
        local_rank: on this machine.
        device: where this process computes.
        launcher: who started it.
        host: name of this machine.
        local_size: processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    launcher: str = "none"
    host: str = ""
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


@contextmanager
def process_group(
    *, device: str = "auto", port: str = "36872", timeouts: Timeouts | None = None, allow_shared_gpu: bool = False
) -> Iterator[World]:
    """Join the other processes for the length of the block; yields this process's `World`.

    An exception in the block ends every process, with the exit code of `utils.errors`, and is shown once, with rank
    and host. This process then does not come back from the block.

    Args:
        device: "auto", "cpu" or "cuda".
        port: TCP port of the rendezvous on this machine when the launcher names none.
        timeouts: how long to wait for others.
        allow_shared_gpu: let several processes compute on one GPU.

    Raises:
        UsageError: launchers contradict each other; nothing says where rank 0 is.
        MissingDependencyError: rank 0 cannot be reached.
    """
    launch, timeouts = discover(), timeouts or Timeouts()
    fault_points.activate(rank=launch.rank)
    if launch.size == 1:
        yield World(0, 1, launch.local_rank, pick_device(device, max(launch.local_rank, 0)), launch.launcher)
        return
    _die_with_launcher(launch)
    _share_cores(launch.local_size or launch.size)
    connect, keeper = _meet_or_leave(launch, port, timeouts.rendezvous)
    failures = Failures(launch, connect, socket.gethostname())
    try:
        world = _join(launch, failures, device, timeouts, allow_shared_gpu=allow_shared_gpu)
        yield world
    except (Exception, KeyboardInterrupt) as err:
        failures.raised(err)
    _part(failures, timeouts)
    del keeper


def processes(cfg: Any, device: str) -> AbstractContextManager[World]:
    """Return `process_group` as the configuration says."""
    seconds = cfg.TIMEOUTS
    return process_group(
        device=device,
        port=cfg.PORT,
        timeouts=Timeouts(seconds.RENDEZVOUS, seconds.STEP, seconds.FIRST_STEP),
        allow_shared_gpu=cfg.PARALLEL.ALLOW_SHARED_GPU,
    )


def _die_with_launcher(launch: Launch) -> None:
    """Ask Linux to kill this process with torchrun, which starts its workers from the thread that it ends with."""
    if launch.launcher == "torchrun" and "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _meet_or_leave(launch: Launch, port: str, seconds: float) -> tuple[Any, Any]:
    """Processes of one machine that cannot reach rank 0 say so once."""
    try:
        return rendezvous.meet(launch, port, seconds)
    except LocapError as err:
        if says_it(describe(err)[0]):
            raise
        raise SystemExit(err.exit_code) from None


def _join(launch: Launch, failures: Failures, device: str, timeouts: Timeouts, *, allow_shared_gpu: bool) -> World:
    global _active
    store = failures.connect()
    world = _world(launch, device, allow_shared_gpu=allow_shared_gpu)
    cards = rendezvous.register(launch, store, world.device, timeouts.rendezvous)
    failures.mates = cards
    rendezvous.check_devices(cards, allow_shared_gpu=allow_shared_gpu)
    rendezvous.choose_interface(failures.connect.args[0])
    on_gpu = world.device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("group", store),
        rank=launch.rank,
        world_size=launch.size,
        timeout=timedelta(seconds=max(timeouts.step, timeouts.first_step)),
        device_id=world.device if on_gpu else None,
    )
    _active = failures
    _first_collective(world, failures.connect(), timeouts.rendezvous)
    if world.is_main:
        _log.info("%d processes of %s:\n%s", world.size, world.launcher, rendezvous.table_of(cards))
    return world


def _world(launch: Launch, device: str, *, allow_shared_gpu: bool) -> World:
    local = max(launch.local_rank, 0)
    if allow_shared_gpu and torch.cuda.is_available():
        local %= torch.cuda.device_count()
    picked = pick_device(device, local)
    size = launch.local_size or launch.size
    return World(launch.rank, launch.size, launch.local_rank, picked, launch.launcher, socket.gethostname(), size)


def _first_collective(world: World, store: Any, seconds: float) -> None:
    """Sum a one on every rank, on the host and on the device.

    Raises:
        MissingDependencyError: it takes too long; names the ranks that are not through.
    """
    store.set(f"first/{world.rank}", "")
    for device in {torch.device("cpu"), world.device}:
        work = dist.all_reduce(torch.ones(1, device=device), async_op=True)
        until = time.monotonic() + seconds
        while not work.is_completed():
            if time.monotonic() > until:
                behind = [rank for rank in range(world.size) if not store.check([f"first/{rank}"])]
                raise MissingDependencyError(
                    f"The first exchange between the processes did not end within {seconds:g} s.",
                    where=f"{device.type}; not begun by ranks: {', '.join(map(str, behind)) or 'none'}",
                    fix="choose the interface that the machines share: GLOO_SOCKET_IFNAME=..., NCCL_SOCKET_IFNAME=...",
                )
            time.sleep(0.005)
        work.wait()


def _part(failures: Failures, timeouts: Timeouts) -> None:
    global _active
    _active = None
    if dist.is_initialized():
        dist.destroy_process_group()
    failures.close(timeouts.first_step)


def _share_cores(size: int) -> None:
    """Leave each process its share of the cores, as torchrun does; processes that fight for them are far slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // size)))


def shared_store() -> Any | None:
    """Return a connection of its own to the store of all processes, for one thread; None for a single process."""
    return None if _active is None else dist.PrefixStore("shared", _active.connect())


def failures_of_group() -> Failures | None:
    """Return what watches over this process group; None for a single process."""
    return _active


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks (the values themselves when there is one)."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def sum_numbers(values: list[float]) -> list[float]:
    """Return the sums over all ranks in float64, exchanged between hosts: no GPU is waited for."""
    if not dist.is_initialized():
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def agree(texts: Mapping[str, str], what: str) -> None:
    """Make sure that all ranks hold the same texts (A17), such as hashes of their configuration.

    Args:
        texts: key: value, equal on all ranks if all is well. Of texts of several lines, as YAML, the first line that
            differs is shown, after the headings above it.
        what: what they describe, for the message.

    Raises:
        UsageError: on every rank, naming the first differing key and each rank's value.
    """
    if not dist.is_initialized():
        return
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, dict(texts))
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key, "(absent)") for row in rows]
        if len(set(values)) > 1:
            raise UsageError(
                f"The processes disagree about {what}.",
                where=f"first difference: {key}",
                value="; ".join(f"rank {rank}: {_short(line)}" for rank, line in enumerate(_first_difference(values))),
                allowed="the same on every rank",
                fix="give every process the same files, overrides, code and data",
            )


def _first_difference(texts: list[str]) -> list[str]:
    """Return of each text the first line in which they differ, after the lines above it that are indented less."""
    rows = list(zip_longest(*(text.splitlines() for text in texts), fillvalue="(nothing)"))
    at = next((index for index, row in enumerate(rows) if len(set(row)) > 1), None)
    if at is None:
        return texts
    headings, indent = [], min(map(_indent, rows[at]))
    for row in reversed(rows[:at]):
        if row[0].strip() and _indent(row[0]) < indent:
            headings.insert(0, row[0].strip())
            indent = _indent(row[0])
    return [" ".join([*headings, line.strip()]) for line in rows[at]]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _short(text: str, length: int = 60) -> str:
    """Return a text, or its beginning and a hash."""
    return text if len(text) <= length else f"{text[:40]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def gather_texts(text: str) -> list[str] | None:
    """Return every rank's text on rank 0, in rank order; None elsewhere."""
    if not dist.is_initialized():
        return [text]
    texts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(text, texts)
    return texts


def on_main(function: Callable[[], str]) -> str:
    """Call on rank 0 and return its text on every rank; a user error of rank 0 is raised on all, so that none waits."""
    error = text = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            text = function()
        except LocapError as err:
            error = err
    if dist.is_initialized():
        box = [text, error]
        dist.broadcast_object_list(box)
        text, error = box
    if error is not None:
        raise error
    return text
