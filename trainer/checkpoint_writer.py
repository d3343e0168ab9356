"""Who writes a checkpoint, the caller or a thread, and what becomes of errors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ..utils.errors import CheckpointError
from .checkpoint_commit import DiskError, disk_reason

PATIENCE = 3  # checkpoints in a row that the disk may refuse before training stops
_log = logging.getLogger(__name__)


class Writer:
    """Does one job after the other, here or in a thread; an interpreter that ends waits for the thread.

    Args:
        ahead: in a thread.

    Attributes:
        failures: of the disk, in a row.
    """

    def __init__(self, ahead: bool = False) -> None:
        self.ahead, self.failures = ahead, 0
        self._done = threading.Event()
        self._done.set()
        self._error: CheckpointError | None = None  # of the last job, until it is raised

    def ready(self) -> None:
        """Return when the last job is done.

        Raises:
            CheckpointError: it failed, and not merely because of a disk that may yet recover.
        """
        self.join()
        if self.failures >= PATIENCE or not isinstance(self._error, DiskError):
            self._raise()

    def start(self, job: Callable[[], None], final: Path) -> None:
        """Do a job, or begin to, of making the checkpoint ``final``.

        Raises:
            CheckpointError: as `ready`, when the job is done here.
        """
        if self.ahead:
            done = threading.Event()
            threading.Thread(target=self._do_ahead, args=(job, final, done), name="checkpoint").start()
            self._done = done
            return
        self._do(job, final)
        self.ready()

    def wait(self) -> None:
        """Return when the last job is done.

        Raises:
            CheckpointError: it failed.
        """
        self.join()
        self._raise()

    def join(self) -> None:
        """Return when the last job is done, however."""
        self._done.wait()  # of a thread whose join is interrupted, Python believes that it has ended

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do_ahead(self, job: Callable[[], None], final: Path, done: threading.Event) -> None:
        try:
            self._do(job, final)
        finally:
            done.set()

    def _do(self, job: Callable[[], None], final: Path) -> None:
        self._error = None
        try:
            job()
            self.failures = 0
        except Exception as err:
            self._error = _explained(err, final)
            if isinstance(self._error, DiskError):
                self.failures += 1
                self._warn()
            elif not self.ahead:
                self._error = None
                raise

    def _warn(self) -> None:
        left = PATIENCE - self.failures
        more = f"Training goes on, until {left} more fail." if left > 0 else "That is one too many."
        _log.warning("%s\n%s", self._error, more)


def _explained(err: Exception, final: Path) -> CheckpointError:
    """Return what the user is told."""
    if (reason := disk_reason(err)) is not None:
        fix = "free disk space; what was saved before is intact"
        error: CheckpointError = DiskError(f"The checkpoint could not be written: {reason}.", where=str(final), fix=fix)
    elif isinstance(err, CheckpointError):
        return err
    else:
        what = f"The checkpoint could not be written: {type(err).__name__}: {err}"
        error = CheckpointError(what, where=str(final))
    error.__cause__ = err
    return error
