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


# What a prompted system waits for in a step, at most. On the host's own data, where nothing waits: which rows teach
# (nonzero, cpu), how many of each image (bincount, tolist, repeat_interleave), rows with masks (nonzero). On the
# device's: which words are spoken (nonzero), masks that teach (nonzero), regions per level of the pyramid (tolist).
PROMPTED = Counter({"cpu": 2, "tolist": 2, "aten.nonzero": 5, "aten.bincount": 1, "aten.repeat_interleave": 2})
COPIES = ("blocking to", "new_tensor")  # of a few numbers to the device, for which no result is waited for
# What is sampled for the second stage depends on overlaps: three choices of each of two images. Proposals that are not
# finite are left out just before the search for overlapping ones, which waits itself: two choices of each.
SAMPLES = {"detect": Counter({"aten.index": 10})}


@pytest.mark.parametrize("task", ["trace", "region", "refer", "caption", "detect"])
def test_prompted_tasks_wait_for_no_more_than_is_listed(tiny_pixelllm: ModuleType, task: str):
    model, batch = tiny_pixelllm.build().train(), tiny_pixelllm.Drawn().lessons(task, task)
    optimizer = FusedOptimizer(model, **MOVES)
    with HostWaits() as waits:
        losses = model(batch, step_seed=1)
        sum(term.weight * term.total for term in losses.values()).backward()
        optimizer.step()
    for name in COPIES:
        waits.found.pop(name, None)
    assert not waits.found - (PROMPTED + SAMPLES.get(task, Counter()))


def test_what_the_detector_learns_from_is_counted_on_the_host(tiny_pixelllm: ModuleType):
    model, batch = tiny_pixelllm.build().train(), tiny_pixelllm.Drawn().lessons("detect", "region")
    expected, moved = model.counts(batch), batch.to("meta")
    assert expected["peaks"] > 0
    assert model.counts(moved) == expected  # reads nothing that was moved


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
