"""Real launchers, two processes: one fails, is killed, stops or leaves, and the job ends soon with one message."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from locap.trainer.distributed import Timeouts, process_group
from locap.trainer.failures import start_time
from locap.trainer.watchdog import Watchdog

from .jobs import (
    BIN,
    HOST,
    LIMIT,
    Job,
    assert_told_once,
    both,
    children,
    free_port,
    mpirun,
    outlive,
    run_job,
    torchrun,
)
from .jobs import environment as environment_in

SCRIPT = Path(__file__).with_name("group_script.py")


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return environment_in(tmp_path_factory.mktemp("path"))


@pytest.fixture
def job(environment):
    def run(launcher, what: str, rank: int = 1, *variables: str) -> Job:
        return run_job([*launcher(), str(SCRIPT), what, str(rank), *variables], environment)

    return run


def code_of(launcher, code: int) -> int:
    """torchrun turns every failure into 1."""
    return code if launcher is mpirun else 1


@both
@pytest.mark.fault("A13")
def test_an_exception_on_one_rank_is_shown_once(launcher, job):
    done = job(launcher, "raise")
    assert done.code == code_of(launcher, 70)
    assert_told_once(done, "RuntimeError: broken on purpose", 5)
    assert f"(rank 1 of 2 on {HOST})" in done.err


@both
@pytest.mark.fault("A17")
def test_what_every_rank_raises_is_shown_once(launcher, job):
    done = job(launcher, "disagree")
    assert done.code == code_of(launcher, 2)
    assert_told_once(done, "The processes disagree about the configuration", 5)


@both
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.fault("A14")
def test_a_killed_rank_is_named(launcher, rank, job):
    done = job(launcher, "kill", rank)
    assert done.code in ((70, 137) if launcher is mpirun else (1,))
    assert_told_once(done, rf"Rank {rank} on {HOST} \(process \d+\) ended without a word", 5)


@pytest.mark.parametrize(("launcher", "rank"), [(mpirun, 1), (torchrun, 0)])
@pytest.mark.fault("A15")
def test_a_stopped_rank_is_named(launcher, rank, job):
    """Time is taken until the ranks have ended; torchrun needs some seconds more for itself."""
    done = job(launcher, "stop", rank)
    assert done.code == code_of(launcher, 70)
    assert_told_once(done, f"rank {rank} on {HOST} is behind: step of step 1", 5)
    assert f"stacks of rank {1 - rank}:" in done.err
    assert done.time_of("is behind") - done.time_of("^stopped") < 3 + 5


@pytest.mark.fault("A15")
def test_every_stopped_rank_is_named(tmp_path, monkeypatch, scale, figure):
    """Without a launcher, which makes many trials cheap."""
    trials, limit, at_once, late = scale(4, 20), 1.0, 4, []
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for first in range(0, trials, at_once):
        pairs = [Pair(tmp_path / f"{trial}.txt", trial % 2, limit) for trial in range(first, first + at_once)]
        late += [pair.seconds() for pair in pairs]
    assert max(late) < limit + 5
    figure(
        "T13", f"{trials} of {trials} stopped ranks named with host and stacks, <= limit + {max(late) - limit:.1f} s"
    )


class Pair:
    """Two forked processes of which one stops itself at its first step."""

    def __init__(self, path: Path, chosen: int, limit: float) -> None:
        self.path, self.chosen, context = path, chosen, multiprocessing.get_context("fork")
        arguments = (path, chosen, limit, free_port())
        self.members = [context.Process(target=_stop, args=(rank, *arguments), daemon=True) for rank in range(2)]
        for member in self.members:
            member.start()

    def seconds(self) -> float:
        """Return how long after it stopped the other one had named it and left."""
        self.members[1 - self.chosen].join(60)
        self.members[self.chosen].kill()
        text = self.path.read_text(encoding="utf-8")
        assert self.members[1 - self.chosen].exitcode == 70, text
        assert f"rank {self.chosen} on {HOST} is behind" in text
        assert f"stacks of rank {1 - self.chosen}:" in text
        stopped, named = (float(found) for found in re.findall(r"^(?:stopped|named) at ([\d.]+)", text, re.MULTILINE))
        return named - stopped


def _stop(rank: int, path: Path, chosen: int, limit: float, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
    with process_group(device="cpu", timeouts=Timeouts(20, 60, 60)) as world:
        dog = NotingWatchdog(world, {"step": limit})
        dog.start()
        dog.mark("step", 1)
        if rank == chosen:
            sys.stderr.write(f"stopped at {time.time()}\n")
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)


class NotingWatchdog(Watchdog):
    """Notes when its message has been written."""

    def _dump(self) -> None:
        super()._dump()
        sys.stderr.write(f"named at {time.time()}\n")


@pytest.mark.fault("A15")
def test_a_sleeping_rank_is_named(job):
    done = job(mpirun, "sleep", 0)
    assert done.code == 70
    assert_told_once(done, f"rank 0 on {HOST} is behind: step of step 1, last seen at group_script.py", 5)


@pytest.mark.parametrize(("launcher", "what", "rank"), [(torchrun, "exit0", 1), (mpirun, "leave", 0)])
@pytest.mark.fault("A16")
def test_a_rank_that_leaves_early_is_named(launcher, what, rank, job):
    done = job(launcher, what, rank)
    assert done.code == code_of(launcher, 70)
    assert_told_once(done, rf"Rank {rank} on {HOST} (\(process \d+\) ended without a word|left, with exit code 0)", 5)
    assert "signal 6" not in done.err


@pytest.mark.fault("A18")
def test_exchanges_that_do_not_match_are_told_with_both_sides_on_demand(job):
    done = job(mpirun, "mismatch", 1, "TORCH_DISTRIBUTED_DEBUG=DETAIL")
    assert done.code == 70
    assert_told_once(done, "Detected mismatch between collectives on ranks", 5)
    assert "group_script.py" in done.err
    assert "TensorShape=[1]" in done.err
    assert "TensorShape=[2]" in done.err


@both
@pytest.mark.fault("A9")
def test_ranks_end_with_their_launcher(launcher, environment):
    words = [*launcher(), str(SCRIPT), "wait", "0"]
    started = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    for _ in range(2):
        assert any(line.startswith("pid ") for line in started.stderr)
    ranks = {pid: start_time(pid) for pid in children(started.pid)}
    started.kill()
    assert len(ranks) == 2
    assert outlive(ranks, 2) == []


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


@pytest.mark.parametrize("real", [False, True], ids=["variables", "torchrun"])
def test_two_machines_as_network_namespaces(real, environment):
    """Machines that share nothing but a cable; each with a name that it alone knows."""
    if os.geteuid() != 0 or subprocess.run(["which", "ip", "unshare"], capture_output=True).returncode:
        pytest.skip("network namespaces need root, ip and unshare: two hosts were not checked")
    names, ends = [f"locap{os.getpid()}{end}" for end in "ab"], [f"lc{os.getpid()}{end}" for end in "ab"]
    started = []
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("network namespaces are not allowed here: two hosts were not checked")
        cable = ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]
        if subprocess.run(cable, capture_output=True).returncode:
            pytest.skip("a cable between network namespaces cannot be made here: two hosts were not checked")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            subprocess.run(["ip", "link", "set", end, "netns", name], check=True)
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "address", "add", f"10.9.8.{number}/24", "dev", end], check=True)
            for device in (end, "lo"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        for rank, name in enumerate(names):
            own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            own |= {"MASTER_ADDR": "10.9.8.1", "MASTER_PORT": "29511"}
            program = sys.executable
            if real:
                own, program = {}, f"{BIN}/torchrun --nnodes 2 --node_rank {rank} --nproc_per_node 1"
                program += " --master_addr 10.9.8.1 --master_port 29511"
            script = f"hostname host{rank}; exec ip netns exec {name} {program} {SCRIPT} none 1"
            words = ["unshare", "--uts", "sh", "-c", script]
            started.append(subprocess.Popen(words, env=environment | own, stderr=subprocess.PIPE, text=True))
        done = [(process.wait(LIMIT), process.stderr.read()) for process in started]
    finally:
        for process in started:
            process.kill()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    assert [code for code, _ in done] == [0, 0], done
    assert "summed 2" in done[0][1]
