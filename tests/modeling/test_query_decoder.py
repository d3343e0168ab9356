"""Who sees whom in the query decoder, and what its heads read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from locap.modeling.region_encoders.query_decoder import DecodedQueries, QueryDecoder

QUERIES, DIM, MASK_DIM = 6, 16, 12
SIZES = [(2, 3), (4, 6), (8, 12)]


def make(num_layers: int = 3, **kwargs) -> QueryDecoder:
    torch.manual_seed(0)
    sizes = {"num_queries": QUERIES, "dim": DIM, "input_dim": DIM, "mask_dim": MASK_DIM, "text_dim": 8}
    return QueryDecoder(**sizes, num_heads=4, ffn_dim=24, num_layers=num_layers, **kwargs).eval()


def inputs() -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    maps = [torch.randn(2, DIM, *size) for size in SIZES]
    return maps, torch.randn(2, MASK_DIM, 16, 24), F.normalize(torch.randn(5, 8), dim=-1), torch.tensor(1.0)


def shifted(decoder: QueryDecoder, query: int) -> DecodedQueries:
    """Decode with the start of one query moved."""
    kept = decoder.query_feat.weight.detach().clone()
    with torch.no_grad():
        decoder.query_feat.weight[query] += torch.randn(DIM)
        found = decoder(*inputs())
        decoder.query_feat.weight.copy_(kept)
    return found


def test_a_point_per_layer_and_one_before():
    decoded = make()(*inputs())
    assert len(decoded.points) == 4
    for point in decoded.points:
        assert point.hidden.shape == (2, QUERIES, DIM)
        assert point.class_logits.shape == (2, QUERIES, 5)
        assert point.mask_embed.shape == (2, QUERIES, MASK_DIM)
        assert point.boxes_cxcywh.shape == (2, QUERIES, 4)
        assert 0 < point.boxes_cxcywh.min() <= point.boxes_cxcywh.max() < 1


def test_objects_never_see_the_class_query():
    decoder = make()
    before, after = decoder(*inputs()), shifted(decoder, -1)
    for a, b in zip(before.points, after.points, strict=True):
        for name in ("hidden", "class_logits", "mask_embed", "boxes_cxcywh"):
            assert torch.equal(getattr(a, name)[:, :-1], getattr(b, name)[:, :-1]), name
        assert not torch.allclose(a.mask_embed[:, -1], b.mask_embed[:, -1])


def test_the_class_query_sees_only_itself_and_objects_see_one_another():
    decoder = make()
    before, after = decoder(*inputs()), shifted(decoder, 0)
    for a, b in zip(before.points, after.points, strict=True):
        assert torch.equal(a.mask_embed[:, -1], b.mask_embed[:, -1])  # read before objects are pooled into the row
        assert not torch.allclose(a.hidden[:, -1], b.hidden[:, -1])
    assert not torch.isclose(before.points[-1].hidden[:, 1:-1], after.points[-1].hidden[:, 1:-1]).all(-1).any()


def test_without_class_query_the_last_row_is_an_object():
    decoder = make(class_query=False)
    before, after = decoder(*inputs()), shifted(decoder, -1)
    assert not torch.allclose(before.points[-1].hidden[:, 0], after.points[-1].hidden[:, 0])


def test_class_row_is_the_objects_mean_weighted_by_likeness():
    decoder = make()
    point = decoder(*inputs()).points[0]
    states = decoder.norm(decoder.query_feat.weight)
    objects, query = states[:-1], states[-1]
    expected = F.cosine_similarity(query[None], objects).softmax(0) @ objects
    torch.testing.assert_close(point.hidden[0, -1], expected)
    torch.testing.assert_close(point.mask_embed[0, -1], decoder.mask_embed(query))
    torch.testing.assert_close(point.boxes_cxcywh[0, -1], decoder.box_embed(expected).sigmoid())


def test_class_logits_are_scaled_cosines():
    decoder, (maps, mask_features, texts, _) = make(), inputs()
    point = decoder(maps, mask_features, texts, torch.tensor(2.0)).points[-1]
    projected = point.hidden @ decoder.classifier.class_embed
    expected = torch.tensor(2.0).exp() * F.cosine_similarity(projected[:, :, None], texts[None, None], dim=-1)
    torch.testing.assert_close(point.class_logits, expected, atol=1e-4, rtol=1e-4)


def constant_masks(decoder: QueryDecoder, sign: float) -> DecodedQueries:
    """Decode with every mask logit of one sign."""
    last = decoder.mask_embed.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, sign)
    maps, mask_features, texts, scale = inputs()
    return decoder(maps, torch.ones_like(mask_features), texts, scale)


@pytest.mark.fault("D5")
def test_a_query_with_an_empty_mask_looks_everywhere():
    decoder = make()
    empty, full = constant_masks(decoder, -1.0), constant_masks(decoder, 1.0)
    assert torch.isfinite(empty.points[-1].hidden).all()
    assert torch.equal(empty.points[-1].hidden, full.points[-1].hidden)


def test_a_query_looks_only_under_its_mask():
    decoder = make()
    last = decoder.mask_embed.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)
    maps, mask_features, texts, scale = inputs()
    mask_features = torch.ones_like(mask_features)
    mask_features[..., 12:] = -1  # the right half is outside every mask
    before = decoder(maps, mask_features, texts, scale).points[-1].hidden

    def moved(columns: slice) -> Tensor:
        level = maps[2].clone()
        level[..., columns] += 1
        return decoder([*maps[:2], level], mask_features, texts, scale).points[-1].hidden

    assert torch.equal(moved(slice(7, None)), before)
    assert not torch.allclose(moved(slice(0, 5)), before)


def test_layers_go_through_the_memories_coarse_to_fine():
    decoder, (maps, *rest) = make(num_layers=5), inputs()
    before = decoder(maps, *rest)
    for level in range(3):
        after = decoder([x + (i == level) * torch.rand_like(x) for i, x in enumerate(maps)], *rest)
        same = [torch.equal(a.hidden, b.hidden) for a, b in zip(before.points, after.points, strict=True)]
        assert same == [True] * (level + 1) + [False] * (5 - level)


def test_mask_features_shrink_to_what_masks_would():
    """The attention masks come from resized features; resizing the masks themselves gives the same."""
    decoder, (maps, mask_features, _, _) = make(), inputs()
    embed = torch.randn(2, QUERIES, MASK_DIM)
    for index, x in enumerate(maps):
        masks = torch.einsum("bqc,bchw->bqhw", embed, mask_features)
        expected = F.interpolate(masks, size=x.shape[-2:], mode="bicubic", align_corners=False, antialias=True)
        found = torch.einsum("bqc,bchw->bqhw", embed, decoder._level(index, x, mask_features).mask_features)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_global_feature_is_the_maximum_over_the_coarsest_memory():
    decoder, (maps, *rest) = make(), inputs()
    expected = maps[0].amax((2, 3)) + decoder.level_embed.weight[0]
    torch.testing.assert_close(decoder(maps, *rest).global_feature, expected)


@pytest.mark.parametrize(
    ("kwargs", "projected"), [({}, False), ({"project_input": True}, True), ({"input_dim": 20}, True)]
)
def test_memories_are_projected_only_where_needed(kwargs: dict, projected: bool):
    sizes = {"num_queries": 3, "dim": 16, "mask_dim": 8, "text_dim": 4, "num_heads": 2, "ffn_dim": 8, "num_layers": 1}
    decoder = QueryDecoder(**{"input_dim": 16, **sizes, **kwargs})
    assert any(name.startswith("input_proj") for name in decoder.state_dict()) == projected


def test_mask_options_train():
    decoder = make(mask_pooled=True, position_from_mask=True).train()
    maps, mask_features, texts, scale = inputs()
    decoded = decoder(maps, mask_features.requires_grad_(), texts, scale)
    decoded.points[-1].hidden.sum().backward()
    for part in (decoder.pooled_proj.weight, decoder.geometry_proj.layers[0].weight):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0
