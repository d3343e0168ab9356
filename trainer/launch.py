"""Who started this process, which of how many it is, and where they meet; known before torch is loaded."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UsageError

_LAUNCHERS = {  # launcher: variables of (rank, world size, rank on this machine, processes on this machine)
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
}
_SHELLS = ("bash", "sh", "zsh", "interactive")
_JOB_NAMES = ("PMIX_NAMESPACE", "SLURM_JOB_ID")  # a value that all processes of a job share and no other job has
_NOTE_AGE = 3600.0  # seconds after which what a job left in the temporary folder is deleted


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among those started with it.

    Attributes:
        launcher: who started it; "none" when nobody did.
        rank, size: over all machines.
        local_rank, local_size: on this machine; a size of 0 is unknown.
    """

    launcher: str = "none"
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True, slots=True)
class Address:
    """Where the processes meet.

    Attributes:
        host, port: of rank 0.
        fixed: the launcher gave the port, so that no other may be taken.
        one_machine: all processes are on this machine.
        served: the launcher itself answers there.
    """

    host: str
    port: int
    fixed: bool = False
    one_machine: bool = False
    served: bool = False


def discover(environ: Mapping[str, str] = os.environ) -> Launch:
    """Return who started this process and which one it is.

    Raises:
        UsageError: two launchers' variables contradict each other, or a variable is no number.
    """
    found = {name: launch for name in _LAUNCHERS if (launch := _read(name, environ)) is not None}
    if not found:
        return Launch()
    several = {name: launch for name, launch in found.items() if launch.size > 1} or found
    chosen = next(iter(several.values()))
    for other in several.values():
        _check_agreement(chosen, other, environ)
    return _with_local_values(chosen, list(several.values()))


def _read(launcher: str, environ: Mapping[str, str]) -> Launch | None:
    rank, size, local_rank, local_size = _LAUNCHERS[launcher]
    if launcher == "SLURM":
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else size
        if "SLURM_STEP_ID" not in environ or environ.get("SLURM_JOB_NAME") in _SHELLS:
            return None  # an allocation, or an interactive shell inside one, is not a launch
    if rank not in environ or size not in environ:
        return None
    values = [_number(environ, name, default) for name, default in ((rank, 0), (size, 1))]
    if not 0 <= values[0] < values[1]:
        raise UsageError(
            "A launcher's variables make no sense.",
            where="environment",
            value=f"{rank}={values[0]} {size}={values[1]}",
            allowed="0 <= rank < size",
            fix=f"unset {rank} {size}",
        )
    mates = _slurm_local_size(environ) if launcher == "SLURM" else _number(environ, local_size, 0)
    return Launch(launcher, *values, _number(environ, local_rank, -1), mates)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environ.get(name, default))
    except ValueError:
        raise UsageError(
            "A launcher's variable is no number.", where=f"environment: {name}", value=environ[name]
        ) from None


def _slurm_local_size(environ: Mapping[str, str]) -> int:
    """Return the tasks on this node from "2(x3),1", 0 when unknown."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    counts = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    node = _number(environ, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else 0


def _check_agreement(chosen: Launch, other: Launch, environ: Mapping[str, str]) -> None:
    """Launchers may start each other: SLURM any, and any of them one torchrun per machine."""
    if (other.rank, other.size) == (chosen.rank, chosen.size) or other.launcher == "SLURM":
        return
    if chosen.launcher == "torchrun" and environ.get("GROUP_WORLD_SIZE") == str(other.size):
        return
    pairs = {launch.launcher: (launch.rank, launch.size) for launch in (chosen, other)}
    raise UsageError(
        "Two launchers disagree about this process.",
        where="environment",
        value="; ".join(f"{name}: rank {rank} of {size}" for name, (rank, size) in pairs.items()),
        allowed="one launcher; one torchrun per machine inside another's job, or any inside SLURM's",
        fix=f"unset {' '.join(name for name in _LAUNCHERS[other.launcher] if name in environ)}",
    )


def _with_local_values(chosen: Launch, all_found: list[Launch]) -> Launch:
    """Fill in what the chosen launcher leaves open from one that means the same processes."""
    same = [launch for launch in all_found if (launch.rank, launch.size) == (chosen.rank, chosen.size)]
    local_rank = next((launch.local_rank for launch in same if launch.local_rank >= 0), chosen.rank)
    local_size = next((launch.local_size for launch in same if launch.local_size > 0), 1 if chosen.size == 1 else 0)
    return Launch(chosen.launcher, chosen.rank, chosen.size, local_rank, local_size)


def first_host(nodes: str) -> str:
    """Return the first name of SLURM's list of nodes, such as ``node[01-03,07],other``."""
    match = re.match(r"\s*([^\[,]*)(?:\[([^\]]*)\])?([^,\[]*)", nodes)
    prefix, numbers, suffix = match.groups()
    return prefix + (re.split("[-,]", numbers)[0] if numbers else "") + (suffix or "")


def meeting_point(launch: Launch, port: str, environ: Mapping[str, str] = os.environ) -> Address | None:
    """Return where rank 0 is; None when only rank 0 itself can tell the others.

    Args:
        launch: this process.
        port: when neither the launcher names one nor the job gives rise to one.
        environ: MASTER_ADDR and MASTER_PORT come first.
    """
    number = _number(environ, "MASTER_PORT", job_port(environ) or int(port))
    fixed = "MASTER_PORT" in environ
    alone = launch.local_size == launch.size
    if "MASTER_ADDR" in environ:
        served = launch.launcher == "torchrun" and environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Address(environ["MASTER_ADDR"], number, fixed, alone, served)
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    if alone:
        return Address("127.0.0.1", number, fixed, True)
    if launch.launcher == "SLURM" and nodes:
        return Address(first_host(nodes), number, fixed)
    return None


def job_port(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the port of this job, so that jobs on one machine meet at different ones; None without a job's name."""
    job = job_name(environ)
    return 10000 + zlib.crc32(job.encode()) % 20000 if job else None


def job_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return what the processes of this job have in common; empty when the launcher tells nothing."""
    job = next((environ[name] for name in _JOB_NAMES if name in environ), "")
    more = [environ.get(name, "") for name in ("SLURM_STEP_ID", "SLURM_RESTART_COUNT")] if job else []
    return ".".join([job, *more]).rstrip(".")


class Notes:
    """Short files through which the processes of a job on one machine tell each other things before they have met."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
        # a job's name may come back; its parent does not
        job = job_name(environ) or "/".join([str(os.getppid()), *(environ.get(name, "") for name in names)])
        self.prefix = hashlib.sha256(job.encode()).hexdigest()[:16]
        self.folder = Path(tempfile.gettempdir()) / f"locap-{os.getuid() if hasattr(os, 'getuid') else 0}"

    def write(self, name: str, text: str) -> bool:
        """Write a note unless there is one; whether this process did."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if hasattr(os, "getuid") and self.folder.stat().st_uid != os.getuid():
                return True  # somebody else's folder: nothing is believed
            self._forget_old()
            with (self.folder / f"{self.prefix}-{name}").open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def read(self, name: str) -> str:
        """Return a note's text, empty when there is none."""
        try:
            path = self.folder / f"{self.prefix}-{name}"
            mine = not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
            return path.read_text(encoding="utf-8") if mine else ""
        except OSError:
            return ""

    def remove(self, name: str) -> None:
        """Delete a note if there is one."""
        (self.folder / f"{self.prefix}-{name}").unlink(missing_ok=True)

    def _forget_old(self) -> None:
        for path in self.folder.iterdir():
            if time.time() - path.stat().st_mtime > _NOTE_AGE:
                path.unlink(missing_ok=True)


def says_it(text: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its job on this machine to say something all of them may have to say."""
    if discover_size(environ) == 1:
        return True
    return Notes(environ).write(f"said-{zlib.crc32(text.encode()):08x}", str(os.getpid()))


def discover_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of processes, also where launchers contradict each other."""
    try:
        return discover(environ).size
    except UsageError:
        return 2


def own_address() -> str:
    """Return this machine's address on the interface that leads to other machines."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: a route is looked up, nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())
