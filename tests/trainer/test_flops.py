"""Operations of a step: the right number, and nothing else changes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional

from locap.ops.ms_deform_attn import ms_deform_attn
from locap.trainer.distributed import World
from locap.trainer.flops import PEAKS, SAMPLE, counted_flops, device_peak, known_peak
from locap.trainer.loop import TrainingLoop
from locap.trainer.optimizer import Schedule


def test_products_and_convolutions_count_two_per_multiplication():
    linear, conv = nn.Linear(3, 5), nn.Conv2d(3, 4, 3, padding=1, bias=False)
    with counted_flops() as flops:
        linear(torch.ones(7, 3))
    assert flops.total == 2 * 7 * 3 * 5
    with counted_flops() as flops:
        linear(torch.ones(7, 3, requires_grad=True)).sum().backward()
    assert flops.total == 3 * 2 * 7 * 3 * 5, "backward makes two products of each"
    with counted_flops() as flops:
        conv(torch.ones(2, 3, 8, 8))
    assert flops.total == 2 * 2 * 64 * 3 * 9 * 4


def test_attention_is_counted():
    query = torch.ones(2, 4, 6, 8)
    with counted_flops() as flops:
        functional.scaled_dot_product_attention(query, query, query)
    assert flops.total == 2 * (2 * 2 * 4 * 6 * 6 * 8)


def test_our_operator_is_counted():
    value, locations = torch.rand(2, 20, 4, 8, requires_grad=True), torch.rand(2, 5, 4, 2, 3, 2)
    try:
        ms_deform_attn(value, [(4, 4), (2, 2)], locations, torch.rand(2, 5, 4, 2, 3), backend="cpu")
    except Exception as err:
        pytest.skip(f"the kernel cannot be built here: {err}")
    with counted_flops() as flops:
        out = ms_deform_attn(value, [(4, 4), (2, 2)], locations, torch.rand(2, 5, 4, 2, 3), backend="cpu")
    forward = SAMPLE * 2 * 5 * 4 * 2 * 3 * 8
    assert flops.total == forward
    with counted_flops() as flops:
        out.sum().backward()
    assert flops.total == 2 * forward


def trained(counted: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Train a model with every kind of layer for three steps; the first may be counted."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 8, 3, padding=1),
            "norm": nn.BatchNorm2d(8),
            "layer": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True),
            "out": nn.Linear(8, 3),
        }
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step() -> None:
        tokens = model["norm"](model["conv"](torch.rand(2, 3, 5, 5))).flatten(2).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model["out"](model["layer"](tokens)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for index in range(3):
        if counted and index == 0:
            with counted_flops() as flops:
                step()
            assert flops.total > 0
        else:
            step()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    every = torch.nn.modules.module
    return model.state_dict(), hooks + len(every._global_forward_hooks) + len(every._global_forward_pre_hooks)


def test_counting_changes_no_number_and_leaves_no_hook():
    (plain, hooks_before), (counted, hooks) = trained(False), trained(True)
    assert all(torch.equal(plain[name], counted[name]) for name in plain)
    assert hooks == hooks_before == 0


def test_a_counted_step_of_a_system_is_the_same_step(build, make_batch):
    weights, counted = [], []
    for count in (False, True):
        model = build(seed=1)
        optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-3, "initial_lr": 1e-3}])
        loop = TrainingLoop(model, optimizer, Schedule("WarmupMultiStepLR", 10), world=World(), seed=3, clip_norm=0.1)
        for step in range(2):
            with counted_flops() if count and step == 0 else nullcontext() as flops:
                loop.step([make_batch([2, 3], seed=step)])
            counted += [flops.total] if flops else []
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert counted[0] > 1e7


@pytest.mark.parametrize(
    ("name", "half", "fp32", "tf32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5, 156),
        ("NVIDIA A100 80GB PCIe", 312, 19.5, 156),
        ("NVIDIA H100 80GB HBM3", 989, 67, 494),
        ("NVIDIA H100 PCIe", 756, 51, 378),
        ("NVIDIA H200", 989, 67, 494),
        ("NVIDIA L40S", 362, 91.6, 183),
        ("NVIDIA L4", 121, 30.3, 60),
        ("NVIDIA GeForce RTX 3090", 71, 35.6, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA RTX A6000", 154.8, 38.7, 77.4),
        ("NVIDIA RTX 6000 Ada Generation", 364, 91.1, 182),
        ("NVIDIA RTX A1000", None, None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
    ],
)
def test_peaks_of_known_gpus(name, half, fp32, tf32):
    assert known_peak(name, "bf16") == known_peak(name, "fp16") == half
    assert known_peak(name, "fp32") == fp32
    assert known_peak(name, "fp32", tf32=True) == tf32


def test_volta_has_no_bf16_and_no_tf32():
    name = "Tesla V100-SXM2-32GB"
    assert (known_peak(name, "fp16"), known_peak(name, "bf16"), known_peak(name, "fp32", tf32=True)) == (
        125,
        None,
        15.7,
    )


def test_every_entry_can_be_found():
    for words, peaks in PEAKS.items():
        assert known_peak(f"NVIDIA {' '.join(words)}", "fp16") == peaks[0], words


def test_the_configured_peak_holds_and_a_cpu_has_none():
    assert device_peak("cpu", "fp32") is None
    assert device_peak("cpu", "fp32", 0.5) == 0.5
