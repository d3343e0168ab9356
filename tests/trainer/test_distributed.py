"""Who started this process, and which of how many it is."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist

from locap.trainer import distributed
from locap.trainer.distributed import World, discover, gather_texts, on_main, pick_device, process_group
from locap.utils.errors import CheckpointError, MissingDependencyError, UsageError


def torchrun(rank: int, size: int, local: int = 0) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local)}


def ompi(rank: int, size: int, local: int = 0) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK")
    return {f"OMPI_COMM_WORLD_{n}": str(v) for n, v in zip(names, (rank, size, local), strict=True)}


def pmi(rank: int, size: int, local: int = 0) -> dict[str, str]:
    return {"PMI_RANK": str(rank), "PMI_SIZE": str(size), "MPI_LOCALRANKID": str(local)}


def slurm(rank: int, size: int, local: int = 0, **more: str) -> dict[str, str]:
    return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_LOCALID": str(local), **more}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("none", 0, 1, 0)),
        (torchrun(5, 8, 1), ("torchrun", 5, 8, 1)),
        (ompi(5, 8, 1), ("Open MPI", 5, 8, 1)),
        (pmi(5, 8, 1), ("MPICH or Intel MPI", 5, 8, 1)),
        (slurm(5, 8, 1, SLURM_STEP_ID="0"), ("SLURM", 5, 8, 1)),
        ({"RANK": "3"}, ("none", 0, 1, 0)),  # somebody else's variable
        (slurm(0, 8), ("none", 0, 1, 0)),  # a batch script, outside srun
        (slurm(0, 8, SLURM_STEP_ID="0", SLURM_JOB_NAME="bash"), ("none", 0, 1, 0)),  # an interactive shell
        (slurm(5, 8, 1, SLURM_STEP_ID="0") | pmi(5, 8, 1), ("MPICH or Intel MPI", 5, 8, 1)),  # srun --mpi=pmi2
        (slurm(1, 2, SLURM_STEP_ID="0") | ompi(5, 8, 1), ("Open MPI", 5, 8, 1)),  # mpirun's daemons under SLURM
        (ompi(1, 2) | torchrun(5, 8, 1), ("torchrun", 5, 8, 1)),  # one torchrun per node
        (torchrun(0, 1) | ompi(1, 2, 1), ("Open MPI", 1, 2, 1)),  # left over in the shell
    ],
)
def test_rank_discovery(environ, expected):
    assert discover(environ) == expected


def test_launchers_that_contradict_each_other_are_an_error():
    with pytest.raises(UsageError, match="Two launchers disagree about this process") as caught:
        discover(ompi(0, 2) | pmi(1, 4))
    assert "'Open MPI': (0, 2)" in str(caught.value)
    assert "unset PMI_RANK PMI_SIZE" in str(caught.value)


def test_jobs_on_one_machine_meet_at_different_ports():
    first = distributed._master("36872", {"PMIX_NAMESPACE": "prterun-host-1@1"})
    second = distributed._master("36872", {"PMIX_NAMESPACE": "prterun-host-2@1"})
    assert first != second
    assert distributed._master("36872", {}) == "127.0.0.1:36872"
    assert distributed._master("36872", {"MASTER_ADDR": "node7", "MASTER_PORT": "1234"}) == "node7:1234"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_missing_gpu_names_the_way_out():
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(MissingDependencyError, match="--overrides DEVICE cpu"):
        pick_device("cuda")


def test_one_process_needs_no_group(monkeypatch):
    for name in (*torchrun(0, 1), *ompi(0, 1), *pmi(0, 1), *slurm(0, 1)):
        monkeypatch.delenv(name, raising=False)
    with process_group(device="cpu") as world:
        assert world == World()
        assert not dist.is_initialized()
        assert on_main(lambda: "text") == "text"


@pytest.mark.fault("N8")
def test_processes_share_the_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for size in (1, 2, 4, 99):
        distributed._share_cores(size)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    distributed._share_cores(2)
    assert asked == [8, 6, 3, 1]


def _refuse() -> str:
    raise CheckpointError("No.", where="here")


def _member(rank: int, port: int, results) -> None:
    os.environ |= torchrun(rank, 2, rank) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group(device="cpu") as world:
        text = on_main(lambda: f"from {world.rank}")
        try:
            on_main(_refuse)
        except CheckpointError as err:
            results.put((world.rank, text, str(err), gather_texts(f"of {rank}")))


def test_an_error_of_rank_0_reaches_every_rank():
    """A rank that waits for a message of a rank that has left would wait for ten minutes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    members = [context.Process(target=_member, args=(rank, port, results), daemon=True) for rank in range(2)]
    for member in members:
        member.start()
    found = sorted(results.get(timeout=60) for _ in members)
    for member in members:
        member.join(10)
    message = "No.\n  where:   here"
    assert found == [(0, "from 0", message, ["of 0", "of 1"]), (1, "from 0", message, None)]
