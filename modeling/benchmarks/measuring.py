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
        peak_gb: the most memory the process has held so far.
        parts: the same by part; what no part did is in the totals only.
    """

    name: str
    tflop: float
    cpu_seconds: float
    wall_seconds: float
    peak_gb: float
    parts: dict[str, Cost] = field(default_factory=dict)


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
    """Run once to count (which also warms up), then ``repeats`` times to take the time, without the counter.

    Args:
        name: of the measurement.
        run: the work.
        meter: its parts.
        repeats: 0 takes the time of the counted run, for work too long to be done twice.

    Returns:
        The measurement and the result of the counted run.
    """
    counter = FlopCounterMode(display=False)
    times = [_Clock()]
    with counter, meter.on(counter) as parts, times[0]:
        result = run()
    operations = {part: cost.tflop for part, cost in parts.items()}
    for _ in range(repeats):
        times.append(_Clock())
        with meter.on(None) as parts, times[-1]:
            run()
    timed = times[1:] or times
    return (
        Measurement(
            name,
            counter.get_total_flops() / 1e12,
            statistics.median(clock.cpu_seconds for clock in timed),
            statistics.median(clock.wall_seconds for clock in timed),
            peak_gb(),
            {part: Cost(operations[part], cost.cpu_seconds, cost.calls) for part, cost in parts.items()},
        ),
        result,
    )


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
