"""Multi-scale deformable attention and its pixel decoder against transformers' Mask2Former: nothing is left apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from locap.modeling.pixel_decoders.deformable import DeformablePixelDecoder
from locap.ops.ms_deform_attn.reference import ms_deform_attn

MASK2FORMER = "transformers.models.mask2former.modeling_mask2former"


@pytest.mark.parametrize("shapes", [[(5, 7)], [(2, 3), (4, 6), (8, 12)], [(1, 1), (3, 2)]])
@pytest.mark.parametrize(("batch", "heads", "dim", "queries", "points"), [(1, 1, 4, 9, 1), (3, 4, 2, 5, 4)])
def test_operator(
    other,
    assert_agree,
    noise,
    shapes: list[tuple[int, int]],
    batch: int,
    heads: int,
    dim: int,
    queries: int,
    points: int,
):
    function = other(MASK2FORMER, "multi_scale_deformable_attention")
    value = noise(batch, sum(h * w for h, w in shapes), heads, dim)
    locations = noise(batch, queries, heads, len(shapes), points, 2, seed=2) * 0.4 + 0.5  # some outside
    weights = noise(batch, queries, heads, len(shapes), points, seed=3)
    assert_agree(
        lambda v, at, w: [ms_deform_attn(v, shapes, at, w)],
        lambda v, at, w: [function(v, shapes, at, w)],
        [value, locations, weights],
        1e-12,
    )


PIXEL_DECODER = (
    (r"^input_projections", "input_proj"),
    (r"^encoder\.layers", "encoder"),
    (r"self_attn_layer_norm", "norm"),
    (r"self_attn", "attn"),
    (r"\.fc(\d)", r".ffn.linear\1"),
    (r"final_layer_norm", "ffn.norm"),
    (r"^mask_projection", "mask_features"),
    (r"^adapter_1\.1", "lateral.norm"),
    (r"^adapter_1\.0", "lateral"),
    (r"^layer_1\.1", "output.norm"),
    (r"^layer_1\.0", "output"),
)


@pytest.mark.parametrize(
    ("sizes", "batch", "dim", "heads", "layers"),
    [
        ([(16, 24), (8, 12), (4, 6), (2, 3)], 2, 32, 4, 2),
        ([(25, 33), (13, 17), (7, 9), (4, 5)], 1, 64, 8, 1),
        ([(8, 16), (4, 8), (2, 4), (1, 2)], 3, 64, 2, 3),
    ],
)
def test_deformable_pixel_decoder(
    other,
    randomise,
    copy_weights,
    assert_agree,
    noise,
    sizes: list[tuple[int, int]],
    batch: int,
    dim: int,
    heads: int,
    layers: int,
):
    channels = {"res2": 8, "res3": 16, "res4": 24, "res5": 40}
    config = other("transformers", "Mask2FormerConfig")(
        feature_size=dim,
        mask_feature_size=20,
        encoder_feedforward_dim=48,
        encoder_layers=layers,
        num_attention_heads=heads,
    )
    theirs = randomise(other(MASK2FORMER, "Mask2FormerPixelDecoder")(config, list(channels.values())))
    for layer in theirs.encoder.layers:
        layer.self_attn.sampling_offsets.weight.data *= 3  # some land outside of the smaller maps
    ours = DeformablePixelDecoder(channels, dim=dim, mask_dim=20, num_layers=layers, num_heads=heads, ffn_dim=48)
    copy_weights(ours, theirs, PIXEL_DECODER)
    maps = [
        noise(batch, c, *size, seed=c, dtype=torch.float32) for c, size in zip(channels.values(), sizes, strict=True)
    ]

    def run_ours(*features: Tensor) -> list[Tensor]:
        found = ours(dict(zip(channels, features, strict=True)))
        return [found.mask_features, *found.multi_scale]

    def run_theirs(*features: Tensor) -> list[Tensor]:
        found = theirs(list(features), output_hidden_states=False, output_attentions=False, return_dict=True)
        return [found.mask_features, *found.multi_scale_features]

    assert_agree(run_ours, run_theirs, maps, 2e-5)
