"""SAM's encoder with its neck against transformers', at its native size and resized."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from locap.modeling.backbones.sam_encoder import TRANSFORMERS_NAMES, SamEncoder
from locap.modeling.checkpoints.key_table import KeyTable


@pytest.fixture
def pair(other, randomise):
    """Return a function: canvas side in tokens, window, tables -> (ours, theirs) with the same weights."""

    def build(side: int, window: int, tables: str = "antialiased", dtype: torch.dtype = torch.float64):
        config = other("transformers", "SamVisionConfig")(
            hidden_size=24,
            output_channels=8,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=16 * side,
            window_size=window,
            global_attn_indexes=[1, 3],
            mlp_dim=96,
        )
        theirs = randomise(other("transformers.models.sam.modeling_sam", "SamVisionEncoder")(config)).to(dtype)
        ours = SamEncoder(
            **{"dim": 24, "depth": 4, "num_heads": 2, "image_size": 16 * side, "window": window, "tables": tables},
            global_blocks=(1, 3),
            out_dim=8,
        ).to(dtype)
        table = KeyTable(TRANSFORMERS_NAMES)
        ours.load_state_dict({table.ours(name): tensor for name, tensor in theirs.state_dict().items()})
        return ours.eval(), theirs

    return build


@pytest.mark.parametrize("tables", ["antialiased", "sam"])
@pytest.mark.parametrize(("side", "window"), [(6, 4), (4, 4), (5, 3)])
def test_native_size(pair, assert_agree, noise, side: int, window: int, tables: str):
    ours, theirs = pair(side, window, tables)
    image = noise(2, 3, 16 * side, 16 * side)
    assert_agree(lambda x: [ours(x)], lambda x: [theirs(x).last_hidden_state], [image], 1e-10)


def test_native_size_in_single_precision(pair, noise):
    ours, theirs = pair(6, 4, dtype=torch.float32)
    image = noise(2, 3, 96, 96, dtype=torch.float32)
    torch.testing.assert_close(ours(image), theirs(image).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(9, 5), (3, 10), (4, 4)])
def test_other_sizes_with_sams_tables(pair, noise, height: int, width: int):
    """Theirs takes one size only; its layers take any. Windows of 4 need padding on one side or both."""
    ours, theirs = pair(6, 4, "sam")
    image = noise(2, 3, 16 * height, 16 * width)
    x = theirs.patch_embed.projection(image)
    table = theirs.pos_embed.permute(0, 3, 1, 2)
    x = x + nn.functional.interpolate(table, size=(height, width), mode="bicubic", antialias=True)
    x = x.permute(0, 2, 3, 1)
    for layer in theirs.layers:
        x = layer(x)
    torch.testing.assert_close(ours(image), theirs.neck(x), atol=1e-8, rtol=0)


def test_tables_differ_when_resized_only(pair, noise):
    (antialiased, _), (plain, _) = pair(6, 4), pair(6, 4, "sam")
    image = noise(1, 3, 64, 64)
    assert (antialiased(image) - plain(image)).abs().max() > 1e-3


def test_global_tables_are_those_of_the_antialiased_rule(pair, noise):
    """Theirs at the small size, given tables that were resized beforehand."""
    ours, _ = pair(8, 4)
    _, theirs = pair(5, 4)
    table = KeyTable(TRANSFORMERS_NAMES)
    state = {table.theirs(name): tensor for name, tensor in ours.state_dict().items()}
    resize = nn.functional.interpolate
    for name, tensor in state.items():
        if "rel_pos" in name and len(tensor) == 15:
            state[name] = resize(tensor[None, None], size=(9, tensor.shape[1]), mode="bilinear", antialias=True)[0, 0]
    grid = state["pos_embed"].permute(0, 3, 1, 2)
    state["pos_embed"] = resize(grid, size=(5, 5), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    theirs.load_state_dict(state)
    image = noise(1, 3, 80, 80)
    torch.testing.assert_close(ours(image), theirs(image).last_hidden_state, atol=1e-8, rtol=0)
