"""Real launchers, two processes: one fails, is killed, stops or leaves, and the job ends soon with one message."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from locap.trainer.failures import process_state

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("group_script.py")
HOST = socket.gethostname()
LIMIT = 60  # seconds in which every job must have ended
OF_LAUNCHERS = ("OMPI_", "PMI", "SLURM_", "MASTER_", "PYTEST", "RANK", "WORLD_SIZE", "LOCAL_")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mpirun() -> list[str]:
    if not (BIN / "mpirun").exists():
        pytest.skip("mpirun is not installed beside this Python")
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [str(BIN / "mpirun"), "-n", "2", "--oversubscribe", *root, sys.executable]


def torchrun() -> list[str]:
    return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("path")
    (folder / "locap").symlink_to(ROOT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    return kept | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


@pytest.fixture
def job(environment):
    def run(launcher, what: str, rank: int = 1, *variables: str) -> SimpleNamespace:
        words = [*launcher(), str(SCRIPT), what, str(rank), *variables]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LIMIT)
        return SimpleNamespace(code=done.returncode, err=done.stderr, ended=time.time())

    return run


def code_of(launcher, code: int) -> int:
    """torchrun turns every failure into 1."""
    return code if launcher is mpirun else 1


both = pytest.mark.parametrize("launcher", [mpirun, torchrun])


@both
@pytest.mark.fault("A13")
def test_an_exception_on_one_rank_is_shown_once(launcher, job):
    done = job(launcher, "raise")
    assert done.code == code_of(launcher, 70)
    assert done.err.count("RuntimeError: broken on purpose") == 1
    assert f"(rank 1 of 2 on {HOST})" in done.err


@both
@pytest.mark.fault("A17")
def test_what_every_rank_raises_is_shown_once(launcher, job):
    done = job(launcher, "disagree")
    assert done.code == code_of(launcher, 2)
    assert done.err.count("The processes disagree about the configuration") == 1


@both
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.fault("A14")
def test_a_killed_rank_is_named(launcher, rank, job):
    done = job(launcher, "kill", rank)
    assert done.code in (70, 137, 1)
    assert done.err.count(f"Rank {rank} on {HOST} (process ") == 1


@both
@pytest.mark.fault("A15")
def test_a_stopped_rank_is_named(launcher, job, scale, figure):
    worst, trials = 0.0, scale(1, 10)
    for _ in range(trials):
        done = job(launcher, "stop")
        assert f"rank 1 on {HOST} is behind: step of step 1" in done.err
        assert "stacks of rank 0:" in done.err
        worst = max(worst, done.ended - float(re.search(r"stopped at ([\d.]+)", done.err).group(1)) - 3)
    assert done.code == code_of(launcher, 70)
    assert worst < (5 if launcher is mpirun else 10)  # of which torchrun takes a part to end itself
    figure("T13", f"{launcher.__name__}: {trials} of {trials} stopped ranks named, job over <= limit + {worst:.1f} s")


@both
def test_a_sleeping_rank_is_named(launcher, job):
    done = job(launcher, "sleep", 0)
    assert done.code == code_of(launcher, 70)
    assert f"rank 0 on {HOST} is behind: step of step 1, last seen at group_script.py" in done.err


@both
@pytest.mark.parametrize("what", ["exit0", "leave"])
@pytest.mark.fault("A16")
def test_a_rank_that_leaves_early_is_named(launcher, what, job):
    done = job(launcher, what)
    assert done.code == code_of(launcher, 70)
    assert re.search(rf"Rank 1 on {HOST} (\(process \d+\) ended without a word|left, with exit code 0)", done.err)
    assert "signal 6" not in done.err
    assert "terminate called" not in done.err


@pytest.mark.fault("A9")
def test_workers_end_with_their_launcher(environment):
    started = subprocess.Popen(
        [*torchrun(), str(SCRIPT), "wait", "0"], env=environment, stderr=subprocess.PIPE, text=True
    )
    workers = []
    while len(workers) < 2:
        line = started.stderr.readline()
        workers += [int(pid) for pid in re.findall(r"^pid (\d+)", line)]
    os.kill(started.pid, signal.SIGKILL)
    until = time.monotonic() + 2
    while time.monotonic() < until and any(process_state(pid, None) != "gone" for pid in workers):
        time.sleep(0.05)
    assert [process_state(pid, None) for pid in workers] == ["gone", "gone"]


def by_hand(environment, *variables: dict[str, str], what: str = "none") -> list[tuple[int, str]]:
    """Start processes with the variables of a launcher that is not here."""
    words = [sys.executable, str(SCRIPT), what, "1"]
    started = [subprocess.Popen(words, env=environment | own, stderr=subprocess.PIPE, text=True) for own in variables]
    return [(process.wait(LIMIT), process.stderr.read()) for process in started]


def slurm(rank: int, job: int = 4711) -> dict[str, str]:
    values = {"PROCID": rank, "NTASKS": 2, "LOCALID": rank, "STEP_ID": 0, "JOB_ID": job, "TASKS_PER_NODE": 2}
    return {f"SLURM_{name}": str(value) for name, value in values.items()} | {"SLURM_STEP_NODELIST": "localhost"}


def test_slurm_variables(environment):
    done = by_hand(environment, slurm(0), slurm(1))
    assert [code for code, _ in done] == [0, 0], done
    assert "rank 1 of 2 by SLURM summed 2" in done[1][1]


@pytest.mark.fault("C1")
def test_a_taken_port_is_replaced_on_one_machine(environment):
    from locap.trainer.launch import job_port

    with socket.create_server(("", job_port(slurm(0, 4712)))):  # and it never answers
        done = by_hand(environment, slurm(0, 4712), slurm(1, 4712))
    assert [code for code, _ in done] == [0, 0], done


def test_mpich_variables(environment):
    own = [{"PMI_RANK": str(r), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(r), "MPI_LOCALNRANKS": "2"} for r in range(2)]
    port = {"MASTER_PORT": str(free_port())}
    done = by_hand(environment, *(values | port for values in own))
    assert [code for code, _ in done] == [0, 0], done
    assert "by MPICH or Intel MPI summed 2" in done[1][1]


def test_mpi_tells_the_address_when_there_are_several_machines(job):
    done = job(mpirun, "none", 1, "OMPI_COMM_WORLD_LOCAL_SIZE=1")
    assert done.code == 0, done.err
    assert done.err.count("by Open MPI summed 2") == 2


def test_two_machines_as_network_namespaces(environment):
    """Processes that share nothing but a cable; each with a name that it alone knows."""
    if os.geteuid() != 0 or subprocess.run(["which", "ip", "unshare"], capture_output=True).returncode:
        pytest.skip("network namespaces need root, ip and unshare: two hosts were not checked")
    names, ends = [f"locap{os.getpid()}{end}" for end in "ab"], [f"lc{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("network namespaces are not allowed here: two hosts were not checked")
        subprocess.run(["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]], check=True)
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            subprocess.run(["ip", "link", "set", end, "netns", name], check=True)
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "address", "add", f"10.9.8.{number}/24", "dev", end], check=True)
            for device in (end, "lo"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        started = []
        for rank, name in enumerate(names):
            own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            own |= {"MASTER_ADDR": "10.9.8.1", "MASTER_PORT": "29511"}
            script = f"hostname host{rank}; exec ip netns exec {name} {sys.executable} {SCRIPT} none 1"
            words = ["unshare", "--uts", "sh", "-c", script]
            started.append(subprocess.Popen(words, env=environment | own, stderr=subprocess.PIPE, text=True))
        done = [(process.wait(LIMIT), process.stderr.read()) for process in started]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    assert [code for code, _ in done] == [0, 0], done
    assert "summed 2" in done[0][1]
