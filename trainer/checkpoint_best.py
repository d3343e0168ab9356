"""Which checkpoints are the best: a figure for each step that was evaluated."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from ..utils import untrusted
from ..utils.errors import LocapError
from ..utils.files import write_json

_log = logging.getLogger(__name__)


class BestFigures:
    """The figures of a run by step, kept in a file.

    Args:
        path: ``best.json``; a damaged one is passed over with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.higher_is_better = path, True
        self._figures: dict[int, float] = {}
        if path.exists():
            try:
                self._read()
            except (LocapError, OSError, KeyError, TypeError, ValueError, AttributeError):
                self._figures, self.higher_is_better = {}, True
                _log.warning("%s is damaged; the best checkpoints are told from the next evaluations.", path)

    def _read(self) -> None:
        body = untrusted.read_json(self.path)
        self.higher_is_better = bool(body["higher_is_better"])
        self._figures = {int(step): float(value) for step, value in body["figures"].items()}

    def note(self, step: int, value: float, higher_is_better: bool) -> None:
        """Remember a step's figure; one that is not finite is never the best."""
        if not math.isfinite(value):
            _log.warning("The figure of step %d is %s; it is not counted among the best.", step, value)
            return
        self._figures = {**self._figures, step: float(value)}  # a new one: a thread may read the old one
        self.higher_is_better = higher_is_better
        self._write()

    def forget_after(self, step: int) -> None:
        """Drop the figures of later steps, which the run leaves behind."""
        if any(each > step for each in self._figures):
            self._figures = {each: value for each, value in self._figures.items() if each <= step}
            self._write()

    def best(self, steps: Iterable[int], count: int) -> list[int]:
        """Return the best of these steps, the best first; of equal ones the later."""
        figures, sign = self._figures, 1 if self.higher_is_better else -1
        known = [step for step in steps if step in figures]
        return sorted(known, key=lambda step: (sign * figures[step], step), reverse=True)[:count]

    def _write(self) -> None:
        figures = {str(step): self._figures[step] for step in sorted(self._figures)}
        try:
            write_json(self.path, {"higher_is_better": self.higher_is_better, "figures": figures}, indent=1)
        except OSError as err:
            _log.warning("%s could not be written: %s.", self.path, err.strerror or err)
