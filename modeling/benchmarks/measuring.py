"""Counted operations, processor time, wall time and memory of a piece of work, part by part."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch.utils.flop_counter import FlopCounterMode

Parts = Mapping[str, tuple[object, Sequence[str]]]  # name -> module and the methods whose work is counted as its


@dataclass(slots=True)
class Cost:
    """What something took: operations (a multiply-add counts as two), processor seconds of all threads, and calls."""

    tflop: float = 0.0
    cpu_seconds: float = 0.0
    calls: int = 0


@dataclass(slots=True)
class Measurement:
    """The cost of one run.

    Attributes:
        name: of what was run.
        tflop: matrix products, convolutions and attention; element-wise work is not counted.
        cpu_seconds, wall_seconds: medians over the timed runs.
        peak_gb: the most memory the process had held when its first run ended.
        parts: the same by part; what no part did is in the totals only.
    """

    name: str
    tflop: float
    cpu_seconds: float
    wall_seconds: float
    peak_gb: float
    parts: dict[str, Cost] = field(default_factory=dict)

    def multiply(self, factor: float) -> None:
        """Scale what a sample took to what everything takes."""
        for cost in (self, *self.parts.values()):
            cost.tflop, cost.cpu_seconds = cost.tflop * factor, cost.cpu_seconds * factor
        self.wall_seconds *= factor


class PartMeter:
    """Adds up what the methods of some modules take, while it is switched on; a call inside another counts once."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.costs = parts, {name: Cost() for name in parts}
        self._counter: FlopCounterMode | None = None
        self._inside = False

    @contextmanager
    def on(self, counter: FlopCounterMode | None) -> Iterator[dict[str, Cost]]:
        """Measure from zero; without a counter operations stay uncounted."""
        self._counter, self.costs = counter, {name: Cost() for name in self.parts}
        for name, (module, methods) in self.parts.items():
            for method in methods:
                setattr(module, method, self._measured(name, getattr(module, method)))
        try:
            yield self.costs
        finally:
            for module, methods in self.parts.values():
                for method in methods:
                    delattr(module, method)  # the class's own is visible again

    def _measured(self, name: str, method: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            if self._inside:
                return method(*args, **kwargs)
            self._inside, before, started = True, self._operations(), time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self._inside, cost = False, self.costs[name]
                cost.cpu_seconds += time.process_time() - started
                cost.tflop += (self._operations() - before) / 1e12
                cost.calls += 1

        return wrapper

    def _operations(self) -> int:
        return self._counter.get_total_flops() if self._counter else 0


def measure(name: str, run: Callable[[], object], meter: PartMeter, *, repeats: int) -> tuple[Measurement, object]:
    """Measure one piece of work, see `measure_in_turn`; returns its result as well."""
    (measured,) = measure_in_turn([Work(name, run, meter)], repeats=repeats)
    return measured


@dataclass
class Work:
    """Something to measure.

    Attributes:
        name: of the measurement.
        run: does it.
        meter: of its parts.
    """

    name: str
    run: Callable[[], object]
    meter: PartMeter


def measure_in_turn(works: Sequence[Work], *, repeats: int) -> list[tuple[Measurement, object]]:
    """Run each once to count (which also warms up), then in turns to take the time, without the counter.

    Turns let whatever else the machine does meet all of them alike.

    Args:
        works: what is compared.
        repeats: turns; 0 takes the time of the counted run, for work too long to be done twice.

    Returns:
        Each measurement (medians; the memory's peak until its counted run ended) and the result of the counted run.
    """
    counted = [_count(work) for work in works]
    turns = [[_time(work) for work in works] for _ in range(repeats)]
    return [(_summary(count, [turn[index] for turn in turns]), count.result) for index, count in enumerate(counted)]


@dataclass
class _Counted:
    name: str
    tflop: float
    clock: _Clock
    parts: dict[str, Cost]
    peak_gb: float
    result: object


def _count(work: Work) -> _Counted:
    counter, clock = FlopCounterMode(display=False), _Clock()
    with counter, work.meter.on(counter) as parts, clock:
        result = work.run()
    return _Counted(work.name, counter.get_total_flops() / 1e12, clock, parts, peak_gb(), result)


def _time(work: Work) -> tuple[_Clock, dict[str, Cost]]:
    clock = _Clock()
    with work.meter.on(None) as parts, clock:
        work.run()
    return clock, parts


def _summary(counted: _Counted, timed: Sequence[tuple[_Clock, dict[str, Cost]]]) -> Measurement:
    timed = timed or [(counted.clock, counted.parts)]
    parts = {
        part: Cost(cost.tflop, statistics.median(parts[part].cpu_seconds for _, parts in timed), cost.calls)
        for part, cost in counted.parts.items()
    }
    cpu, wall = (
        statistics.median(getattr(clock, kind) for clock, _ in timed) for kind in ("cpu_seconds", "wall_seconds")
    )
    return Measurement(counted.name, counted.tflop, cpu, wall, counted.peak_gb, parts)


class _Clock:
    """Processor and wall seconds of a ``with`` block."""

    def __enter__(self) -> _Clock:
        self.cpu_seconds, self.wall_seconds = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.cpu_seconds = time.process_time() - self.cpu_seconds
        self.wall_seconds = time.perf_counter() - self.wall_seconds


def peak_gb() -> float:
    """Return the largest resident memory of this process so far, 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
