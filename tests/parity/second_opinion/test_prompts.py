"""The two-way transformer and the location prompts against transformers' SAM."""

from __future__ import annotations

import pytest
import torch

from locap.modeling.checkpoints.key_table import KeyTable
from locap.modeling.layers.two_way import TRANSFORMERS_NAMES as TWO_WAY_NAMES
from locap.modeling.layers.two_way import TwoWayTransformer
from locap.modeling.region_encoders.location_prompts import TRANSFORMERS_NAMES as PROMPT_NAMES
from locap.modeling.region_encoders.location_prompts import LocationPrompts, box_prompt

MODELING = "transformers.models.sam.modeling_sam"


def load(ours, theirs, names) -> None:
    """Load their weights under our names: every one of ours must be there."""
    table = KeyTable(names)
    renamed = {table.ours(name): tensor for name, tensor in theirs.items()}
    ours.load_state_dict({name: tensor for name, tensor in renamed.items() if name})
    ours.eval()


@pytest.mark.parametrize(("depth", "downsample"), [(1, 1), (2, 2), (3, 4)])
def test_two_way_transformer(other, randomise, assert_agree, noise, depth: int, downsample: int):
    config = other("transformers", "SamMaskDecoderConfig")(
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=depth,
        mlp_dim=48,
        attention_downsample_rate=downsample,
        layer_norm_eps=1e-5,
    )
    config._attn_implementation = "sdpa"  # the other one rounds to float32
    theirs = other(MODELING, "SamTwoWayTransformer")(config)
    for layer in theirs.layers:  # the layers ignore the rate of the configuration, the last attention does not
        block = type(layer)(config, downsample, layer.skip_first_layer_pe)
        layer.cross_attn_token_to_image = block.cross_attn_token_to_image
        layer.cross_attn_image_to_token = block.cross_attn_image_to_token
    theirs = randomise(theirs.double())
    ours = TwoWayTransformer(depth, 32, 4, 48, downsample).double()
    load(ours, theirs.state_dict(), TWO_WAY_NAMES)

    def run_ours(image, pe, tokens):
        return ours(image.flatten(2).mT, pe[0].flatten(1).T, tokens.flatten(0, 1), counts=[5, 5])

    def run_theirs(image, pe, tokens):
        outputs = theirs(tokens, image.repeat_interleave(5, 0), pe, attention_similarity=None)
        return outputs[0].flatten(0, 1), outputs[1][:, 0]

    assert_agree(run_ours, run_theirs, [noise(2, 32, 3, 4), noise(1, 32, 3, 4), noise(2, 5, 6, 32)], 1e-10)


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_location_prompts(other, randomise, noise, kind: str):
    config = other("transformers", "SamConfig")(
        vision_config={"num_pos_feats": 16, "hidden_size": 32},
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "image_embedding_size": 4},
    )
    theirs = randomise(other(MODELING, "SamPromptEncoder")(config).double())
    ours = LocationPrompts(dim=32).double()
    named = {
        "shared_image_embedding.positional_embedding" if name.startswith("shared") else f"prompt_encoder.{name}": tensor
        for name, tensor in theirs.state_dict().items()
    }
    load(ours, named, PROMPT_NAMES)
    if kind == "points":
        points, labels = noise(1, 7, 3, 2).abs() * 20, torch.tensor([[0, 1, 1]]).expand(7, 3)
        wanted = theirs(points, labels[None], None, None)[0][0]
        found = ours(points[0], labels, canvas=(64, 64))
    else:
        boxes = noise(1, 7, 4).abs() * 20
        wanted = theirs(None, None, boxes, None)[0][0]
        found = ours(*box_prompt(boxes[0]), canvas=(64, 64))
    torch.testing.assert_close(found.tokens[found.valid].view(wanted.shape), wanted, atol=1e-12, rtol=0)


def test_positions_of_a_map(other, randomise):
    embedding = other(MODELING, "SamPositionalEmbedding")
    config = other("transformers", "SamVisionConfig")(num_pos_feats=8)
    theirs = randomise(embedding(config).double())
    ours = LocationPrompts(dim=16).double()
    ours.frequencies.copy_(theirs.positional_embedding.detach())
    rows, columns = (torch.arange(3).double() + 0.5) / 3, (torch.arange(5).double() + 0.5) / 5
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)  # x, y
    torch.testing.assert_close(ours.grid(3, 5).double(), theirs(places).flatten(0, 1), atol=1e-5, rtol=0)
