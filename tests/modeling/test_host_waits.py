"""A training step lets the host wait for the device once, in matching; what else a system waits for is listed here.

Everything here lies on the CPU, so what would make the host wait for a GPU is counted (see `host_waits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from locap.datasets.batches import Batch
from locap.modeling import pix2cap
from locap.modeling.benchmarks.host_waits import HostWaits, count_host_waits
from locap.modeling.benchmarks.training import MOVES, FusedOptimizer
from locap.modeling.pix2cap import Pix2Cap


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
    build: Callable[..., Pix2Cap], make_batch: Callable[..., Batch], keys, aids: bool
):
    model, batch = build(*keys, aids=aids).train(), make_batch([3, 0, 9])
    model(batch)  # fills the table of class texts
    optimizer = FusedOptimizer(model, **MOVES)
    with HostWaits() as waits, waits.set_apart(pix2cap, "assign"):
        losses = model(batch, step_seed=1)
        sum(term.weight * term.total for term in losses.values()).backward()
        optimizer.step()
    assert not waits.found
    assert waits.apart == [Counter(cpu=1)]


@pytest.mark.parametrize("aids", [False, True])
@pytest.mark.parametrize("task", ["trace", "region", "refer", "caption", "detect"])
def test_prompted_tasks(tiny_pixelllm: ModuleType, task: str, aids: bool):
    model, batch = tiny_pixelllm.build(aids=aids).train(), tiny_pixelllm.Drawn().lessons(task, task)
    optimizer = FusedOptimizer(model, **MOVES)
    with HostWaits() as waits:
        losses = model(batch, step_seed=1)
        sum(term.weight * term.total for term in losses.values()).backward()
        optimizer.step()
    print(task, aids, waits.found)


def test_the_counter_counts():
    x = torch.arange(4.0)
    with HostWaits() as waits:
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
    assert count_host_waits(lambda: (x.sum().item(), float(x[0]), x.nonzero(), x.cpu())) == 4
