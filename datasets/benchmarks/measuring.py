"""Epochs of several loaders in turns: time, bytes and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .memory import Memory, bytes_of, children, cpu_seconds, memory_of


@dataclass(slots=True)
class Way:
    """A loader to measure.

    Attributes:
        name: of the loader.
        epochs: the batches of epoch after epoch, out of processes that live over all of them.
        receive: what is done with each batch.
    """

    name: str
    epochs: Iterator[Iterator[Any]]
    receive: Callable[[Any], Any] = bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """What loading took.

    Attributes:
        name: of the loader.
        images_per_second: median over the epochs after the first.
        cpu_per_image: processor seconds of all processes, median over the same epochs; steadier on a busy machine.
        batch_bytes: bytes of a batch's tensors, mean over an epoch.
        started: memory of the loader processes after their first batch.
        memory: the same after each epoch.
    """

    name: str
    images_per_second: float
    cpu_per_image: float
    batch_bytes: float
    started: Memory
    memory: list[Memory]

    def growth(self, first: int = 0) -> float:
        """Return by which share the processes' own memory grew from the end of an epoch to the end of the last."""
        return self.memory[-1].own / self.memory[first].own - 1


@dataclass(slots=True)
class _Found:
    pids: set[int] = field(default_factory=set)
    started: Memory | None = None
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    weight: float = 0.0


def measure_in_turn(ways: Sequence[Way], *, images: int, batch: int, epochs: int) -> list[Measurement]:
    """Run an epoch of every loader in turn, ``epochs`` times.

    Args:
        ways: the loaders.
        images: of an epoch.
        batch: images in a batch.
        epochs: the first warms up.
    """
    found = [_Found() for _ in ways]
    for _ in range(epochs):
        for way, values in zip(ways, found, strict=True):
            _run_epoch(way, values)
    return [
        Measurement(
            way.name,
            images / statistics.median(values.seconds[1:] or values.seconds),
            statistics.median(values.cpu[1:] or values.cpu) / images,
            values.weight * batch / images,
            values.started,
            values.memory,
        )
        for way, values in zip(ways, found, strict=True)
    ]


def _run_epoch(way: Way, found: _Found) -> None:
    before, weight, started, cpu = children(), 0, time.perf_counter(), cpu_seconds(found.pids)
    for loaded in next(way.epochs):
        if found.started is None:
            found.pids = children() - before
            found.started = memory_of(found.pids)
        way.receive(loaded)
        weight += bytes_of(loaded)
    found.seconds.append(time.perf_counter() - started)
    found.cpu.append(cpu_seconds(found.pids) - cpu)
    found.memory.append(memory_of(found.pids))
    found.weight = weight
