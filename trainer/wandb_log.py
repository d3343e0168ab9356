"""Weights & Biases, whose service may be missing, down, slow or hanging: training never waits for it, nor is asked."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from netrc import netrc
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from ..utils.files import write_text
from .log_values import flat

_log = logging.getLogger(__name__)
START_SECONDS = 10.0  # for the service to answer; training goes on meanwhile
OFFLINE_SECONDS = 60.0  # for its process on this machine to start: a busy machine is slow
HURRIED_SECONDS = 5.0  # what is left of them when the run ends before
END_SECONDS = 9.0  # for it to take the rest at the end
MOST_QUEUED = 2000  # events
_END = None


class Wandb:
    """Sends events from a thread of its own.

    Without a login, and when the service fails or does not answer within `START_SECONDS`, the run is stored offline,
    below ``<run>/wandb``, from where ``wandb sync`` sends it later. When that fails too, or when it stops in the
    middle, there is a warning and nothing more: ``metrics.jsonl`` is complete anyway. The calls return at once; `close`
    waits for at most `END_SECONDS`.

    Args:
        folder: the run's; ``wandb_id.txt`` there lets a resumed run go on with its curves.
        project, name: under which the service shows the run.
        config: what it shows beside it.
    """

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self._arguments = {"project": project, "name": name, "dir": str(folder), "config": dict(config)}
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue(MOST_QUEUED)
        self._ended, self._hurry, self._lost = threading.Event(), threading.Event(), 0
        self._wandb: Any = None
        try:  # not in the thread: a loader's worker that is forked meanwhile would find locks that nobody opens
            import wandb
        except Exception as err:
            self._give_up(err)
            return
        self._wandb = wandb
        _without_telemetry()
        threading.Thread(target=self._work, name="wandb", daemon=True).start()

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        numbers = {f"{event}/{name}": value for name, value in flat(values)}
        self._put(lambda run: run.log(numbers, step=step))

    def pictures(self, event: str, step: int, paths: Mapping[str, Path]) -> None:
        """See `Tracker`."""

        def send(run: Any) -> None:
            image = self._wandb.Image
            run.log({f"{event}/{name}": image(str(path)) for name, path in paths.items()}, step=step)

        self._put(send)

    def close(self) -> None:
        """See `Tracker`."""
        deadline = time.monotonic() + END_SECONDS
        self._hurry.set()
        while not self._ended.is_set() and not self._ask_to_end() and time.monotonic() < deadline:
            self._ended.wait(0.05)
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            _log.warning(
                "Weights & Biases does not take the rest of the run in time; `wandb sync %s` sends what was stored.",
                self.folder / "wandb" / "run-*",
            )
        self._leave_service(max(0.5, deadline - time.monotonic()))

    def _leave_service(self, seconds: float) -> None:
        """End wandb's own process, or leave it to end by itself: else wandb waits for it when Python ends, for ever."""

        def leave() -> None:
            with contextlib.suppress(Exception):
                self._wandb.teardown()

        if self._wandb is not None:
            thread = threading.Thread(target=leave, name="wandb-end", daemon=True)
            thread.start()
            thread.join(seconds)

    def _ask_to_end(self) -> bool:
        try:
            self._queue.put_nowait(_END)
        except queue.Full:
            return False
        return True

    def _put(self, send: Callable[[Any], None]) -> None:
        if self._ended.is_set():
            return
        try:
            self._queue.put_nowait(send)
        except queue.Full:
            if not self._lost:
                _log.warning("Weights & Biases is too slow: some of its points are left out. Training goes on.")
            self._lost += 1

    def _work(self) -> None:
        try:
            run = self._start()
            while (send := self._queue.get()) is not _END:
                send(run)
            run.finish()
            self._ended.set()
        except BaseException as err:  # SystemExit in a thread would be silent
            self._give_up(err)

    def _give_up(self, err: BaseException) -> None:
        self._ended.set()
        _log.warning("Weights & Biases stops: %s. Training goes on; metrics.jsonl has all numbers.", _one_line(err))

    def _start(self) -> Any:
        """Return the service's run: online if that works within the deadline, else offline."""
        wandb = self._wandb
        os.environ.setdefault("WANDB_SILENT", "true")
        wanted = {
            "silent": True,
            "init_timeout": START_SECONDS,
            "login_timeout": START_SECONDS,
            "finish_timeout": END_SECONDS,
        }
        known = getattr(wandb.Settings, "model_fields", wanted)
        arguments = self._arguments | {
            "settings": wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
        }
        mode = os.environ.get("WANDB_MODE", "online")
        identity = self._identity()
        if mode == "online" and not _has_login():
            mode = "offline"
        try:
            if mode == "online":
                _check_reachable()
            return self._within_time(lambda: wandb.init(mode=mode, id=identity, resume="allow", **arguments), mode)
        except Exception as err:
            if mode != "online":
                raise
            _log.warning("Weights & Biases cannot be reached (%s); this run is stored offline.", _one_line(err))
        other = f"{identity}-{uuid.uuid4().hex[:4]}"  # the service still holds the first one's id
        return self._within_time(lambda: wandb.init(mode="offline", id=other, **arguments), "offline")

    def _within_time(self, start: Callable[[], Any], mode: str) -> Any:
        """Return what a function returns, or raise what it raises.

        Raises:
            TimeoutError: it takes too long. It is left alone then, and a run that it brings later is ended.
        """
        done, gone = threading.Event(), threading.Event()
        outcome: list[Any] = [None, None]

        def call() -> None:
            try:
                outcome[0] = start()
            except BaseException as err:
                outcome[1] = err
            if gone.is_set() and outcome[0] is not None:
                outcome[0].finish()
            done.set()

        threading.Thread(target=call, name="wandb-start", daemon=True).start()
        limit = time.monotonic() + (START_SECONDS if mode == "online" else OFFLINE_SECONDS)
        while not done.wait(0.05) and time.monotonic() < limit:
            if self._hurry.is_set() and mode == "online":
                limit = min(limit, time.monotonic() + HURRIED_SECONDS)
                done.wait(limit - time.monotonic())
        if not done.is_set():
            gone.set()
            raise TimeoutError("no answer in time")
        if outcome[1] is not None:
            raise outcome[1] if isinstance(outcome[1], Exception) else RuntimeError(repr(outcome[1]))
        return outcome[0]

    def _identity(self) -> str:
        path = self.folder / "wandb_id.txt"
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:8])
        return path.read_text(encoding="utf-8").strip()


def _has_login() -> bool:
    """Return whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return _service().hostname in netrc(os.environ.get("NETRC")).hosts
    except (OSError, ValueError):
        return False


def _without_telemetry() -> None:
    """Switch off wandb's reports about itself: with its service away they keep Python from ending for minutes."""
    with contextlib.suppress(ImportError, AttributeError):
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


def _service() -> SplitResult:
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def _check_reachable() -> None:
    """Raise OSError when nobody listens; behind a proxy that cannot be told from here.

    wandb itself would try again and again, and leave a process that does so when it is given up.
    """
    service = _service()
    if proxy_bypass(service.hostname or "") or service.scheme not in getproxies():
        port = service.port or (80 if service.scheme == "http" else 443)
        socket.create_connection((service.hostname, port), timeout=HURRIED_SECONDS).close()


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
