"""SAM's mask decoder against transformers', several prompts of several images in one call."""

from __future__ import annotations

import pytest
from torch import Tensor

from locap.modeling.checkpoints.key_table import KeyTable
from locap.modeling.heads.sam_masks import TRANSFORMERS_NAMES, SamMaskDecoder


@pytest.mark.parametrize("ambiguous", [False, True])
@pytest.mark.parametrize(("depth", "size"), [(2, (5, 5)), (3, (3, 4))])
def test_sam_mask_decoder(other, randomise, assert_agree, noise, depth: int, size: tuple[int, int], ambiguous: bool):
    config = other("transformers", "SamMaskDecoderConfig")(
        hidden_size=32,
        mlp_dim=48,
        num_hidden_layers=depth,
        num_attention_heads=4,
        iou_head_hidden_dim=24,
        layer_norm_eps=1e-5,
    )
    config._attn_implementation = "sdpa"  # theirs in eager mode rounds to float32
    theirs = randomise(other("transformers.models.sam.modeling_sam", "SamMaskDecoder")(config).double())
    ours = SamMaskDecoder(dim=32, depth=depth, num_heads=4, mlp_dim=48, quality_dim=24).double().eval()
    table = KeyTable(TRANSFORMERS_NAMES)
    ours.load_state_dict({table.ours(name): tensor for name, tensor in theirs.state_dict().items()})
    dense = noise(32, seed=9)

    def run_ours(image: Tensor, pe: Tensor, prompts: Tensor) -> tuple[Tensor, ...]:
        positions = pe.flatten(2).mT
        out = ours(image, positions, prompts.flatten(0, 1), counts=[3, 3], dense_prompt=dense, ambiguous=ambiguous)
        return out.logits.unflatten(0, (2, 3)), out.quality.unflatten(0, (2, 3))

    def run_theirs(image: Tensor, pe: Tensor, prompts: Tensor) -> tuple[Tensor, ...]:
        return theirs(image, pe.expand(2, -1, -1, -1), prompts, dense.view(1, -1, 1, 1), ambiguous)

    inputs = [noise(2, 32, *size), noise(1, 32, *size, seed=2), noise(2, 3, 2, 32, seed=3)]
    assert_agree(run_ours, run_theirs, inputs, 1e-10)
