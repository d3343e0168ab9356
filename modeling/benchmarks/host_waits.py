"""Counts what makes the host wait for the device, by name.

On the CPU nothing waits, so what *would* make the host wait for a GPU is counted: reading a number, results whose size
depends on values (boolean indices, nonzero), copies to the host, and blocking copies to the device. What C++ code reads
from a tensor on the CPU, a fused optimiser's step count for instance, is not seen there; on a GPU CUDA itself tells.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
VALUE_DEPENDENT = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount),
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
HOST_READS = ("cpu", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "new_tensor")


class HostWaits(TorchDispatchMode):
    """Counts in a ``with`` block, on the CPU.

    Attributes:
        found: how often, by what.
        apart: what the functions given to `set_apart` did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.apart: list[Counter[str]] = []
        self._originals: dict[str, Callable] = {}

    def __enter__(self) -> HostWaits:
        self._originals = {name: getattr(Tensor, name) for name in (*HOST_READS, "to")}
        for name in HOST_READS:
            setattr(Tensor, name, self._counted(name, self._originals[name]))
        Tensor.to = self._to(self._originals["to"])
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for name, original in self._originals.items():
            setattr(Tensor, name, original)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        indices = args[1] if packet in INDEXING else ()
        if packet in VALUE_DEPENDENT or any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices):
            self.found[str(packet)] += 1
        return function(*args, **(kwargs or {}))

    @contextmanager
    def set_apart(self, owner: Any, name: str) -> Iterator[None]:
        """Count each call of a function of a module or class by itself, in ``apart``."""
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            before = self.found.copy()
            try:
                return original(*args, **kwargs)
            finally:
                self.apart.append(self.found - before)
                self.found = before

        setattr(owner, name, wrapper)
        try:
            yield
        finally:
            setattr(owner, name, original)

    def _counted(self, name: str, original: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            self.found[name] += 1
            return original(*args, **kwargs)

        return wrapper

    def _to(self, original: Callable) -> Callable:
        def wrapper(tensor: Tensor, *args, **kwargs):
            device = kwargs.get("device", args[0] if args else None)
            elsewhere = isinstance(device, (torch.device, str)) and not kwargs.get("non_blocking")
            if elsewhere and not sys._getframe(1).f_globals["__name__"].startswith("torch."):  # which stays where it is
                self.found["blocking to"] += 1
            return original(tensor, *args, **kwargs)

        return wrapper


def count_host_waits(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Run once and return how often the host waited, or on the CPU would have."""
    if torch.device(device).type == "cuda":
        return _count_on_gpu(run)
    with HostWaits() as waits:
        run()
    numbers = waits.found["aten._local_scalar_dense"]  # a number read is seen twice, as the method and as what it calls
    named = sum(waits.found[name] for name in ("item", "__bool__", "__int__", "__float__", "__index__"))
    return waits.found.total() - min(numbers, named)


def _count_on_gpu(run: Callable[[], object]) -> int:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("synchroniz" in str(warning.message) for warning in told)
