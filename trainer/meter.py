"""Where the time goes: images per second, waiting for data, the parts of a step, memory, and the share of the peak.

    meter = Meter(device)
    with meter.waiting():
        batch = next(stream)
    meter.count(len(batch), everywhere=images_of_all_ranks)
    with meter.forward(): ...
    with meter.backward(): ...
    with meter.optimizing(): ...
    with meter.aside(): ...        # evaluation, checkpoint: in no share and in no speed
    timing = meter.take(world)     # at reports only; starts anew

On a GPU the host runs ahead of the device, so its clock says little. There both ends of a phase are events recorded on
the stream; they are read at reports, so that the host never waits for the device between two. Waiting for data then
counts as far as the device idled meanwhile, which is what it costs.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .distributed import World

PHASES = ("data", "forward", "backward", "optimizer")  # what is left of the time is "other"
ASIDE = "aside"
MANY_EVENTS = 256  # pairs under way from which those that have happened are read, without waiting


@dataclass(frozen=True, slots=True)
class Timing:
    """What happened between two reports; what was aside is left out of all but ``seconds``.

    Attributes:
        images_per_second: over all ranks.
        data_wait: share of the time spent waiting for data, 0 to 1.
        shares: share of each phase, "other" among them; together 1.
        seconds: all of it, on the host's clock, with what was aside.
        memory_gb: the most that was used so far, 10^9 bytes: of the GPU's by tensors, without one of the process'
            resident memory. None where the system does not tell.
        tflops: 10^12 operations per second and device, an estimate (``trainer/flops.py``); None: not counted.
        mfu: its share of the device's peak ("model FLOPs utilisation"), 0 to 1; None: unknown.
    """

    images_per_second: float
    data_wait: float
    shares: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    memory_gb: float | None = None
    tflops: float | None = None
    mfu: float | None = None


class Meter:
    """Measures the phases of steps between reports.

    The methods that return a context manager cost about a microsecond on a CPU. A phase is not entered within itself.

    Args:
        device: where the steps are computed.
        flops_per_image: forward and backward; may be set later, once it has been counted.
        peak_tflops: what the device can do at most, see `flops.device_peak`.
        make_event: makes the stream's events; None: CUDA's on a GPU, the host's clock elsewhere.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        flops_per_image: float | None = None,
        peak_tflops: float | None = None,
        make_event: Callable[[], Any] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.flops_per_image, self.peak_tflops = flops_per_image, peak_tflops
        if make_event is None and self.device.type == "cuda":
            make_event = _timed_event
        self._clock = _HostClock() if make_event is None else _StreamClock(make_event)
        self._spans = {phase: _Span(self._clock, phase) for phase in (*PHASES, ASIDE)}
        self._start()

    def waiting(self) -> _Span:
        """Time spent until a batch is there."""
        return self._spans["data"]

    def forward(self) -> _Span:
        """Model and losses."""
        return self._spans["forward"]

    def backward(self) -> _Span:
        """Gradients, and their exchange between ranks as far as it is not hidden."""
        return self._spans["backward"]

    def optimizing(self) -> _Span:
        """Clipping and the optimiser's step."""
        return self._spans["optimizer"]

    def aside(self) -> _Span:
        """Evaluations, checkpoints: not part of training's speed."""
        return self._spans[ASIDE]

    def count(self, images: int, everywhere: int | None = None) -> None:
        """Count the images of a batch: this rank's, and all ranks' together where the caller knows."""
        self._images += images
        self._everywhere = None if everywhere is None or self._everywhere is None else self._everywhere + everywhere

    def take(self, world: World, sum_numbers: Callable[[list[float]], list[float]] | None = None) -> Timing:
        """Return what happened since the last time, and start anew.

        Args:
            world: this process among its peers.
            sum_numbers: sums over ranks; every rank must take then. The images are exact with it and the shares are
                means over the ranks. Without it the shares are this rank's, and the images are exact where every
                `count` knew those of all ranks, else this rank's times the number of ranks.
        """
        seconds, spent = self._clock.read()
        elapsed = max(seconds - spent.get(ASIDE, 0.0), 1e-9)
        images, everywhere = self._images, self._everywhere
        shares = {phase: spent.get(phase, 0.0) / elapsed for phase in PHASES}
        if sum_numbers is not None:
            total, *values = sum_numbers([float(images), *shares.values()])
            everywhere = round(total)
            shares = {phase: value / world.size for phase, value in zip(shares, values, strict=True)}
        tflops = None if self.flops_per_image is None else self.flops_per_image * images / elapsed / 1e12
        on_host = time.monotonic() - self._since
        self._start()
        return Timing(
            images_per_second=(images * world.size if everywhere is None else everywhere) / elapsed,
            data_wait=shares["data"],
            shares=shares | {"other": max(0.0, 1 - sum(shares.values()))},
            seconds=on_host,
            memory_gb=peak_memory(self.device),
            tflops=tflops,
            mfu=tflops / self.peak_tflops if tflops is not None and self.peak_tflops else None,
        )

    def _start(self) -> None:
        self._images, self._everywhere = 0, 0
        self._since = time.monotonic()
        self._clock.restart()


class _Span:
    """A phase as a context manager that is used again and again."""

    __slots__ = ("_add", "_begun", "_phase", "_stamp")

    def __init__(self, clock: _HostClock | _StreamClock, phase: str) -> None:
        self._stamp, self._add, self._phase = clock.stamp, clock.add, phase

    def __enter__(self) -> None:
        self._begun = self._stamp()

    def __exit__(self, *_: object) -> None:
        self._add(self._phase, self._begun, self._stamp())


class _HostClock:
    """Seconds of this process."""

    stamp = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def add(self, phase: str, begun: float, ended: float) -> None:
        self._spent[phase] = self._spent.get(phase, 0.0) + ended - begun

    def restart(self) -> None:
        self._spent = {}
        self._since = time.monotonic()

    def read(self) -> tuple[float, Mapping[str, float]]:
        """Return all seconds, and those of each phase, since `restart`."""
        return time.monotonic() - self._since, self._spent


class _StreamClock:
    """Seconds of a stream, between events recorded on it; events are used again once they have been read."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        self._make_event = make_event
        self._free: list[Any] = []
        self._under_way: deque[tuple[str, Any, Any]] = deque()
        self._spent: dict[str, float] = {}
        self._since: Any = None

    def stamp(self) -> Any:
        event = self._free.pop() if self._free else self._make_event()
        event.record()
        return event

    def add(self, phase: str, begun: Any, ended: Any) -> None:
        self._under_way.append((phase, begun, ended))
        if len(self._under_way) > MANY_EVENTS:
            while self._under_way and self._under_way[0][2].query():
                self._read_first()

    def restart(self) -> None:
        if self._since is not None:
            self._free.append(self._since)
        self._spent = {}
        self._since = self.stamp()

    def read(self) -> tuple[float, Mapping[str, float]]:
        """Wait for the stream; return as `_HostClock.read`."""
        now = self.stamp()
        now.synchronize()
        while self._under_way:
            self._read_first()
        seconds = self._since.elapsed_time(now) / 1000
        self._free.append(now)
        return seconds, self._spent

    def _read_first(self) -> None:
        phase, begun, ended = self._under_way.popleft()
        self._spent[phase] = self._spent.get(phase, 0.0) + begun.elapsed_time(ended) / 1000
        self._free += [begun, ended]


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def peak_memory(device: torch.device | str) -> float | None:
    """Return the most memory in use so far, 10^9 bytes: tensors' on a GPU, else the process'; None where unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
