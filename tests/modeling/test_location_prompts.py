"""Prompts as vectors, the published layout, and what the images show there."""

from __future__ import annotations

import pytest
import torch

from locap.modeling.checkpoints.key_table import KeyTable
from locap.modeling.layers.two_way import TwoWayTransformer, repeat_rows
from locap.modeling.region_encoders import location_prompts, prompt_features
from locap.modeling.region_encoders.location_prompts import LocationPrompts, box_prompt, whole_image_prompt
from locap.modeling.region_encoders.prompt_features import PromptFeatures

CANVAS = (384, 384)


@pytest.fixture
def prompts() -> LocationPrompts:
    torch.manual_seed(0)
    return LocationPrompts(dim=16)


@pytest.fixture
def features() -> PromptFeatures:
    torch.manual_seed(0)
    sizes = {"image_dim": 12, "prompt_dim": 16, "dim": 32, "out_dim": 24, "num_queries": 3}
    return PromptFeatures(**sizes, depth=2, num_heads=4, mlp_dim=48)


def test_published_layout_of_the_whole_image_and_of_padding(prompts: LocationPrompts):
    found = prompts.published(torch.tensor([[0.0, 0.0, 384.0, 384.0], [0.0, 0.0, 0.0, 0.0]]), canvas=CANVAS)
    assert found.valid.all()
    corners = prompts(*whole_image_prompt(CANVAS), canvas=CANVAS).tokens[0, :2]
    filler = prompts.no_mask.weight.expand(3, -1)
    torch.testing.assert_close(found.tokens[0], torch.cat((corners, filler)))
    point = prompts(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.long), canvas=CANVAS).tokens[0]
    torch.testing.assert_close(found.tokens[1], torch.cat((point[:1].expand(4, -1), point[1:])))
    torch.testing.assert_close(found.tokens[1, 4], prompts.not_a_point.weight[0])


def test_one_padding_vector_is_read_where_there_is_no_box(prompts: LocationPrompts):
    labels = torch.tensor([[1, 1, 1], [1, -1, -1], [2, 3, -1], [-1, -1, -1]])
    valid = prompts(torch.rand(4, 3, 2), labels, canvas=CANVAS).valid
    wanted = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert valid.int().tolist() == wanted


def test_coordinates_are_of_the_canvas_and_half_a_pixel_off(prompts: LocationPrompts):
    label = torch.ones(1, 1, dtype=torch.long)
    wide = prompts(torch.tensor([[[99.5, 19.5]]]), label, canvas=(40, 200)).tokens[0, 0]
    middle = prompts.grid(1, 1)[0] + prompts.point_embed[1].weight[0]
    torch.testing.assert_close(wide, middle)
    turned = prompts(torch.tensor([[[19.5, 99.5]]]), label, canvas=(40, 200)).tokens[0, 0]
    assert not torch.isclose(turned, middle).all()


def test_a_prompt_does_not_depend_on_its_neighbours(prompts: LocationPrompts, features: PromptFeatures):
    image, position = torch.randn(2, 12, 4, 5), prompts.grid(4, 5)
    trace, boxes = torch.rand(1, 9, 2) * 384, torch.rand(3, 4) * 384
    corners, kinds = box_prompt(boxes)
    points = torch.cat((torch.nn.functional.pad(corners, (0, 0, 0, 7)), trace))
    labels = torch.cat((torch.nn.functional.pad(kinds, (0, 7), value=-1), torch.ones(1, 9, dtype=torch.long)))
    together = features(image, position, prompts(points, labels, canvas=CANVAS), prompts.no_mask.weight, counts=[1, 3])
    for row, owner in enumerate((0, 1, 1)):
        alone = prompts(corners[row : row + 1], kinds[row : row + 1], canvas=CANVAS)
        found = features(image[owner : owner + 1], position, alone, prompts.no_mask.weight, counts=[1])
        torch.testing.assert_close(together[row : row + 1], found, atol=1e-5, rtol=1e-4)


def test_images_without_prompts_and_no_prompts_at_all(prompts: LocationPrompts, features: PromptFeatures):
    image, position = torch.randn(3, 12, 2, 2), prompts.grid(2, 2)
    given = prompts(*box_prompt(torch.rand(2, 4)), canvas=CANVAS)
    found = features(image, position, given, prompts.no_mask.weight, counts=[0, 2, 0])
    alone = features(image[1:2], position, given, prompts.no_mask.weight, counts=[2])
    torch.testing.assert_close(found, alone)
    nothing = prompts(*box_prompt(torch.rand(0, 4)), canvas=CANVAS)
    assert features(image, position, nothing, prompts.no_mask.weight, counts=[0, 0, 0]).shape == (0, 3, 24)


def test_every_query_has_its_own_output_layer(prompts: LocationPrompts, features: PromptFeatures):
    with torch.no_grad():
        features.queries.weight.copy_(features.queries.weight[:1].expand(3, -1))
    given = prompts(*box_prompt(torch.rand(1, 4)), canvas=CANVAS)
    found = features(torch.randn(1, 12, 2, 2), prompts.grid(2, 2), given, prompts.no_mask.weight, counts=[1])[0]
    assert not torch.isclose(found[0], found[1]).all()


def test_the_first_layer_projects_each_image_once(features: PromptFeatures):
    seen = []
    layer = features.transformer.layers[0]
    for projection in (layer.token_to_image.k_proj, layer.token_to_image.v_proj, layer.image_to_token.q_proj):
        projection.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    features.transformer(torch.randn(2, 6, 32), torch.randn(6, 32), torch.randn(7, 5, 32), counts=[3, 4])
    assert seen == [2, 2, 2]


def test_rows_per_image_equal_repeated_images():
    torch.manual_seed(0)
    model = TwoWayTransformer(2, 16, 2, 24)
    image, pe, tokens = torch.randn(2, 6, 16), torch.randn(6, 16), torch.randn(4, 3, 16)
    repeated = repeat_rows(image, [1, 3])
    torch.testing.assert_close(repeated, image[[0, 1, 1, 1]])
    for found, wanted in zip(model(image, pe, tokens, counts=[1, 3]), model(repeated, pe, tokens), strict=True):
        torch.testing.assert_close(found, wanted)


def test_every_tensor_has_its_original_name(prompts: LocationPrompts, features: PromptFeatures):
    for part, names in ((prompts, location_prompts.ORIGINAL_NAMES), (features, prompt_features.ORIGINAL_NAMES)):
        table, ours = KeyTable(names), list(part.state_dict())
        theirs = [table.theirs(name) for name in ours]
        assert None not in theirs
        assert [table.ours(name) for name in theirs] == ours
    assert "output_hypernetworks_mlps.2.layers.0.bias" in theirs
    assert "transformer.layers.1.cross_attn_image_to_token.out_proj.weight" in theirs


def test_gradients_reach_every_parameter(prompts: LocationPrompts, features: PromptFeatures):
    image = torch.randn(2, 12, 3, 3, requires_grad=True)
    points, labels = torch.rand(3, 4, 2) * 384, torch.tensor([[0, 1, 1, 1], [2, 3, -1, -1], [1, -1, -1, -1]])
    given = prompts(points, labels, canvas=CANVAS)
    features(image, prompts.grid(3, 3), given, prompts.no_mask.weight, counts=[2, 1]).square().sum().backward()
    named = [*prompts.named_parameters(), *features.named_parameters(), ("image", image)]
    assert [name for name, parameter in named if parameter.grad is None or not parameter.grad.isfinite().all()] == []
    assert image.grad.abs().amax((1, 2, 3)).min() > 0


def test_what_stands_in_padding_does_not_matter(prompts: LocationPrompts):
    points, labels = torch.rand(2, 3, 2), torch.tensor([[1, 1, -1], [2, 3, -1]])
    found = prompts(points, labels, canvas=CANVAS).tokens
    points[:, 2] = torch.nan
    assert torch.equal(prompts(points, labels, canvas=CANVAS).tokens, found)
