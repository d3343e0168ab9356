"""The reference of multi-scale deformable attention against a loop, its derivative and another library."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from locap.modeling.pixel_decoders.deformable import DeformableAttention
from locap.ops.ms_deform_attn.reference import ms_deform_attn

SHAPES = [(3, 5), (2, 2)]


def draw(dtype: torch.dtype = torch.float64, queries: int = 3, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Value (batch, 19, 2, 3), locations in part outside the maps, weights that sum to one."""
    torch.manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, tokens, 2, 3, dtype=dtype)
    locations = torch.rand(batch, queries, 2, len(SHAPES), 4, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.randn(batch, queries, 2, len(SHAPES) * 4, dtype=dtype).softmax(-1).unflatten(-1, (-1, 4))
    return value, locations, weights


def by_hand(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, dim, dtype=value.dtype)
    for b, q, h, p in torch.cartesian_prod(*(torch.arange(n) for n in (batch, queries, heads, points))).tolist():
        start = 0
        for level, (height, width) in enumerate(SHAPES):
            x, y = (locations[b, q, h, level, p] * torch.tensor([width, height]) - 0.5).tolist()
            for column in (math.floor(x), math.floor(x) + 1):
                for row in (math.floor(y), math.floor(y) + 1):
                    if 0 <= column < width and 0 <= row < height:
                        share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, h, level, p]
                        out[b, q, h] += share * value[b, start + row * width + column, h]
            start += height * width
    return out.flatten(2)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_a_loop_over_pixels(dtype: torch.dtype, tolerance: float, batch: int):
    inputs = draw(dtype, batch=batch)
    found = ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(found, by_hand(*inputs), atol=tolerance, rtol=0)


def test_derivatives_of_values_locations_and_weights():
    value, locations, weights = (x.requires_grad_() for x in draw(queries=2, batch=3))
    assert torch.autograd.gradcheck(lambda v, loc, w: ms_deform_attn(v, SHAPES, loc, w), (value, locations, weights))


def test_equals_transformers():
    module = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    if not hasattr(module, "MultiScaleDeformableAttention"):
        pytest.skip("transformers has no MultiScaleDeformableAttention")
    value, locations, weights = draw(torch.float32)
    theirs = module.MultiScaleDeformableAttention()(
        value, torch.tensor(SHAPES), SHAPES, torch.tensor([0, 15]), locations, weights, 64
    )
    torch.testing.assert_close(ms_deform_attn(value, SHAPES, locations, weights), theirs, atol=1e-5, rtol=1e-5)


def test_empty_query_and_level_by_level_weights():
    value, locations, weights = draw()
    assert ms_deform_attn(value, SHAPES, locations[:, :0], weights[:, :0]).shape == (2, 0, 6)
    only_first = torch.cat((weights[:, :, :, :1], torch.zeros_like(weights[:, :, :, 1:])), 3)
    other_second = torch.cat((value[:, :15], torch.randn_like(value[:, 15:])), 1)
    torch.testing.assert_close(
        ms_deform_attn(value, SHAPES, locations, only_first),
        ms_deform_attn(other_second, SHAPES, locations, only_first),
    )


def test_offsets_start_as_rings_around_the_reference():
    attention = DeformableAttention(32, num_levels=3, num_heads=4, num_points=4)
    bias = attention.sampling_offsets.bias.view(4, 3, 4, 2)
    for head, (x, y) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for point in range(4):
            expected = torch.tensor([x, y], dtype=torch.float32) * (point + 1)
            torch.testing.assert_close(bias[head, :, point], expected.expand(3, 2), atol=1e-5, rtol=0)
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
