"""Attention, padding, positions, gradient scaling, pooling under masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from locap.modeling.layers.attention import MultiHeadAttention, attend
from locap.modeling.layers.conv import ConvNorm, group_norm
from locap.modeling.layers.gradient import scale_gradient
from locap.modeling.layers.images import ImageBatch
from locap.modeling.layers.mask_pooling import mask_geometry, mask_pool
from locap.modeling.layers.position_encoding import sine_position_map
from locap.modeling.layers.transformer import CrossAttentionLayer, EncoderLayer
from locap.modeling.region_encoders.region_tokens import KINDS, RegionTokens


@pytest.mark.parametrize("case", ["self", "cross", "blocked", "causal"])
def test_attention_takes_the_weights_of_torch_and_gives_its_result(case: str):
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    if case in ("self", "causal"):
        query = key = value = torch.randn(2, 5, 16)
    blocked = torch.rand(2, 1, 5, 7) < 0.5
    blocked[..., 0] = False
    wanted = {
        "blocked": {"attn_mask": blocked.expand(-1, 4, -1, -1).flatten(0, 1)},
        "causal": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
    }.get(case, {})
    given = {"blocked": {"blocked": blocked}, "causal": {"is_causal": True}}.get(case, {})
    torch.testing.assert_close(ours(query, key, value, **given), theirs(query, key, value, **wanted)[0])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layers_agree_with_torch(pre_norm: bool):
    torch.manual_seed(0)
    ours = EncoderLayer(16, 4, 24, pre_norm=pre_norm)
    theirs = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm)
    names = {"attention.attn": "self_attn", "attention.norm": "norm1", "ffn.norm": "norm2", "ffn.": ""}
    state = {}
    for name, tensor in ours.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = tensor + torch.randn_like(tensor) / 10
    theirs.load_state_dict(state)
    for name, tensor in ours.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        tensor.copy_(state[names[prefix] + name.removeprefix(prefix)])
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x, torch.zeros(1)), theirs(x))


def test_pre_norm_cross_attention_normalises_the_queries_only():
    torch.manual_seed(0)
    layer = CrossAttentionLayer(16, 4, pre_norm=True)
    nn.init.normal_(layer.norm.weight)
    x, position, memory, place = torch.randn(2, 5, 16), torch.randn(1, 5, 16), torch.randn(2, 7, 16), torch.randn(7, 16)
    expected = x + layer.attn(layer.norm(x) + position, memory + place, memory)
    torch.testing.assert_close(layer(x, position, memory, place), expected)


def test_images_are_normalised_then_padded_to_a_multiple_of_the_divisor():
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    images = [torch.full((3, 33, 20), 150, dtype=torch.uint8), torch.zeros(3, 10, 65)]
    batch = ImageBatch(mean, std, 32)(images)
    assert batch.shape == (2, 3, 64, 96)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[0, :, 32, 19], (150 - torch.tensor(mean)) / torch.tensor(std))
    assert not batch[0, :, 33:].any()
    assert not batch[0, :, :, 20:].any()
    assert not batch[1, :, :, 65:].any()


def test_images_that_alone_are_padded_alike_form_a_group():
    sizes = [(33, 20), (10, 65), (64, 32), (64, 33), (1, 96), (32, 97)]
    images = [torch.zeros(3, *size) for size in sizes]
    batch = ImageBatch([0.0] * 3, [1.0] * 3, 32)
    groups = batch.by_size(images)
    assert groups == [[0, 2], [1, 4], [3], [5]]
    for rows in groups:
        assert {batch([images[row]]).shape[2:] for row in rows} == {batch([images[row] for row in rows]).shape[2:]}
    assert batch.by_size([]) == []


def test_position_of_one_pixel_by_hand():
    height, width, dim = 3, 5, 8
    row, column = 1, 4
    expected = []
    for index, size in ((row, height), (column, width)):
        angle = (index + 1) / (size + 1e-6) * 2 * math.pi
        for i in range(dim // 2):
            frequency = 10000 ** (2 * (i // 2) / (dim // 2))
            expected.append(math.cos(angle / frequency) if i % 2 else math.sin(angle / frequency))
    found = sine_position_map(height, width, dim)[0, row * width + column]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_scale_gradient_leaves_the_value_alone():
    x = torch.randn(4, requires_grad=True)
    y = scale_gradient(x, 1 / 3)
    assert torch.equal(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), 1 / 3))


@pytest.mark.parametrize(("channels", "groups"), [(512, 32), (64, 32), (24, 24), (48, 24)])
def test_group_norm_takes_32_groups_where_they_fit(channels: int, groups: int):
    assert group_norm(channels).num_groups == groups


def test_conv_norm_has_no_bias_and_its_relu_comes_last():
    conv = ConvNorm(8, 32, 3, relu=True)
    assert conv.bias is None
    assert conv(torch.randn(1, 8, 6, 6)).min() == 0


def test_mask_pool_and_geometry_of_a_sharp_rectangle():
    mask = torch.full((1, 1, 20, 40), -50.0)
    mask[..., 5:15, 10:20] = 50.0
    features = torch.randn(1, 3, 20, 40)
    torch.testing.assert_close(mask_pool(mask, features)[0, 0], features[0, :, 5:15, 10:20].mean((1, 2)))
    x, y, width, height = mask_geometry(mask)[0, 0].tolist()
    assert (x, y) == (pytest.approx(15 / 40), pytest.approx(10 / 20))
    assert (width, height) == (pytest.approx(10 / 40, rel=1e-3), pytest.approx(10 / 20, rel=1e-3))


@pytest.mark.parametrize("wanted", [[], [3, 0, 3]])
def test_published_region_tokens_are_the_query_and_the_image(wanted: list[int]):
    hidden, whole = torch.randn(5, 16), torch.randn(16)
    queries = torch.tensor(wanted, dtype=torch.long)
    found = RegionTokens(("query", "global"), dim=16)(hidden, whole, queries, None)
    assert torch.equal(found, torch.stack((hidden[queries], whole.expand(len(wanted), -1)), 1))


@pytest.mark.parametrize("wanted", [[], [3, 0, 3]])
def test_every_kind_of_region_token_of_some_or_no_queries(wanted: list[int]):
    torch.manual_seed(0)
    tokens = RegionTokens(KINDS, dim=16, fine_dims=(4, 3), grid_size=2)
    hidden, queries = torch.randn(5, 16), torch.tensor(wanted, dtype=torch.long)
    maps = torch.randn(4, 8, 8), torch.randn(3, 8, 8)
    found = tokens(hidden, torch.randn(16), queries, torch.randn(5, 8, 8), maps)
    assert found.shape == (len(wanted), 1 + 1 + 1 + 1 + 4 + 5, 16)
    if wanted:
        torch.testing.assert_close(found[0], found[2])
        torch.testing.assert_close((found[0] - found[1])[0], hidden[3] - hidden[0])
        assert not torch.isclose(found[0, 2:8], found[1, 2:8]).all(-1).any()  # what lies under their masks differs
        assert not torch.isclose(found[0, 8:], found[1, 8:]).all(-1).any()  # each sees the others from its own place


def test_images_on_a_canvas_given():
    images = ImageBatch([0.0] * 3, [1.0] * 3, 32)
    batch = images([torch.ones(3, 33, 20), torch.ones(3, 10, 30)], canvas=(40, 50))
    assert batch.shape == (2, 3, 40, 50)
    assert batch.sum((1, 2, 3)).tolist() == [3 * 33 * 20, 3 * 10 * 30]
    with pytest.raises(ValueError, match="do not fit"):
        images([torch.ones(3, 33, 51)], canvas=(40, 50))


@pytest.mark.fault("D5")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_may_look_nowhere_is_zero(dtype: torch.dtype):
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=dtype).requires_grad_() for _ in range(3))
    allowed = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    out = attend(q, k, v, allowed=allowed)
    assert out.dtype == dtype
    assert not out[:, :, 1].any()
    assert out[:, :, 0].abs().amin() > 0
    out.float().square().sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))
