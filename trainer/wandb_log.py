"""Weights & Biases, whose service may be missing, down, slow or hanging: training never waits for it, nor is asked."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from netrc import netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..utils.files import write_text
from .log_values import flat

_log = logging.getLogger(__name__)
START_SECONDS = 7.0  # for the service to answer; training goes on meanwhile
END_SECONDS = 9.5  # for it to take the rest, of a run that ends during the start too
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
        self._ended, self._lost = threading.Event(), 0
        threading.Thread(target=self._work, name="wandb", daemon=True).start()

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        numbers = {f"{event}/{name}": value for name, value in flat(values)}
        self._put(lambda run: run.log(numbers, step=step))

    def pictures(self, event: str, step: int, paths: Mapping[str, Path]) -> None:
        """See `Tracker`."""

        def send(run: Any) -> None:
            import wandb

            run.log({f"{event}/{name}": wandb.Image(str(path)) for name, path in paths.items()}, step=step)

        self._put(send)

    def close(self) -> None:
        """See `Tracker`."""
        deadline = time.monotonic() + END_SECONDS
        while not self._ended.is_set() and not self._ask_to_end() and time.monotonic() < deadline:
            self._ended.wait(0.05)
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            _log.warning(
                "Weights & Biases does not take the rest of the run in time; `wandb sync %s` sends what was stored.",
                self.folder / "wandb" / "run-*",
            )

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
        except BaseException as err:  # not installed, died; SystemExit in a thread would be silent
            _log.warning("Weights & Biases stops: %s. Training goes on; metrics.jsonl has all numbers.", _one_line(err))
        self._ended.set()

    def _start(self) -> Any:
        """Return the service's run: online if that works within the deadline, else offline."""
        import wandb

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
            return _within(START_SECONDS, lambda: wandb.init(mode=mode, id=identity, resume="allow", **arguments))
        except Exception as err:
            if mode != "online":
                raise
            _log.warning("Weights & Biases cannot be reached (%s); this run is stored offline.", _one_line(err))
        other = f"{identity}-{uuid.uuid4().hex[:4]}"  # the service still holds the first one's id
        return _within(START_SECONDS, lambda: wandb.init(mode="offline", id=other, **arguments))

    def _identity(self) -> str:
        path = self.folder / "wandb_id.txt"
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:8])
        return path.read_text(encoding="utf-8").strip()


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return what a function returns, or raise what it raises.

    Raises:
        TimeoutError: it takes longer. It is left alone then, and a run that it brings later is ended.
    """
    done: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)
    gone = threading.Event()

    def call() -> None:
        try:
            result, error = function(), None
        except BaseException as err:
            result, error = None, err
        if gone.is_set() and hasattr(result, "finish"):
            result.finish()
        done.put((result, error))

    threading.Thread(target=call, name="wandb-start", daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        gone.set()
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None
    if error is not None:
        raise error if isinstance(error, Exception) else RuntimeError(repr(error))
    return result


def _has_login() -> bool:
    """Return whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc(os.environ.get("NETRC")).hosts
    except (OSError, ValueError):
        return False


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
