"""Where training writes its numbers: JSON lines always, TensorBoard and Weights & Biases when asked for.

A line of ``metrics.jsonl`` has ``event``, ``step`` and the event's values. Of "train": ``loss``, ``losses`` by name,
``lr`` (the largest of all groups), ``lrs`` (each distinct one, see `log_values.learning_rates`), ``grad_norm``, and how
fast it was (``trainer/meter.py``). Of "evaluate": ``metrics`` by name; and ``pictures``, name -> path in the run's
folder.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..utils import untrusted
from ..utils.fault_points import reach
from ..utils.files import disk_errors, write_text
from .log_values import finite, flat
from .wandb_log import Wandb

_log = logging.getLogger(__name__)
MOST_PENDING = 10_000  # lines kept for a disk that is full
SHOWN_IDS = 32


class Tracker(Protocol):
    """One place numbers go to."""

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Store one event: "train" or "evaluate"."""

    def pictures(self, event: str, step: int, paths: Mapping[str, Path]) -> None:
        """Store pictures, name -> PNG file in the run's folder."""

    def close(self) -> None:
        """Flush and end."""


class JsonLines:
    """``metrics.jsonl``: one JSON object a line, readable while the run goes on.

    Every line goes to the file at once. One that cannot be written, on a full disk say, is kept and written before the
    next; what was written of it is taken back, so that no line is torn.

    Args:
        path: of the file; its folder is the run's.
        resume_step: a resumed run's step: later lines are dropped, it will repeat them.

    Raises:
        CheckpointError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        self.path = path
        with disk_errors("The metrics cannot be written", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume_step is not None and path.exists():
                _cut_after(path, resume_step)
            self._file = path.open("ab", buffering=0)
            self._whole = self._file.seek(0, os.SEEK_END)  # bytes of whole lines
        self._pending: deque[bytes] = deque(maxlen=MOST_PENDING)

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`; NaN and infinity become null."""
        line = json.dumps({"event": event, "step": step, **finite(values)}, default=str) + "\n"
        failed_before = bool(self._pending)
        self._pending.append(line.encode())
        try:
            reach("metrics.write")
            self._write_pending()
        except OSError as err:
            if not failed_before:
                _log.warning(
                    "%s cannot be written: %s. Training goes on; its lines are kept and tried again.", self.path, err
                )
        else:
            if failed_before:
                _log.warning("%s is written again.", self.path)

    def pictures(self, event: str, step: int, paths: Mapping[str, Path]) -> None:
        """See `Tracker`; the paths are relative to the run's folder."""
        self.log(event, step, {"pictures": {name: _relative(path, self.path.parent) for name, path in paths.items()}})

    def close(self) -> None:
        """See `Tracker`."""
        try:
            self._write_pending()
        except OSError as err:
            _log.warning("%s lacks its last %d line(s): %s.", self.path, len(self._pending), err)
        self._file.close()

    def _write_pending(self) -> None:
        if self._pending and os.fstat(self._file.fileno()).st_size > self._whole:
            os.ftruncate(self._file.fileno(), self._whole)  # half a line, of an attempt that failed
        while self._pending:
            line = self._pending[0]
            written = 0
            try:
                while written < len(line):  # a disk that becomes full takes a part, and fails at the rest
                    written += self._file.write(line[written:])
            except OSError:
                os.ftruncate(self._file.fileno(), self._whole)
                raise
            self._whole += len(line)
            self._pending.popleft()


class TensorBoard:
    """Event files in ``<run>/tensorboard``; a resumed run hides the points that it will repeat."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=None if resume_step is None else resume_step + 1)

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for name, value in flat(values):
            self._writer.add_scalar(f"{event}/{name}", value, step)

    def pictures(self, event: str, step: int, paths: Mapping[str, Path]) -> None:
        """See `Tracker`."""
        for name, path in paths.items():
            self._writer.add_image(f"{event}/{name}", untrusted.read_image(path), step, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Trackers:
    """All of them as one; one that fails is dropped with a warning, the others go on."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)

    def add(self, name: str, make: Callable[[], Tracker]) -> None:
        """Add one more; where it cannot be made there is a warning in its place."""
        try:
            self._trackers.append(make())
        except Exception as err:  # a folder that cannot be written, a package that is missing
            _log.warning("%s cannot be used: %s. Training goes on without it.", name, err)

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.log(event, step, values))

    def pictures(self, event: str, step: int, paths: Mapping[str, Path]) -> None:
        """See `Tracker`."""
        if paths:
            self._each(lambda tracker: tracker.pictures(event, step, paths))

    def close(self) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as err:  # a full disk, a service that is down: no log is worth the run
                _log.warning("%s stops: %s. Training goes on.", type(tracker).__name__, err)
                self._trackers.remove(tracker)


@dataclass(frozen=True, slots=True)
class WandbRun:
    """What Weights & Biases is told about a run."""

    project: str
    name: str
    config: Mapping[str, Any]


def open_trackers(
    folder: Path, *, resume_step: int | None = None, tensorboard: bool = True, wandb: WandbRun | None = None
) -> Trackers:
    """Open everything that a run's numbers go to; only ``metrics.jsonl`` is indispensable.

    Raises:
        CheckpointError: the run's folder cannot be written.
    """
    trackers = Trackers([JsonLines(folder / "metrics.jsonl", resume_step=resume_step)])
    if tensorboard:
        trackers.add("TensorBoard", lambda: TensorBoard(folder / "tensorboard", resume_step=resume_step))
    if wandb is not None:
        trackers.add(
            "Weights & Biases",
            lambda: Wandb(folder, project=wandb.project, name=wandb.name, config=wandb.config),
        )
    return trackers


class SpikeWatch:
    """Warns of a loss far above the usual, and says which images it came from.

    Args:
        window: losses whose median is the usual.
        factor: how many times that is too much.
        at_least: losses that must be known first.
    """

    def __init__(self, window: int = 100, factor: float = 10.0, at_least: int = 10) -> None:
        self.factor, self.at_least = factor, at_least
        self._losses: deque[float] = deque(maxlen=window)

    def add(self, step: int, loss: float, ids: Sequence[Any]) -> bool:
        """Look at one step's loss; returns whether it is a spike.

        Args:
            step: of the optimiser.
            loss: over all ranks; one that is not finite is no spike, the loop deals with it.
            ids: of this rank's images.
        """
        if not math.isfinite(loss):
            return False
        usual = statistics.median(self._losses) if len(self._losses) >= self.at_least else math.inf
        self._losses.append(loss)
        if not 0 < usual * self.factor < loss:
            return False
        shown = ", ".join(map(str, ids[:SHOWN_IDS])) + (f" and {len(ids) - SHOWN_IDS} more" * (len(ids) > SHOWN_IDS))
        _log.warning("step %d: the loss is %.4g, lately %.4g (median). Images: %s", step, loss, usual, shown)
        return True


def _relative(path: Path, folder: Path) -> str:
    path = Path(path)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()).as_posix()


def _cut_after(path: Path, step: int) -> None:
    """Drop events of steps that a resumed run will repeat, and a torn last line."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))
