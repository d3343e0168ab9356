"""Who started this process, which of how many it is, and where the processes meet."""

from __future__ import annotations

import os
import socket

import pytest

from locap.trainer import rendezvous
from locap.trainer.launch import Address, Launch, Notes, discover, first_host, job_port, meeting_point
from locap.utils.errors import MissingDependencyError, UsageError


def torchrun(rank: int, size: int, local: int = 0, **more: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": "4", **more}


def ompi(rank: int, size: int, local: int = 0) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return {f"OMPI_COMM_WORLD_{n}": str(v) for n, v in zip(names, (rank, size, local, 4), strict=True)}


def pmi(rank: int, size: int, local: int = 0) -> dict[str, str]:
    return {"PMI_RANK": str(rank), "PMI_SIZE": str(size), "MPI_LOCALRANKID": str(local), "MPI_LOCALNRANKS": "4"}


def slurm(rank: int, size: int, local: int = 0, **more: str) -> dict[str, str]:
    values = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_LOCALID": str(local)}
    return {**values, "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1", **more}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        (torchrun(5, 8, 1), Launch("torchrun", 5, 8, 1, 4)),
        (ompi(5, 8, 1), Launch("Open MPI", 5, 8, 1, 4)),
        (pmi(5, 8, 1), Launch("MPICH or Intel MPI", 5, 8, 1, 4)),
        (slurm(5, 8, 1, SLURM_STEP_ID="0"), Launch("SLURM", 5, 8, 1, 4)),
        (slurm(1, 8, 1, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="2"), Launch("SLURM", 1, 2, 1, 4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Launch("MPICH or Intel MPI", 1, 2, 1, 0)),
        ({"RANK": "3"}, Launch()),  # somebody else's variable
        (slurm(0, 8), Launch()),  # a batch script, outside srun
        (slurm(0, 8, SLURM_STEP_ID="0", SLURM_JOB_NAME="bash"), Launch()),  # an interactive shell
        (
            slurm(5, 8, 1, SLURM_STEP_ID="0") | {"PMI_RANK": "5", "PMI_SIZE": "8"},  # srun --mpi=pmi2
            Launch("MPICH or Intel MPI", 5, 8, 1, 4),
        ),
        (slurm(1, 2, SLURM_STEP_ID="0") | ompi(5, 8, 1), Launch("Open MPI", 5, 8, 1, 4)),  # mpirun's daemons in SLURM
        (ompi(1, 2) | torchrun(5, 8, 1, GROUP_WORLD_SIZE="2"), Launch("torchrun", 5, 8, 1, 4)),  # one torchrun per node
        (torchrun(0, 1) | ompi(1, 2, 1), Launch("Open MPI", 1, 2, 1, 4)),  # left over in the shell
    ],
)
def test_rank_discovery(environ, expected):
    assert discover(environ) == expected


@pytest.mark.fault("C3")
@pytest.mark.parametrize(
    ("environ", "shown", "unset"),
    [
        (ompi(0, 2) | pmi(1, 4), "Open MPI: rank 0 of 2; MPICH or Intel MPI: rank 1 of 4", "unset PMI_RANK PMI_SIZE"),
        (torchrun(0, 4) | ompi(1, 2), "torchrun: rank 0 of 4; Open MPI: rank 1 of 2", "unset OMPI_COMM_WORLD_RANK"),
    ],
)
def test_launchers_that_contradict_each_other_are_an_error(environ, shown, unset):
    with pytest.raises(UsageError, match="Two launchers disagree about this process") as caught:
        discover(environ)
    assert shown in str(caught.value)
    assert unset in str(caught.value)


@pytest.mark.fault("C3")
@pytest.mark.parametrize("environ", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "one", "WORLD_SIZE": "2"}])
def test_variables_without_sense_are_an_error(environ):
    with pytest.raises(UsageError, match="launcher's variable"):
        discover(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("node[01-03,07],other", "node01"),
        ("gpu-[12]", "gpu-12"),
        ("rack[3,5]n1", "rack3n1"),
    ],
)
def test_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


def test_where_processes_meet():
    here, spread = Launch("Open MPI", 1, 2, 1, 2), Launch("Open MPI", 1, 4, 1, 2)
    assert meeting_point(here, "36872", {}) == Address("127.0.0.1", 36872, one_machine=True)
    assert meeting_point(spread, "36872", {}) is None
    given = {"MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
    assert meeting_point(spread, "36872", given) == Address("node7", 1234, fixed=True)
    step = {"SLURM_STEP_NODELIST": "n[3-4]", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    address = meeting_point(Launch("SLURM", 1, 4, 1, 2), "36872", step)
    assert (address.host, address.port, address.fixed) == ("n3", job_port(step), False)


def test_jobs_on_one_machine_meet_at_different_ports():
    names = ["prterun-host-1@1", "prterun-host-2@1"]
    first, second = (job_port({"PMIX_NAMESPACE": name}) for name in names)
    assert first != second
    assert job_port({"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}) != job_port(
        {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "1"}
    )
    assert job_port({}) is None


@pytest.mark.fault("C1")
def test_a_port_in_use_that_all_know_is_an_error_naming_it():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MissingDependencyError, match=f"Port {port} of this machine is in use") as caught:
            rendezvous._serve(Address("localhost", port, fixed=True), 1)
    assert "MASTER_PORT" in str(caught.value)


@pytest.mark.fault("C2")
def test_a_host_that_cannot_be_resolved_is_told_at_once(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(MissingDependencyError, match="cannot be resolved") as caught:
        rendezvous.meet(Launch("torchrun", 1, 2, 1, 2), "1", 60)
    assert "no-such-host.invalid" in str(caught.value)
    assert "-x MASTER_ADDR" in str(caught.value)


@pytest.mark.fault("C2")
def test_a_rank_0_that_does_not_answer_is_told_with_the_interface():
    with pytest.raises(MissingDependencyError, match=r"Rank 0 did not answer within 0\.3 s") as caught:
        rendezvous._find(Address("127.0.0.1", 1, fixed=True), "x", "t", 0.3, is_main=False)
    for part in ("127.0.0.1:1", "interface lo", "-x MASTER_ADDR"):
        assert part in str(caught.value)


def test_a_note_is_written_once_and_belongs_to_one_job(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    first, second = (Notes({"PMIX_NAMESPACE": name}) for name in ("a", "b"))
    assert first.write("x", "1")
    assert not first.write("x", "2")
    assert second.write("x", "3")
    assert (first.read("x"), second.read("x"), first.read("y")) == ("1", "3", "")
    assert (tmp_path / f"locap-{os.getuid()}").stat().st_mode & 0o77 == 0
