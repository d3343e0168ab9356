"""Inputs of multi-scale deformable attention with known answers, for the compiled libraries' own interface.

Loaded by the fixture ``msda`` of conftest.py, for kernels emulated on the processor and for those on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from locap.ops.ms_deform_attn.library import Library
from locap.ops.ms_deform_attn.reference import ms_deform_attn

LEVELS = ((9, 10), (5, 5), (1, 1), (3, 2), (2, 1))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@dataclass
class Case:
    """Inputs of one call. ``points`` are locations or offsets, ``shares`` weights or logits."""

    shapes: tuple[tuple[int, int], ...]
    value: Tensor
    points: Tensor
    shares: Tensor
    reference: Tensor | None
    grad_out: Tensor

    @property
    def sizes(self) -> list[int]:
        return [side for shape in self.shapes for side in shape]

    def to(self, device: str) -> Case:
        moved = {name: None if x is None else x.to(device) for name, x in vars(self).items() if name != "shapes"}
        return replace(self, **moved)

    def inputs(self) -> list[Tensor]:
        return [self.value, self.points, self.shares, *([] if self.reference is None else [self.reference])]

    def expected(self) -> list[Tensor]:
        """The output and the three derivatives, in double precision, of the inputs as rounded."""
        leaves = [x.double().requires_grad_() for x in (self.value, self.points, self.shares)]
        value, points, shares = leaves
        if self.reference is not None:
            points, shares = locate(points, self.reference.double(), self.shapes), shares.flatten(3).softmax(-1)
        out = ms_deform_attn(value, self.shapes, points, shares.view(points.shape[:-1]))
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad_out.double().flatten(2))]

    def found(self, kernels: Library, deterministic: bool = False) -> list[Tensor]:
        wide = torch.promote_types(self.value.dtype, torch.float32)
        out = torch.full_like(self.grad_out, torch.nan)
        grads = [torch.full_like(x, torch.nan, memory_format=torch.contiguous_format) for x in self.inputs()[:3]]
        grads[0] = grads[0].to(wide)
        prefix = "" if self.reference is None else "fused_"
        options = {"reference": self.reference, "deterministic": deterministic}
        count = self.points.shape[4]
        kernels.run(prefix + "forward", [*self.inputs(), out], self.sizes, count, **options)
        kernels.run(prefix + "backward", [*self.inputs(), self.grad_out, *grads], self.sizes, count, **options)
        return [out.flatten(2), *grads]


def locate(offsets: Tensor, reference: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Locations of offsets (N, Q, M, L, K, 2) around points or boxes (N, Q, L, 2 or 4)."""
    at = reference[:, :, None, :, None]
    if at.shape[-1] == 4:
        return at[..., :2] + offsets / offsets.shape[4] * at[..., 2:] * 0.5
    return at + offsets / torch.tensor([(w, h) for h, w in shapes], dtype=at.dtype, device=at.device)[:, None]


def away_from_edges(pixels: Tensor) -> Tensor:
    """Move positions (in pixels, less a half) so that none is within 0.05 of an integer, where derivatives jump."""
    return pixels.floor() + (pixels - pixels.floor()).clamp(0.05, 0.95)


def draw(
    dtype: torch.dtype,
    dim: int,
    points: int,
    levels: int,
    *,
    queries: int | None = 7,
    reference_dim: int = 0,
    points_dtype: torch.dtype | None = None,
) -> Case:
    """Two images, two heads; a part of the samples outside. ``queries`` None: as many as tokens."""
    torch.manual_seed(0)
    shapes = LEVELS[:levels]
    tokens = sum(height * width for height, width in shapes)
    queries = tokens if queries is None else queries
    wide = torch.promote_types(dtype, torch.float32)
    value = torch.randn(2, tokens, 2, dim, dtype=torch.float64).to(dtype)
    grad_out = torch.randn(2, queries, 2, dim, dtype=torch.float64).to(dtype)
    sides = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)[:, None]
    layout = (2, queries, 2, levels, points)
    pixels = away_from_edges(torch.rand(*layout, 2, dtype=torch.float64) * (sides + 4) - 2.5)
    logits = torch.randn(layout, dtype=torch.float64)
    if not reference_dim:
        weights = logits.flatten(3).softmax(-1).view(layout).to(wide)
        return Case(shapes, value, ((pixels + 0.5) / sides).to(wide), weights, None, grad_out)
    reference = torch.rand(2, queries, levels, reference_dim, dtype=torch.float64).to(wide)
    reference = (reference * 64).round() / 64  # so that offsets of 16 bits reach the drawn pixels nearly
    anchor = reference.double()[:, :, None, :, None]
    offsets = pixels + 0.5 - anchor[..., :2] * sides
    if reference_dim == 4:
        reference[..., 2:] = 0.5
        offsets = offsets / sides * points / 0.25
    points_dtype = points_dtype or dtype
    return Case(shapes, value, offsets.to(points_dtype), logits.to(points_dtype), reference, grad_out)


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """Every tensor within its own type's tolerance, relative to its largest magnitude."""
    for name, ours, theirs in zip(("out", "value", "points", "shares"), found, expected, strict=True):
        error = (ours.double() - theirs).abs().max() / (theirs.abs().max().item() or 1)
        assert error <= TOLERANCE[ours.dtype], f"{name}: {error:.2e}"
