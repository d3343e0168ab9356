"""A training step of the deformable pixel decoder's encoder, with compiled kernels and with their reference."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from ..pixel_decoders.deformable import DeformableEncoderLayer, pixel_centres
from .measuring import Measurement, PartMeter, measure
from .report import Report

STRIDES = (32, 16, 8)
HEADS, FFN_DIM = 8, 1024


class Step:
    """Forward and backward through the layers, as every published model builds them, on drawn tokens.

    Args:
        side: of the image, pixels.
        images: per batch.
        dim: width; a head has an eighth of it.
        layers: six in every published model.
        backend: of the deformable attention.
    """

    def __init__(self, side: int, images: int, dim: int, layers: int, backend: str) -> None:
        torch.manual_seed(0)
        options = {"dropout": 0.0, "num_levels": len(STRIDES), "backend": backend}
        self.layers = torch.nn.ModuleList(DeformableEncoderLayer(dim, HEADS, FFN_DIM, **options) for _ in range(layers))
        for layer in self.layers:
            torch.nn.init.normal_(layer.attn.sampling_offsets.weight, std=0.05)
            torch.nn.init.normal_(layer.attn.attention_weights.weight, std=0.05)
        self.shapes = [(side // stride, side // stride) for stride in STRIDES]
        self.reference = torch.cat([pixel_centres(*shape, torch.device("cpu")) for shape in self.shapes])[None, :, None]
        tokens = self.reference.shape[1]
        self.tokens, self.position = torch.randn(images, tokens, dim), torch.randn(1, tokens, dim)

    def __call__(self) -> Tensor:
        """Return the output."""
        self.layers.zero_grad(set_to_none=True)
        x = self.tokens.clone().requires_grad_()
        for layer in self.layers:
            x = layer(x, self.position, self.reference, self.shapes)
        x.square().mean().backward()
        return x.detach()


def deformable_encoder(*, side: int, images: int, dim: int, layers: int, repeats: int, original: bool) -> Report:
    """Train a step with each backend, in turn.

    Args:
        side, images, dim, layers: of the `Step`.
        repeats: rounds.
        original: whether to measure the reference too.
    """
    backends = ["auto", "reference"] if original else ["auto"]
    steps = {backend: Step(side, images, dim, layers, backend) for backend in backends}
    found: dict[str, list[Measurement]] = {backend: [] for backend in backends}
    outputs: dict[str, Tensor] = {}
    for attempt in range(max(repeats, 1) + 1):
        for backend, step in steps.items():
            measurement, outputs[backend] = measure(backend, step, PartMeter({}), repeats=0)
            if attempt:  # the first only warms up
                found[backend].append(measurement)
    middle = [_median(measurements) for measurements in found.values()]
    report = Report("deformable_encoder", middle, {"side": side, "images": images, "dim": dim, "layers": layers})
    if original:
        ours, slow = outputs.values()
        report.facts["greatest difference"] = ((ours - slow).abs().max() / slow.abs().max()).item()
        report.ratios = {"CPU seconds": middle[1].cpu_seconds / middle[0].cpu_seconds}
    return report


def _median(measurements: list[Measurement]) -> Measurement:
    middle = statistics.median_low(x.cpu_seconds for x in measurements)
    return next(x for x in measurements if x.cpu_seconds == middle)
