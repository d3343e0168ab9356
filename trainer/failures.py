"""The end of one process is the end of all, and is told once: by the process that failed, or on its behalf."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ..utils.endings import describe
from ..utils.errors import EXIT_INTERNAL
from .launch import Launch, Notes

POLL = 0.5  # seconds between two looks at the store
_POLL_MATES = 0.1  # the same at the other processes of this machine: mpirun kills the rest 0.2 s after the first
_STORE_SILENCE = 10.0  # seconds without an answer after which the store, hence rank 0, is given up
_PEER_ERRORS = re.compile(
    "gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out|recvValue|sendBytes|Failed to recv", re.I
)


def process_state(pid: int, started: str | None) -> str:
    """Return "gone", "stopped", "alive" of a process of this machine; "alive" where nothing can be seen."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone" if os.path.exists("/proc/self/stat") else "alive"
    except OSError:
        return "alive"
    if fields[0] in "ZX" or (started is not None and fields[19] != started):
        return "gone"
    return "stopped" if fields[0] in "Tt" else "alive"


def start_time(pid: int) -> str | None:
    """Return what tells a process from a later one of the same number."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


class Failures:
    """Knows the store, tells a failure once and notices those of others.

    Threads look about twice a second whether a process has failed and whether the launcher still exists, and more often
    whether the processes of this machine do.

    Args:
        launch: this process.
        connect: makes a connection to the store for the use of one thread.
        host: name of this machine.
    """

    def __init__(self, launch: Launch, connect: Callable[[], Any], host: str) -> None:
        self.launch, self.connect, self.host = launch, connect, host
        self.mates: list[dict] = []  # what the processes registered, in rank order
        self.on_hang: list[Callable[[], None]] = []  # called before this process leaves because one hangs
        self.others: list[Callable[[Any], None]] = []  # called with the store at every look
        self._store, self._ended = connect(), threading.Event()
        self._answered, self._ending = time.monotonic(), threading.Lock()
        self._parent = os.getppid()
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._look, name="locap failures", daemon=True).start()
        threading.Thread(target=self._guard, name="locap guard", daemon=True).start()
        threading.Thread(target=self._watch_mates, args=(connect(),), name="locap mates", daemon=True).start()

    def raised(self, error: BaseException) -> None:
        """End this process because of an exception; does not return."""
        text, code = describe(error)
        if _PEER_ERRORS.search(str(error)):  # perhaps the echo of another's end: let that one speak first
            self._await_cause()
        self.end(self.launch.rank, text, code)

    def end(self, rank: int, text: str, code: int = EXIT_INTERNAL, *, whose: str = "", hangs: bool = False) -> None:
        """Tell that a rank has failed, unless that has been told, and leave; does not return."""
        self._ending.acquire()  # never released: one thread ends the process
        where = whose or f"rank {rank} of {self.launch.size} on {self.host}"
        mine = json.dumps(
            {"rank": rank, "by": self.launch.rank, "text": text, "code": code, "where": where, "hangs": hangs}
        )
        told = None
        if not self._store_lost("gone", "stopped"):
            told = _within(3.0, lambda: self.connect().compare_set("failed", "", mine).decode())
        if told is None and not Notes().write("store-lost", where):
            told = json.dumps({"code": code, "hangs": hangs})  # another process of this machine tells it
        if told in (None, mine):
            say(f"{text.rstrip()}\n({where})\n")
        else:
            code, hangs = (json.loads(told)[key] for key in ("code", "hangs"))
        self._leave(code, hangs=hangs)

    def close(self, limit: float) -> None:
        """Leave in good order; rank 0, which may keep the store, waits for the others."""
        if self.launch.rank:
            self._ended.set()
        store = self.connect()
        store.set(f"left/{self.launch.rank}", "")
        keys, until = [f"left/{rank}" for rank in range(self.launch.size)], time.monotonic() + limit
        while self.launch.rank == 0 and time.monotonic() < until and not store.check(keys):
            time.sleep(0.05)
        self._ended.set()

    def _terminated(self, number: int, frame: Any) -> None:
        """A launcher asks the rest to end as soon as one has died: leave the time to say which."""

        def leave() -> None:
            time.sleep(4 * POLL)
            flush()
            os._exit(128 + number)

        threading.Thread(target=leave, daemon=True).start()

    def _await_cause(self) -> None:
        time.sleep(4 * POLL)  # the thread looks, and ends this process when it finds a cause
        self._blame_who_left()

    def _blame_who_left(self) -> None:
        left = _within(2, lambda: [r for r in range(self.launch.size) if self.connect().check([f"left/{r}"])])
        for rank in left or ():
            host = self.mates[rank]["host"]
            text = (
                f"error: Rank {rank} on {host} left, with exit code 0, while others still needed it."
                "\n  where:   ranks must make the same number of steps; this one ran out of data or returned early"
            )
            self.end(rank, text, whose=f"told by rank {self.launch.rank} on {self.host}")

    def _look(self) -> None:
        while not self._ended.wait(POLL):
            try:
                if self._store.check(["failed"]):
                    self._follow(json.loads(self._store.get("failed")))
                for other in self.others:
                    other(self._store)
                self._answered = time.monotonic()
            except (RuntimeError, OSError):  # the store has gone; the other threads decide
                continue

    def _follow(self, told: dict) -> None:
        self._ending.acquire()
        self._leave(told["code"], hangs=told["hangs"])

    def _watch_mates(self, store: Any) -> None:
        while not self._ended.wait(_POLL_MATES):
            try:
                self._look_at_mates(store)
            except (RuntimeError, OSError):
                if not self._ended.is_set():
                    self._look_at_mates(store, lost=True)

    def _look_at_mates(self, store: Any, *, lost: bool = False) -> None:
        lost = lost or self._store_lost("gone")
        for rank, mate in enumerate(self.mates):
            if rank == self.launch.rank or mate["machine"] != self.mates[self.launch.rank]["machine"]:
                continue
            if process_state(mate["pid"], mate["started"]) != "gone":
                continue
            if not lost and (store.check([f"left/{rank}"]) or store.check(["failed"])):
                continue
            text = (
                f"error: Rank {rank} on {mate['host']} (process {mate['pid']}) ended without a word.\n"
                "  where:   it was killed (kill -9, out of memory?) or left before the others had finished\n"
                "  fix:     see dmesg and the launcher's own message; start again to go on from the last checkpoint"
            )
            self.end(rank, text, whose=f"told by rank {self.launch.rank} on {self.host}")

    def _guard(self) -> None:
        """Needs no answer from anybody, so that it also ends a process whose store is frozen."""
        while not self._ended.wait(POLL):
            if os.getppid() != self._parent:
                say(f"rank {self.launch.rank} on {self.host}: the launcher has gone, so this process ends\n")
                self._leave(EXIT_INTERNAL, wait=0)
            silence = time.monotonic() - self._answered
            if silence > _STORE_SILENCE and self._is_elsewhere(0):
                text = "error: Rank 0, which keeps the list of who is there, cannot be reached: its machine is lost."
                self.end(0, text, whose=f"told by rank {self.launch.rank} on {self.host}")

    def _store_lost(self, *states: str) -> bool:
        """Whether rank 0 keeps the store and is seen in one of these states."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and self.state_of(0) in states

    def _is_elsewhere(self, rank: int) -> bool:
        return bool(self.mates) and self.mates[rank]["machine"] != self.mates[self.launch.rank]["machine"]

    def state_of(self, rank: int) -> str:
        """Return "gone" or "stopped" of a rank of this machine, else "alive"."""
        if not self.mates or self.mates[rank]["machine"] != self.mates[self.launch.rank]["machine"]:
            return "alive"
        return process_state(self.mates[rank]["pid"], self.mates[rank]["started"])

    def _leave(self, code: int, wait: float = 2.0, *, hangs: bool = False) -> None:
        """Leave now; rank 0 stays until the others have seen why."""
        for function in self.on_hang if hangs else ():
            function()
        if wait and not self._store_lost("gone", "stopped"):
            _within(wait, self._take_leave)
        flush()
        os._exit(code)

    def _take_leave(self) -> None:
        store = self.connect()
        store.set(f"left/{self.launch.rank}", "")
        while self.launch.rank == 0:
            there = [rank for rank in range(self.launch.size) if not store.check([f"left/{rank}"])]
            if all(self.state_of(rank) != "alive" for rank in there):
                return
            time.sleep(0.05)


def say(text: str) -> None:
    """Write to standard error; nobody may be left to read it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def flush() -> None:
    """Bring what was said to its readers, if there are any."""
    for stream in (sys.stdout, sys.stderr, *logging.getLogger("locap").handlers):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return what a function returns, or None when it fails or takes longer: a store that is gone may never answer."""
    box: list[Any] = []

    def call() -> None:
        try:
            box.append(function())
        except (RuntimeError, OSError):
            return

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else None


def connect(host: str, port: int, seconds: float, prefix: str = "locap") -> Any:
    """Return a connection of its own to the store, for the use of one thread.

    Raises:
        OSError, RuntimeError: nothing, or something else, answers there.
    """

    def open_store() -> Any:
        limit = timedelta(seconds=seconds)
        return dist.TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)

    store = _within(seconds + 1, open_store)  # torch waits for ever for the answer of another kind of server
    if store is None:
        raise OSError(f"nothing of ours answers at {host}:{port}")
    return dist.PrefixStore(prefix, store)
