"""Memory and processor time of loader processes, and what a batch weighs on its way from one."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Memory of some processes, 10^6 bytes.

    Attributes:
        own: pages that no other process has (USS): what a process costs on top of those it was forked from.
        share: those, and of shared pages each process's share (PSS).
    """

    own: float
    share: float


def memory_of(pids: Iterable[int]) -> Memory:
    """Return the memory of processes, summed up; on Linux."""
    each = [_memory_of(pid) for pid in pids]
    return Memory(sum(memory.own for memory in each), sum(memory.share for memory in each))


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of this process and of others, on Linux."""
    total = time.process_time()
    for pid in pids:
        values = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )  # the name before may hold anything
        total += (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children() -> set[int]:
    """Return the processes that this one started, loader processes among them."""
    return {process.pid for process in multiprocessing.active_children()}


def _memory_of(pid: int) -> Memory:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    found = {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in re.findall(r"(\w+): +(\d+) kB", text)}
    return Memory(found["Private_Clean"] + found["Private_Dirty"], found["Pss"])


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in dataclasses, mappings and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if dataclasses.is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(bytes_of, value))
    return 0
