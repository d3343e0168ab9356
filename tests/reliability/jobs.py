"""Runs a launcher with two processes and notes when what was said and when the processes ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from locap.trainer.failures import process_state, start_time

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
HOST = socket.gethostname()
LIMIT = 180  # seconds in which every job must have ended, the start on a busy machine included
GRACE = 2.0  # seconds that a process may outlive its launcher (A9)
TOLD = re.compile(rf"^\((rank|told by rank) (\d)( of 2)? on {re.escape(HOST)}\)$", re.MULTILINE)  # ends each message
BY_MPIRUN = re.compile(rf"process rank \d with PID \d+ on node {re.escape(HOST)} exited on\s+signal 9")
OF_LAUNCHERS = ("OMPI_", "PMI", "PRTE_", "SLURM_", "MASTER_", "PYTEST", "RANK", "WORLD_SIZE", "LOCAL_", "GLOO_")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mpirun() -> list[str]:
    """Return the words before a script of two processes."""
    if not (BIN / "mpirun").exists():
        pytest.skip("mpirun is not installed beside this Python: two processes under mpirun were not checked")
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [str(BIN / "mpirun"), "-n", "2", "--oversubscribe", *root, sys.executable]


def torchrun() -> list[str]:
    """Return the words before a script of two processes."""
    return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]


both = pytest.mark.parametrize("launcher", [mpirun, torchrun])


@dataclass
class Job:
    """A job that has ended.

    Attributes:
        code: exit code of the launcher.
        lines: what was written to standard error, each with the time at which it came.
        ranks_ended, ended: when the last rank, and the launcher, had ended.
    """

    code: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)
    ranks_ended: float = 0.0
    ended: float = 0.0

    @property
    def err(self) -> str:
        """Everything written to standard error."""
        return "".join(line for _, line in self.lines)

    def time_of(self, pattern: str) -> float:
        """Return when the first line came that a regular expression is found in."""
        return next(when for when, line in self.lines if re.search(pattern, line))


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a job: this clone is importable, no launcher is known."""
    (folder / "locap").symlink_to(ROOT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    return kept | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def run_job(words: list[str], environ: Mapping[str, str], limit: float = LIMIT) -> Job:
    """Run a launcher to its end; kills it, and fails, after a limit in seconds."""
    job = Job()
    started = subprocess.Popen(
        words, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    reader = threading.Thread(target=_read, args=(started, job), daemon=True)
    reader.start()
    ranks: dict[int, str | None] = {}
    until = time.time() + limit
    try:
        while started.poll() is None:
            ranks |= {pid: start_time(pid) for pid in children(started.pid) if pid not in ranks}
            if any(process_state(pid, begun) != "gone" for pid, begun in ranks.items()):
                job.ranks_ended = time.time()
            assert time.time() < until, f"the job did not end within {limit:g} s:\n{job.err}"
            time.sleep(0.02)
        job.code, job.ended = started.returncode, time.time()
        assert outlive(ranks) == [], f"orphans:\n{job.err}"
    finally:
        for pid, begun in ranks.items():
            if process_state(pid, begun) != "gone":
                os.kill(pid, signal.SIGKILL)
        started.kill()
    reader.join(5)
    return job


def outlive(ranks: Mapping[int, str | None], seconds: float = GRACE) -> list[int]:
    """Return which processes, given with the time they were started, are still there after some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(process_state(*rank) != "gone" for rank in ranks.items()):
        time.sleep(0.02)
    return [pid for pid, begun in ranks.items() if process_state(pid, begun) != "gone"]


def assert_told_once(job: Job, pattern: str, seconds: float) -> None:
    """There is one message, and all ranks have left within some seconds of it.

    After a kill mpirun leaves the other ranks a fifth of a second, which a busy machine may not give them; then its own
    message is the only one.
    """
    if BY_MPIRUN.search(job.err) and not TOLD.search(job.err):
        return
    assert len(re.findall(pattern, job.err)) == 1, job.err
    assert len(TOLD.findall(job.err)) == 1, job.err
    assert "terminate called" not in job.err
    assert job.ranks_ended - job.time_of(pattern) < seconds


def _read(started: subprocess.Popen, job: Job) -> None:
    for line in started.stderr:
        job.lines.append((time.time(), line))


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that have not been waited for."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text(encoding="ascii").split())
        except OSError:  # the thread has ended
            continue
    return found
