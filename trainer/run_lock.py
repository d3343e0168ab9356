"""One run folder, one run: a lock that the system releases however the process ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..utils.errors import CheckpointError
from ..utils.files import write_text
from .distributed import World, on_main

_BEAT, _ALIVE = 20.0, 60.0  # seconds
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_log = logging.getLogger(__name__)


class RunLock:
    """Holds ``run.lock`` until `release`; ``run.json`` says who does.

    On a file system without locks the age of ``run.json`` decides instead: its owner touches it every 20 seconds.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: another process works in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._owner, self._ended = folder / "run.json", threading.Event()
        self._lock = FileLock(folder / "run.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._occupied(folder) from None
        except (NotImplementedError, OSError) as err:  # filelock's own word for it, or the system's
            if isinstance(err, OSError) and err.errno not in _NO_LOCKS:
                raise CheckpointError(f"The run's folder cannot be locked: {err.strerror}.", where=str(folder)) from err
            self._without_locks(folder, err)
        write_text(self._owner, json.dumps(_identity()) + "\n")

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others work here."""
        self._ended.set()
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    def _without_locks(self, folder: Path, err: Exception) -> None:
        if self._owner.exists() and time.time() - self._owner.stat().st_mtime < _ALIVE:
            raise self._occupied(folder)
        _log.warning(
            "%s cannot be locked (%s): that it is used once is only checked by the age of run.json", folder, err
        )
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            if self._owner.exists():
                os.utime(self._owner)

    def _occupied(self, folder: Path) -> CheckpointError:
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            value = f"process {owner['pid']} on {owner['host']}, since {owner['started']}: {owner['command']}"
        except (OSError, ValueError, KeyError, TypeError):
            value = "a process that has not said who it is"
        return CheckpointError(
            "Another run works in this folder.",
            where=str(folder),
            value=value,
            allowed="one run at a time",
            fix="wait for it or stop it; a new run without RESUME gets a folder of its own",
        )


def lock_run(folder: Path, world: World) -> AbstractContextManager:
    """Lock a run's folder on rank 0, for all ranks; raises as `RunLock` does, on all of them."""
    locks: list[RunLock] = []

    def lock() -> str:
        locks.append(RunLock(folder))
        return ""

    on_main(lock)
    return locks[0] if locks else nullcontext()


def _identity() -> dict[str, object]:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "command": command}
