"""A training step lets the host wait for the device once, in matching.

Everything here lies on the CPU, so what would make the host wait for a GPU is counted: reading a number, results whose
size depends on values (boolean indices, nonzero), copies to the host, and blocking copies to the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from locap.datasets.batches import Batch
from locap.modeling import pix2cap
from locap.modeling.pix2cap import Pix2Cap

aten = torch.ops.aten
VALUE_DEPENDENT = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount),
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
HOST_READS = ("cpu", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "new_tensor")


class HostWaits(TorchDispatchMode):
    """Counts what would make the host wait, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        for name in HOST_READS:
            monkeypatch.setattr(Tensor, name, self._counted(name, getattr(Tensor, name)))
        monkeypatch.setattr(Tensor, "to", self._to(Tensor.to))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        indices = args[1] if packet in INDEXING else ()
        if packet in VALUE_DEPENDENT or any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices):
            self.found[str(packet)] += 1
        return function(*args, **(kwargs or {}))

    def _counted(self, name: str, original: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            self.found[name] += 1
            return original(*args, **kwargs)

        return wrapper

    def _to(self, original: Callable) -> Callable:
        def wrapper(tensor: Tensor, *args, **kwargs):
            device = kwargs.get("device", args[0] if args else None)
            if isinstance(device, (torch.device, str)) and not kwargs.get("non_blocking"):
                self.found["blocking to"] += 1
            return original(tensor, *args, **kwargs)

        return wrapper


@pytest.mark.parametrize(
    ("keys", "aids"),
    [
        (("MODEL.DECODER.FROZEX", "true", "MODEL.MASK_HEAD_ENABLED", "true"), False),
        (("MODEL.DECODER.FROZEX", "false"), False),
        (("MODEL.DECODER.DENSECAPTION_MATCH", "hungarian", "MODEL.ENCODER.NAME", "transformer_encoder_deform"), False),
        ((), True),
    ],
    ids=["frozen", "all trained", "deformable, hungarian", "aids"],
)
def test_the_host_waits_once_per_step(
    build: Callable[..., Pix2Cap], make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch, keys, aids: bool
):
    model, batch = build(*keys, aids=aids).train(), make_batch([3, 0, 9])
    model(batch)  # fills the table of class texts
    during_matching: list[Counter[str]] = []
    with HostWaits(monkeypatch) as waits, monkeypatch.context() as patch:
        original = pix2cap.assign

        def assign(costs):
            before = waits.found.copy()
            try:
                return original(costs)
            finally:
                during_matching.append(waits.found - before)
                waits.found = before

        patch.setattr(pix2cap, "assign", assign)
        losses = model(batch, step_seed=1)
        sum(term.weight * term.total for term in losses.values()).backward()
    assert not waits.found
    assert during_matching == [Counter(cpu=1)]


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch):
    x = torch.arange(4.0)
    with HostWaits(monkeypatch) as waits:
        x[x > 1] = torch.ones(2)
        x[x > 1]
        x.nonzero()
        bool(x.any())
        x.tolist()
        x.to("cpu")
        x.to("cpu", non_blocking=True)
        x[torch.tensor([1, 2])]
    found = waits.found
    assert found["aten.index"] == found["aten.nonzero"] == found["tolist"] == found["blocking to"] == 1
    assert found["aten.index_put_"] == found["__bool__"] == 1
