"""All processes meet at one store, and whoever does not come is named."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from ..utils.errors import MissingDependencyError, UsageError
from . import failures
from .launch import Address, Launch, Notes, job_name, meeting_point, own_address

_log = logging.getLogger(__name__)
_HINT = "mpirun -x MASTER_ADDR=<rank 0's address> -x MASTER_PORT=<a free port of it>"


def meet(launch: Launch, port: str, seconds: float) -> tuple[Any, Any]:
    """Return (connect, keeper): how a thread gets its connection to the store, and what must live as long as it.

    Raises:
        MissingDependencyError: rank 0 cannot be reached, or its port is taken.
        UsageError: nothing says where rank 0 is.
    """
    address = meeting_point(launch, port) or _ask_mpi(launch)
    _check_host(address)
    prefix = f"locap/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    token = f"{job_name()} {launch.size}"
    keeper = None
    if launch.rank == 0 and not address.served:
        address, keeper = _serve(address, seconds)
    host, number = _find(address, prefix, token, seconds, is_main=launch.rank == 0)
    return partial(failures.connect, host, number, seconds, prefix), keeper


def _check_host(address: Address) -> None:
    try:
        socket.getaddrinfo(address.host, address.port)
    except OSError as err:
        raise MissingDependencyError(
            f"The name of rank 0's machine cannot be resolved: {err.strerror or err}.",
            where="MASTER_ADDR" if "MASTER_ADDR" in os.environ else "the launcher's list of machines",
            value=address.host,
            fix=f"give an address that every machine knows: export MASTER_ADDR=..., or {_HINT}",
        ) from None


def _serve(address: Address, seconds: float) -> tuple[Address, Any]:
    """Open the store on rank 0; on one machine a taken port is replaced by a free one, which a note tells."""
    notes = Notes()
    notes.remove("address")
    listener = _listen(address, address.port)
    if listener is None:
        listener = _listen(address, 0)
        address = Address(address.host, listener.getsockname()[1], one_machine=True)
        notes.write("address", str(address.port))
        _log.info("the usual port is in use; the processes of this machine meet at port %d", address.port)
    limit = timedelta(seconds=seconds)
    number = listener.getsockname()[1]
    keeper = dist.TCPStore(
        address.host, number, None, True, limit, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return address, keeper


def _listen(address: Address, port: int) -> socket.socket | None:
    local = address.host == "127.0.0.1"
    try:
        if local or not socket.has_dualstack_ipv6():
            return socket.create_server(("127.0.0.1" if local else "", port), backlog=2048)
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=2048, dualstack_ipv6=True)
    except OSError as err:
        if err.errno == errno.EADDRINUSE and address.one_machine and not address.fixed and job_name():
            return None
        what = "is in use by another program" if err.errno == errno.EADDRINUSE else f"cannot be opened: {err.strerror}"
        raise MissingDependencyError(
            f"Port {port} of this machine {what}.",
            where=f"rank 0 on {socket.gethostname()}",
            value=port,
            allowed="a port that is free on rank 0's machine",
            fix=f"export MASTER_PORT=<another>, or {_HINT}; `ss -ltnp` shows who has it",
        ) from None


def _find(address: Address, prefix: str, token: str, seconds: float, *, is_main: bool) -> tuple[str, int]:
    """Wait until rank 0's store answers and belongs to this job."""
    notes, until = Notes(), time.monotonic() + seconds
    told = address.one_machine and not address.fixed
    while True:
        port = int((told and not is_main and notes.read("address")) or address.port)
        try:
            socket.create_connection((address.host, port), timeout=min(2.0, seconds)).close()
            store = failures.connect(address.host, port, min(5.0, seconds), prefix)
            if is_main:
                store.set("job", token)
            if store.check(["job"]) and store.get("job").decode() == token:
                return address.host, port
        except (RuntimeError, OSError):
            pass
        if time.monotonic() > until:
            raise _unreachable(address, port, seconds)
        time.sleep(0.1)


def _unreachable(address: Address, port: int, seconds: float) -> MissingDependencyError:
    return MissingDependencyError(
        f"Rank 0 did not answer within {seconds:g} s.",
        where=f"from {socket.gethostname()} ({own_address()}), interface {interface_to(address.host) or 'unknown'}",
        value=f"{address.host}:{port}",
        allowed="an address and port of rank 0's machine that this one reaches",
        fix=f"{_HINT}; or wait longer with TIMEOUTS.RENDEZVOUS; NCCL_SOCKET_IFNAME chooses the interface",
    )


def _ask_mpi(launch: Launch) -> Address:
    """Let rank 0 tell its address through MPI: the only use of mpi4py."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as err:
        raise UsageError(
            f"The processes are on several machines and none knows where rank 0 is ({err}).",
            where=f"launcher: {launch.launcher}",
            allowed="MASTER_ADDR, or an mpi4py built for this MPI",
            fix=f"mpirun -x MASTER_ADDR={own_address()} -x MASTER_PORT=29500 ..., with the address of rank 0's machine",
        ) from None
    MPI.Init()
    mine = None
    if launch.rank == 0:
        with socket.create_server(("", 0)) as free:
            mine = (own_address(), free.getsockname()[1])
    host, port = MPI.COMM_WORLD.bcast(mine)
    MPI.Finalize()  # or mpirun would take the end of a process for a failure
    return Address(host, port, fixed=True)


def register(launch: Launch, store: Any, device: torch.device, seconds: float) -> list[dict]:
    """Tell who this process is and wait for all others; returns what each told, in rank order.

    Raises:
        MissingDependencyError: some did not come; it names them.
    """
    store.set(f"here/{launch.rank}", json.dumps(_card(launch, device)))
    keys = [f"here/{rank}" for rank in range(launch.size)]
    until = time.monotonic() + seconds
    while not store.check(keys):
        if time.monotonic() > until:
            raise _missing(store, keys, seconds)
        time.sleep(0.05)
    return [json.loads(store.get(key)) for key in keys]


def _missing(store: Any, keys: list[str], seconds: float) -> MissingDependencyError:
    here = [rank for rank, key in enumerate(keys) if store.check([key])]
    missing = [rank for rank in range(len(keys)) if rank not in here]
    hosts = sorted({json.loads(store.get(keys[rank]))["host"] for rank in here})
    return MissingDependencyError(
        f"{_ranks(missing)} of {len(keys)} did not come within {seconds:g} s.",
        where=f"{_ranks(here)} came, on {', '.join(hosts)}",
        allowed="all processes, started within TIMEOUTS.RENDEZVOUS seconds",
        fix=f"see the launcher's output of the missing ones; if they wait for another address: {_HINT}",
    )


def _ranks(ranks: list[int]) -> str:
    return f"Rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _card(launch: Launch, device: torch.device) -> dict:
    uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    pid = os.getpid()
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return {
        "host": socket.gethostname(),
        "machine": f"{socket.gethostname()} {space}",  # processes that see each other's numbers
        "pid": pid,
        "started": failures.start_time(pid),
        "local_rank": launch.local_rank,
        "device": str(device),
        "uuid": uuid,
    }


def check_devices(cards: list[dict], *, allow_shared_gpu: bool) -> None:
    """Refuse two processes on one GPU.

    Raises:
        UsageError: with the table of ranks and devices.
    """
    owners: dict[str, int] = {}
    for rank, card in enumerate(cards):
        first = owners.setdefault(card["uuid"] or f"cpu {rank}", rank)
        if first != rank and not allow_shared_gpu:
            rows = [f"rank {r}: {c['host']} {c['device']} {c['uuid']}" for r, c in enumerate(cards)]
            raise UsageError(
                f"Ranks {first} and {rank} compute on one GPU.",
                where=card["host"],
                value="; ".join(rows),
                allowed="one process per GPU, unless PARALLEL.ALLOW_SHARED_GPU",
                fix="start as many processes per machine as it has GPUs, and let the launcher bind each to its own",
            )


def table_of(cards: list[dict]) -> str:
    """Return rank, host and device of every process as a table."""
    table = Table("rank", "host", "process", "local rank", "device")
    for rank, card in enumerate(cards):
        device = " ".join(filter(None, (card["device"], card["uuid"][:12])))
        table.add_row(*(str(value) for value in (rank, card["host"], card["pid"], card["local_rank"], device)))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def choose_interface(host: str) -> None:
    """Let gloo use the interface that leads to rank 0 rather than what the machine's name resolves to."""
    name = interface_to(host)
    if name and "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(host: str) -> str | None:
    """Return the name of the network interface through which an IPv4 host is reached; None when it cannot be told."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            wanted = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                request = name.encode()[:15].ljust(40, b"\0")
                try:
                    if fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24] == wanted:  # SIOCGIFADDR
                        return name
                except OSError:  # an interface without an address
                    continue
    except (ImportError, OSError):
        return None
    return None
