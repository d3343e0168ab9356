"""The masked-attention query decoder against transformers' Mask2Former.

Not compared: the class query, the text classifier and the box head, which are X-Decoder's; and how masks are resized
for the attention, bilinear there and bicubic with antialiasing here. Memory maps of the mask features' size, or mask
features that do not vary in space, make the two resizings equal.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locap.modeling.layers.transformer import SelfAttentionLayer
from locap.modeling.region_encoders.query_decoder import QueryDecoder

MASK2FORMER = "transformers.models.mask2former.modeling_mask2former"


QUERY_DECODER = (
    (r"^queries_features", "query_feat"),
    (r"^queries_embedder", "query_embed"),
    (r"^input_projections", "input_proj"),
    (r"^decoder\.layernorm", "norm"),
    (r"^decoder\.mask_predictor\.mask_embedder\.(\d)\.0", r"mask_embed.layers.\1"),
    (r"^decoder\.layers\.(\d)\.self_attn_layer_norm", r"self_attention.\1.norm"),
    (r"^decoder\.layers\.(\d)\.cross_attn_layer_norm", r"cross_attention.\1.norm"),
    (r"^decoder\.layers\.(\d)\.final_layer_norm", r"ffn.\1.norm"),
    (r"^decoder\.layers\.(\d)\.self_attn", r"self_attention.\1.attn"),
    (r"^decoder\.layers\.(\d)\.cross_attn", r"cross_attention.\1.attn"),
    (r"^decoder\.layers\.(\d)\.fc(\d)", r"ffn.\1.linear\2"),
)


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("masks", ["one size", "all or nothing"])
def test_masked_attention_decoder(other, randomise, copy_weights, assert_agree, noise, masks: str, project: bool):
    """Hidden states and masks at every prediction point, the masks fed back into the attention."""
    config = other("transformers", "Mask2FormerConfig")(
        hidden_dim=32,
        mask_feature_size=20,
        num_queries=24,
        num_attention_heads=4,
        dim_feedforward=48,
        decoder_layers=6,
        enforce_input_projection=project,
    )
    theirs = randomise(other(MASK2FORMER, "Mask2FormerTransformerModule")(32, config))
    ours = QueryDecoder(
        num_queries=24,
        dim=32,
        input_dim=32,
        mask_dim=20,
        text_dim=16,
        num_heads=4,
        ffn_dim=48,
        num_layers=5,
        project_input=project,
        class_query=False,
    )
    copy_weights(ours, theirs, QUERY_DECODER, own=("classifier.", "box_embed."))
    sizes = [(6, 8)] * 4 if masks == "one size" else [(2, 3), (4, 6), (8, 12), (16, 24)]
    memory = [noise(2, 32, *size, seed=i, dtype=torch.float32) for i, size in enumerate(sizes[:3])]
    features = noise(2, 20, *sizes[3], seed=9, dtype=torch.float32) + 2 * noise(2, 20, 1, 1, seed=8).float()
    if masks == "all or nothing":
        features = (features[:1, :, :1, :1] * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)).expand_as(features)
    seen: list[Tensor] = []

    def run_ours(*given: Tensor) -> list[Tensor]:
        decoded = ours(given[:3], given[3], torch.ones(3, 16), torch.tensor(0.0))
        found = [torch.einsum("bqc,bchw->bqhw", point.mask_embed, given[3]) for point in decoded.points]
        seen.extend(found)
        return [*found, *(point.hidden for point in decoded.points)]

    def run_theirs(*given: Tensor) -> list[Tensor]:
        found = theirs(list(given[:3]), given[3])
        return [*found.masks_queries_logits, *(x.transpose(0, 1) for x in found.intermediate_hidden_states)]

    assert_agree(run_ours, run_theirs, [*memory, features], 5e-5)
    empty = torch.stack(seen[:-1]).flatten(3).amax(-1) < 0
    assert empty.any()  # rows that would be blocked everywhere
    assert not empty.all()


def test_self_attention_under_a_mask(other, randomise, copy_weights, assert_agree, noise):
    """Mask2Former's decoder never masks its self-attention; its attention module can."""
    attention = randomise(other(MASK2FORMER, "Mask2FormerAttention")(32, 4).double())
    ours = SelfAttentionLayer(32, 4).double()
    copy_weights(ours, nn.ModuleDict({"attn": attention}), (), own=("norm.",))
    blocked = torch.zeros(9, 9, dtype=torch.bool)
    blocked[-1, :-1] = blocked[:-1, -1] = True
    additive = torch.zeros(9, 9, dtype=torch.float64).masked_fill(blocked, float("-inf")).expand(2 * 4, 9, 9)

    def run_theirs(x: Tensor, position: Tensor) -> list[Tensor]:
        x, position = x.transpose(0, 1), position.transpose(0, 1)
        out, _ = attention(hidden_states=x, position_embeddings=position, attention_mask=additive)
        return [F.layer_norm(x + out, (32,)).transpose(0, 1)]

    inputs = [noise(2, 9, 32, seed=1), noise(2, 9, 32, seed=2)]
    assert_agree(lambda x, position: [ours(x, position, blocked)], run_theirs, inputs, 1e-10)
