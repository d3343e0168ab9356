"""Who am I among how many: rank discovery for torchrun, MPI, SLURM and none, and the few collectives the loop needs."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..utils.errors import LocapError, MissingDependencyError, UsageError

_LAUNCHERS = {  # launcher: variables of (rank, world size, local rank)
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    Attributes:
        rank, size: over all machines.
        local_rank: on this machine.
        device: where this process computes.
        launcher: who started it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    launcher: str = "none"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def discover(environ: Mapping[str, str] = os.environ) -> tuple[str, int, int, int]:
    """Return (launcher, rank, world size, local rank) from the environment.

    Raises:
        UsageError: two launchers' variables contradict each other.
    """
    found = {}
    for launcher, (rank, size, local) in _LAUNCHERS.items():
        if rank not in environ or size not in environ:
            continue
        if launcher == "SLURM" and ("SLURM_STEP_ID" not in environ or environ.get("SLURM_JOB_NAME") == "bash"):
            continue  # an allocation, or an interactive shell inside one, is not a launch
        found[launcher] = (int(environ[rank]), int(environ[size]), int(environ.get(local, environ[rank])))
    if not found:
        return "none", 0, 1, 0
    several = {name: values for name, values in found.items() if values[1] > 1} or found
    launcher, values = next(iter(several.items()))
    # SLURM may have started the daemons of the launcher that started this process
    others = {name: other for name, other in several.items() if other[:2] != values[:2] and name != "SLURM"}
    if others and launcher != "torchrun":
        raise UsageError(
            "Two launchers disagree about this process.",
            where="environment",
            value={launcher: values[:2], **{name: other[:2] for name, other in others.items()}},
            allowed="one launcher; torchrun inside another's job, or any inside SLURM's",
            fix=f"unset {' '.join(v for name in others for v in _LAUNCHERS[name])}",
        )
    return launcher, *values


@contextmanager
def process_group(*, device: str = "auto", port: str = "36872", timeout_minutes: float = 60):
    """Join the other processes for the length of the block; yields this process's `World`.

    Args:
        device: "auto", "cpu" or "cuda".
        port: TCP port of the rendezvous on this machine when the launcher names none.
        timeout_minutes: how long a collective waits for a missing peer.
    """
    launcher, rank, size, local_rank = discover()
    world = World(rank, size, local_rank, pick_device(device, local_rank), launcher)
    if size == 1:
        yield world
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    _share_cores(size)
    dist.init_process_group(
        backend,
        init_method=f"tcp://{_master(port)}",
        rank=rank,
        world_size=size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    try:
        yield world
    finally:
        dist.destroy_process_group()


def _share_cores(size: int) -> None:
    """Leave each process its share of the cores, as torchrun does; processes that fight for them are far slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // size)))


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device a process computes on; "auto" takes a GPU when there is one."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "No GPU can be used here.", where="DEVICE", value=wanted, allowed="auto, cpu", fix="--overrides DEVICE cpu"
        )
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            "There are more processes on this machine than GPUs.",
            value=local_rank + 1,
            allowed=f"at most {torch.cuda.device_count()} processes",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _master(port: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return host:port of the rendezvous; every job on a machine gets a port of its own."""
    job = environ.get("PMIX_NAMESPACE") or environ.get("SLURM_JOB_ID")
    if job:
        port = str(20000 + zlib.crc32(job.encode()) % 20000)
    return f"{environ.get('MASTER_ADDR', '127.0.0.1')}:{environ.get('MASTER_PORT', port)}"


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks (the values themselves when there is one)."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


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
