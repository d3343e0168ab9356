"""How many floating-point operations a step takes, and how many the device could do: an estimate of its use.

Counted are matrix products, convolutions, attention and multi-scale deformable attention, forward and backward, a
multiplication and an addition as two. Not counted are normalisation, activation functions, softmax, interpolation,
matching, losses other than their matrix products, the optimiser, and what a compiled block or a Triton kernel hides.
Activation checkpointing computes forward passes again; these count, so with it the share is of what the device does
rather than of what the model needs. Batches differ in regions and words, and one of them stands for all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..ops import ms_deform_attn as _registers_the_operators  # noqa: F401

SAMPLE = 10  # operations per channel of a sample: four products with corners, their weights, the sum, the weight
HALF, TF32, FP32 = range(3)
PEAKS = {  # words of a GPU's name: dense TFLOPS in (bf16 and fp16 with float32 sums, tf32, fp32), from data sheets
    ("b200",): (2250, 1100, 75),
    ("h200", "nvl"): (835, 417, 60),
    ("h200",): (989, 494, 67),
    ("gh200",): (989, 494, 67),
    ("h100", "nvl"): (835, 417, 60),
    ("h100", "pcie"): (756, 378, 51),
    ("h100",): (989, 494, 67),
    ("h800", "pcie"): (756, 378, 51),
    ("h800",): (989, 494, 67),
    ("h20",): (148, 74, 44),
    ("a100",): (312, 156, 19.5),
    ("a800",): (312, 156, 19.5),
    ("a40",): (149.7, 74.8, 37.4),
    ("a30",): (165, 82, 10.3),
    ("a10g",): (70, 35, 35),
    ("a10",): (125, 62.5, 31.2),
    ("l40s",): (362, 183, 91.6),
    ("l40",): (181, 90.5, 90.5),
    ("l4",): (121, 60, 30.3),
    ("v100", "pcie"): (112, None, 14),
    ("v100",): (125, None, 15.7),
    ("v100s",): (130, None, 16.4),
    ("t4",): (65, None, 8.1),
    ("rtx", "6000", "ada"): (364, 182, 91.1),
    ("rtx", "a6000"): (154.8, 77.4, 38.7),
    ("rtx", "a5000"): (111.1, 55.6, 27.8),
    ("rtx", "5090"): (209.5, 104.8, 104.8),
    ("rtx", "4090"): (165.2, 82.6, 82.6),
    ("rtx", "3090", "ti"): (80, 40, 40),
    ("rtx", "3090"): (71, 35.6, 35.6),
    ("mi300x",): (1307, 654, 163),
}
WITHOUT_BF16 = {"v100", "v100s", "t4"}
SLOWER = {"laptop", "mobile", "max", "mig", "d"}  # of such a name only a part of the figures holds


@dataclass(slots=True)
class Flops:
    """Operations counted so far."""

    total: float = 0.0


@contextmanager
def counted_flops() -> Iterator[Flops]:
    """Count the operations of what is done in the block; ``total`` is there when it ends.

    The block may be a real training step: nothing is computed twice or otherwise, random numbers stay the same, and no
    hook is left. It runs slower, so it is not one to measure. Compiled blocks cannot be looked into.

    Example:
        ::

            with counted_flops() as flops:
                loop.step(window)
            meter.flops_per_image = flops.total / images
    """
    counted = Flops()
    # newer versions of torch would not run a Triton kernel that they cannot count
    skip = {"skip_unsupported": True} if "skip_unsupported" in inspect.signature(FlopCounterMode).parameters else {}
    counter = FlopCounterMode(display=False, custom_mapping=_formulas(), **skip)
    with counter:
        yield counted
    counted.total = float(counter.get_total_flops())


def _formulas() -> dict:
    """Return operator -> its formula; the operators are those of ``ops/ms_deform_attn``."""
    ops = torch.ops.locap
    forward, fused = (ops.ms_deform_attn, ops.ms_deform_attn_fused)
    backward = (ops.ms_deform_attn_backward, ops.ms_deform_attn_fused_backward)
    return {forward: _sampled, fused: _sampled} | dict.fromkeys(backward, _sampled_backward)


def _sampled(value: Sequence[int], shapes: Sequence[int], locations: Sequence[int], *_, **__) -> int:
    """(B, S, H, D) values, (B, N, H, L, K, 2) locations: `SAMPLE` per query, head, level, point and channel."""
    batch, queries, heads, levels, points, _two = locations
    return SAMPLE * batch * queries * heads * levels * points * value[-1]


def _sampled_backward(value: Sequence[int], shapes: Sequence[int], locations: Sequence[int], *_, **__) -> int:
    """Gradients of values and of places and weights: as much again for each."""
    return 2 * _sampled(value, shapes, locations)


def device_peak(device: torch.device | str, precision: str, given: float = 0.0) -> float | None:
    """Return what a device can do at most, 10^12 operations per second.

    Args:
        device: a CPU has no known peak.
        precision: "bf16", "fp16" or "fp32"; the latter as ``torch.backends.cuda.matmul.allow_tf32`` says.
        given: PEAK_TFLOPS; other than 0 it is the answer.
    """
    if given:
        return float(given)
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return known_peak(torch.cuda.get_device_name(device), precision, tf32=torch.backends.cuda.matmul.allow_tf32)


def known_peak(name: str, precision: str, *, tf32: bool = False) -> float | None:
    """Return a GPU's peak by its name, as `device_peak`; None for one that is not in `PEAKS`."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & SLOWER or (precision == "bf16" and words & WITHOUT_BF16):
        return None
    found = next((peaks for key, peaks in PEAKS.items() if words.issuperset(key)), None)
    if found is None:
        return None
    kind = HALF if precision in ("bf16", "fp16") else TF32 if tf32 and found[TF32] else FP32
    return float(found[kind])
