"""Shapes, padding-free sizes, precision and the wiring of the two pixel decoders."""

from __future__ import annotations

import pytest
import torch

from locap.modeling.pixel_decoders.deformable import DeformableAttention, DeformablePixelDecoder, pixel_centres
from locap.modeling.pixel_decoders.fpn import TransformerFPN

CHANNELS = {"res2": 8, "res3": 16, "res4": 32, "res5": 64}


def make(name: str, **kwargs):
    torch.manual_seed(0)
    common = {"dim": 32, "mask_dim": 24, "num_layers": 2, "num_heads": 4}
    if name == "deformable":
        return DeformablePixelDecoder(CHANNELS, **common, **{"ffn_dim": 48, **kwargs})
    return TransformerFPN(CHANNELS, **common, **{"ffn_dim": 48, **kwargs})


def features(height: int = 64, width: int = 96, batch: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn(batch, channels, -(-height // stride), -(-width // stride))
        for (name, channels), stride in zip(CHANNELS.items(), (4, 8, 16, 32), strict=True)
    }


@pytest.mark.parametrize("name", ["fpn", "deformable"])
@pytest.mark.parametrize(("size", "strides"), [((64, 96), None), ((100, 130), [(4, 5), (7, 9), (13, 17)])])
def test_maps_coarse_first(name: str, size: tuple[int, int], strides):
    found = make(name)(features(*size, batch=2))
    assert found.mask_features.shape == (2, 24, -(-size[0] // 4), -(-size[1] // 4))
    expected = strides or [(2, 3), (4, 6), (8, 12)]
    assert [tuple(x.shape) for x in found.multi_scale] == [(2, 32, *hw) for hw in expected]


@pytest.mark.parametrize("name", ["fpn", "deformable"])
def test_images_of_a_batch_do_not_meet(name: str):
    decoder, both = make(name), features(batch=2)
    alone = decoder({key: x[1:] for key, x in both.items()})
    together = decoder(both)
    torch.testing.assert_close(together.mask_features[1:], alone.mask_features, atol=1e-5, rtol=1e-5)


def test_feature_pyramid_passes_the_finest_map_last():
    """multi_scale leaves before the finer laterals are added: res2 reaches the mask features only."""
    decoder, given = make("fpn"), features()
    before = decoder(given)
    after = decoder(given | {"res2": given["res2"] + 1 + torch.rand_like(given["res2"])})
    assert all(torch.equal(x, y) for x, y in zip(before.multi_scale, after.multi_scale, strict=True))
    assert not torch.allclose(before.mask_features, after.mask_features)


def test_coarse_maps_reach_every_finer_one():
    decoder, given = make("fpn"), features()
    before, after = decoder(given), decoder(given | {"res5": given["res5"] + torch.rand_like(given["res5"])})
    for x, y in zip(
        [before.mask_features, *before.multi_scale], [after.mask_features, *after.multi_scale], strict=True
    ):
        assert not torch.allclose(x, y)


def test_deformable_levels_are_told_apart_by_their_embedding():
    """The embedding is part of the positions that choose where to look and what to weigh."""
    decoder, given = make("deformable"), features()
    torch.nn.init.normal_(decoder.encoder[0].attn.attention_weights.weight)
    before = decoder(given).mask_features
    with torch.no_grad():
        decoder.level_embed[1] += torch.randn(32)
    assert not torch.allclose(decoder(given).mask_features, before)


def test_feature_pyramid_can_pass_finer_memories():
    found = make("fpn", memory_strides=(8, 4, 4))(features())
    assert [tuple(x.shape[-2:]) for x in found.multi_scale] == [(8, 12), (16, 24), (16, 24)]


def test_every_level_of_the_deformable_encoder_sees_every_other():
    decoder, given = make("deformable"), features()
    for layer in decoder.encoder:
        torch.nn.init.normal_(layer.attn.sampling_offsets.weight, std=0.1)
    before = decoder(given)
    for name in ("res3", "res4", "res5"):
        after = decoder(given | {name: given[name] + torch.rand_like(given[name])})
        assert not any(torch.allclose(x, y) for x, y in zip(before.multi_scale, after.multi_scale, strict=True))


def test_published_deformable_decoder_stays_in_float32_under_autocast():
    decoder, given = make("deformable", full_precision=True), features()
    with torch.autocast("cpu", torch.bfloat16):
        half = decoder({name: x.bfloat16().float() for name, x in given.items()})
    exact = decoder({name: x.bfloat16().float() for name, x in given.items()})
    assert half.mask_features.dtype == torch.float32
    assert torch.equal(half.mask_features, exact.mask_features)


def test_deformable_attention_samples_where_it_should_under_autocast():
    """bfloat16 has 8 bits: a location on a map 256 wide would be half a pixel off, and the picture a step function."""
    torch.manual_seed(0)
    attention = DeformableAttention(8, num_levels=1, num_heads=1, num_points=1)
    torch.nn.init.eye_(attention.value_proj.weight)
    torch.nn.init.eye_(attention.output_proj.weight)
    shapes, columns = [(2, 256)], torch.arange(256) / 256
    tokens = columns.repeat(2)[None, :, None].expand(1, 512, 8)
    reference = torch.stack((columns, torch.full((256,), 0.5)), -1)[None, :, None]  # edges: halfway between pixels
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(torch.zeros(1, 256, 8), reference, tokens, shapes)
    assert found.dtype == torch.bfloat16
    expected = columns + 0.5 / 256  # the initial offset is one pixel to the right
    torch.testing.assert_close(found[0, 2:-2, 0].float(), expected[2:-2], atol=2e-3, rtol=2e-2)


def test_pixel_centres_of_the_deformable_encoder():
    centres = pixel_centres(2, 4, torch.device("cpu"))
    assert centres.tolist()[:2] == [[0.125, 0.25], [0.375, 0.25]]
    assert centres.tolist()[-1] == [0.875, 0.75]
