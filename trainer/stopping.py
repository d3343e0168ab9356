"""Requests to stop: a signal, a file named STOP in the run's folder, or MAX_HOURS.

A request is only noted. The loop tells all ranks with the counts of the next step, so that all finish the same step,
save, and leave with exit code 75. mpirun hands on SIGUSR1 (after SIGTERM it leaves a fifth of a second); torchrun and
srun hand on SIGTERM.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM", "SIGINT") if hasattr(signal, name)]
STOP_FILE = "STOP"
_SECONDS_BETWEEN_LOOKS = 1.0


class StopRequests:
    """Watches for requests inside a ``with`` block. A second Ctrl-C stops at once.

    Args:
        folder: of the run; where the file STOP is looked for. None: nowhere, as on all ranks but one.
        max_hours: of this process; 0: no limit.
    """

    def __init__(self, folder: Path | None = None, max_hours: float = 0.0) -> None:
        self.reason: str | None = None
        self._file = folder / STOP_FILE if folder else None
        self._end = time.monotonic() + 3600 * max_hours if max_hours else float("inf")
        self._looked = 0.0
        self._before: dict[int, object] = {}

    def requested(self) -> bool:
        """Return whether to stop; ``reason`` says why. Cheap enough for every step."""
        now = time.monotonic()
        if self.reason is None and now >= self._end:
            self.reason = "MAX_HOURS have passed"
        if self.reason is None and self._file and now - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            if self._file.exists():
                self.reason = f"the file {self._file} is there"
        return self.reason is not None

    def obeyed(self) -> None:
        """Take the file away, so that the next start does not stop at once."""
        if self._file:
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # nobody else may
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = self.reason or f"signal {signal.Signals(number).name}"
