"""Multi-scale deformable attention for callers: shapes and types are checked, and the backend is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference as plain
from .backends import choose
from .library import DTYPES, MAX_LEVELS
from .operators import attend, attend_fused, sum_type


def ms_deform_attn(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Sum bilinear samples of the value maps, weighted per query, head, level and point (Deformable DETR, equation 3).

    Sums are formed in float32, or float64 if the values are; locations and weights are used in that type.

    Args:
        value: (B, S, H, D), the levels' tokens one after the other, row by row; float32, float16, bfloat16 or float64.
        shapes: (height, width) of each of the L levels; S is the sum of their products.
        locations: (B, N, H, L, K, 2), (x, y) in units of the map: 0 is its left or upper edge, 1 the other one.
        weights: (B, N, H, L, K).
        backend: ``auto``, ``cuda``, ``cpu`` or ``reference``; see `backends.choose`.

    Returns:
        (B, N, H * D) in the type of value. Samples outside a map count as zero.

    Raises:
        ValueError: the shapes contradict each other.
        UsageError, MissingDependencyError: the backend is unknown or cannot run here.
    """
    levels, points = _check(value, shapes, locations)
    _expect("weights", weights, (*locations.shape[:3], levels, points))
    exact = sum_type(value.dtype)
    if _backend(backend, value, levels) == "reference":
        return _reference(value, shapes, locations, weights)
    return attend(value, _flat(shapes), locations.to(exact), weights.to(exact))


def ms_deform_attn_fused(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    offsets: Tensor,
    logits: Tensor,
    reference: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """As `ms_deform_attn`, with softmax and locations inside: the way to keep offsets and logits in 16 bits.

    Args:
        value, shapes, backend: as there.
        offsets: (B, N, H, L, K, 2) from the reference, in pixels of the level; with boxes, in units of half a box / K.
        logits: (B, N, H, L, K); a softmax over the joint L * K axis makes the weights.
        reference: (B or 1, N, L or 1, 2): (x, y), or (..., 4): (centre x, centre y, width, height), in units of the
            map; float32, or float64 if the values are.

    Returns:
        (B, N, H * D) in the type of value.

    Raises:
        ValueError, UsageError, MissingDependencyError: as there.
    """
    levels, points = _check(value, shapes, offsets)
    _expect("logits", logits, (*offsets.shape[:3], levels, points))
    if reference.dim() != 4 or reference.shape[-1] not in (2, 4):
        raise ValueError(f"reference is {tuple(reference.shape)}, not (B, N, L, 2) or (B, N, L, 4)")
    exact = sum_type(value.dtype)
    reference = reference.to(exact)
    chosen = _backend(backend, value, levels)
    if chosen == "reference" or (reference.requires_grad and torch.is_grad_enabled()):  # the kernel takes it as given
        locations = plain.sampling_locations(offsets.to(exact), reference, shapes)
        weights = logits.to(exact).flatten(-2).softmax(-1).unflatten(-1, (levels, points))
        return ms_deform_attn(value, shapes, locations, weights, backend=backend)
    if not offsets.dtype == logits.dtype == value.dtype:
        offsets, logits = offsets.to(exact), logits.to(exact)
    return attend_fused(value, _flat(shapes), offsets, logits, reference)


def _reference(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Run the reference with the kernels' rules of precision."""
    device = value.device.type
    if torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        value = value.to(torch.get_autocast_dtype(device))
    exact = sum_type(value.dtype)
    with torch.autocast(device, enabled=False):
        found = plain.ms_deform_attn(value.to(exact), shapes, locations.to(exact), weights.to(exact))
    return found.to(value.dtype)


def _check(value: Tensor, shapes: Sequence[tuple[int, int]], points: Tensor) -> tuple[int, int]:
    """Return L and K."""
    if value.dim() != 4 or points.dim() != 6:
        raise ValueError(f"value is {tuple(value.shape)}, not (B, S, H, D), or {tuple(points.shape)} has not 6 axes")
    tokens = sum(height * width for height, width in shapes)
    if tokens != value.shape[1]:
        raise ValueError(f"the levels {list(shapes)} have {tokens} tokens, value has {value.shape[1]}")
    batch, _, heads, _ = value.shape
    _expect("locations or offsets", points, (batch, points.shape[1], heads, len(shapes), points.shape[4], 2))
    return len(shapes), points.shape[4]


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: {tuple(tensor.shape)}, not {tuple(shape)}")


def _backend(backend: str, value: Tensor, levels: int) -> str:
    chosen = choose(backend, value.device.type)
    if backend == "auto" and (value.dtype not in DTYPES or levels > MAX_LEVELS):
        return "reference"  # a type or a number of levels that no kernel has
    return chosen


def _flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for shape in shapes for size in shape]
