"""Progress on a terminal as a bar with throughput and time left; elsewhere as a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .logging import terminal

_log = logging.getLogger(__name__)
_LINE_SECONDS = 20.0
_MUCH_WAITING = 0.1  # share of the time from which waiting for data is worth a word


class ProgressBar:
    """Counts to ``total``.

    Args:
        title: what is counted.
        total: how many.
        done: how many already are.
        enabled: only one rank shows progress.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, enabled: bool = True) -> None:
        self.title, self.total, self.done = title, total, done
        self._enabled, self._started, self._start_done = enabled, time.monotonic(), done
        self._last_line = self._started
        self._bar: Progress | None = None
        console = terminal()
        if enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more; ``note`` is shown beside the bar."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif self._enabled and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            _log.info("%s %d/%d, %s left. %s", self.title, self.done, self.total, self._time_left(), note)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Make room on the terminal for another bar."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _time_left(self) -> str:
        counted = max(self.done - self._start_done, 1)
        seconds = int((time.monotonic() - self._started) / counted * (self.total - self.done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def training_note(loss: float, images_per_second: float, data_wait: float, mfu: float | None = None) -> str:
    """Return what stands beside the bar of training; a long wait for data is said, see `meter.Timing`."""
    parts = [f"loss {loss:.3f}", f"{images_per_second:.1f} images/s"]
    if data_wait > _MUCH_WAITING:
        parts.append(f"{data_wait:.0%} waiting for data")
    if mfu is not None:
        parts.append(f"{mfu:.0%} of peak")
    return "  ".join(parts)
