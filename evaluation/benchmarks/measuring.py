"""Processor time of this process and of its Java children, several ways in turn."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runner import track


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing a piece of work.

    Attributes:
        name: of the way.
        run: data -> figures; what is timed.
        share: how much of the whole work it does; its times are divided by it.
    """

    name: str
    run: Callable[[Any], Any]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """Medians over the turns, seconds: processor time of Python, of its child processes, and wall time."""

    name: str
    cpu_seconds: float
    java_seconds: float
    wall_seconds: float

    @property
    def total(self) -> float:
        """Processor time of both."""
        return self.cpu_seconds + self.java_seconds


def measure_in_turn(
    ways: Sequence[Way], make_data: Callable[[int], Any], *, repeats: int
) -> tuple[list[Measurement], list[list[Any]]]:
    """Run every way once to warm up, then in turns.

    Args:
        ways: what is compared.
        make_data: turn -> the data of all ways in that turn, made outside the clock.
        repeats: timed turns.

    Returns:
        A measurement per way, and per turn, the warm-up included, the figures of all ways.
    """
    times: list[list[tuple[float, float, float]]] = [[] for _ in ways]
    figures = []
    for turn in track(range(repeats + 1), "measuring"):
        data, found = make_data(turn), []
        for place, way in enumerate(ways):
            gc.collect()
            before = _clocks()
            found.append(way.run(data))
            spent = tuple((now - then) / way.share for now, then in zip(_clocks(), before, strict=True))
            if turn:
                times[place].append(spent)
        figures.append(found)
    medians = [tuple(statistics.median(kind) for kind in zip(*each, strict=True)) for each in times]
    return [Measurement(way.name, *median) for way, median in zip(ways, medians, strict=True)], figures


def _clocks() -> tuple[float, float, float]:
    return time.process_time(), java_seconds(), time.perf_counter()


def java_seconds() -> float:
    """Return the processor time of child processes: of those that ended and, on Linux, of those that run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(map(_own_seconds, Path("/proc").glob("[0-9]*/stat")))


def _own_seconds(path: Path) -> float:
    """Return the processor time of a process if it is our child."""
    try:
        values = path.read_text(encoding="utf-8").rpartition(")")[2].split()  # the name before may hold anything
    except OSError:  # it has just ended
        return 0.0
    parent, user, system = int(values[1]), int(values[11]), int(values[12])
    return (user + system) / os.sysconf("SC_CLK_TCK") if parent == os.getpid() else 0.0
