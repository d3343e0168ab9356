"""The captioner and the text encoder against transformers' BERT, GIT and CLIP.

Two things differ by a constant. CLIP divides an embedding by its length, X-Decoder by the length + 1e-7. GIT's
embedding norm has the eps of its layers, 1e-12, GRiT's 1e-8: theirs is set to that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locap.modeling.text_decoders.bert_captioner import BertCaptioner, BertLayer
from locap.modeling.text_encoders.clip_text import ClipTextEncoder

BERT_LAYER = (
    (r"attention\.self\.", "attention."),
    (r"attention\.output\.LayerNorm", "attention.norm"),
    (r"attention\.output\.dense", "attention.dense"),
    (r"intermediate\.dense", "intermediate"),
    (r"output\.LayerNorm", "norm"),
    (r"output\.dense", "output"),
)
GIT = (
    (r"^git\.image_encoder\..*", ""),
    (r"^git\.visual_projection\.visual_projection", "region_proj"),
    (r"^git\.embeddings\.word_embeddings", "words"),
    (r"^git\.embeddings\.position_embeddings", "positions"),
    (r"^git\.embeddings\.LayerNorm", "embedding_norm"),
    (r"^git\.encoder\.layer", "layers"),
    *BERT_LAYER,
)
CLIP = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^encoder\.layers", "blocks"),
    (r"self_attn", "attn"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"^final_layer_norm", "norm"),
    (r"\.mlp", ""),
)


@pytest.mark.parametrize("faint", [1.0, 1e-4])  # a faint input shows the eps
def test_bert_layer(other, randomise, copy_weights, assert_agree, noise, faint: float):
    config = other("transformers", "BertConfig")(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, layer_norm_eps=1e-12, attn_implementation="eager"
    )
    theirs = randomise(other("transformers.models.bert.modeling_bert", "BertLayer")(config).double())
    ours = BertLayer(32, 4, 48, dropout=0.1).double()
    for bias in (theirs.attention.output.dense.bias, theirs.attention.self.value.bias):
        bias.data *= faint
    copy_weights(ours, theirs, BERT_LAYER)
    allowed = noise(7, 7) > 0
    allowed.fill_diagonal_(True)
    additive = torch.zeros(1, 1, 7, 7, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    assert_agree(
        lambda x: [ours(x, allowed)],
        lambda x: [theirs(x, attention_mask=additive)],
        [noise(3, 7, 32, seed=4) * faint],
        1e-9,
    )


class GivenFeatures(nn.Module):
    """Stand in for GIT's image encoder: the pixels are the region tokens already."""

    def forward(self, pixels: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=pixels[:, 0])


@pytest.fixture(params=[1, 3])
def git_and_captioner(request, other, randomise, copy_weights) -> tuple[nn.Module, BertCaptioner]:
    layers = request.param
    config = other("transformers", "GitConfig")(
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4},
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
        bos_token_id=1,
        eos_token_id=2,
    )
    theirs = randomise(other("transformers", "GitForCausalLM")(config).double())
    theirs.output.weight = theirs.git.embeddings.word_embeddings.weight  # GRiT ties them
    theirs.git.embeddings.LayerNorm.eps = 1e-8
    theirs.git.image_encoder = GivenFeatures()
    ours = BertCaptioner(
        region_dim=16, vocab_size=50, dim=32, num_layers=layers, num_heads=4, ffn_dim=48, max_positions=20
    ).double()
    copy_weights(ours, theirs, GIT)
    return theirs, ours


@pytest.mark.parametrize(("regions", "tokens", "words"), [(3, 2, 9), (2, 1, 1), (4, 5, 20)])
def test_captioner_with_git(git_and_captioner, assert_agree, noise, regions: int, tokens: int, words: int):
    """GRiT's captioner is GIT's text decoder: prefix mask, positions of words only, tied output."""
    theirs, ours = git_and_captioner
    ids = torch.randint(1, 50, (regions, words), generator=torch.Generator().manual_seed(3))
    assert_agree(
        lambda x: [ours.logits(ours(x, ids))],
        lambda x: [theirs(input_ids=ids, pixel_values=x[:, None]).logits[:, -words:]],
        [noise(regions, tokens, 16)],
        1e-9,
    )


def test_cached_captioner_with_git(git_and_captioner, noise):
    theirs, ours = git_and_captioner
    ids = torch.randint(1, 50, (3, 8), generator=torch.Generator().manual_seed(3))
    regions = noise(3, 2, 16)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=regions[:, None]).logits[:, -8:]
        cache = ours.prefill(regions, 8)
        found = torch.stack([ours.step(words, cache) for words in ids.unbind(1)], 1)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "heads", "faint"), [(1, 4, 1.0), (3, 2, 1.0), (2, 4, 1e-3)])
def test_clip_text_encoder(other, randomise, copy_weights, noise, layers: int, heads: int, faint: float):
    end = 49
    config = other("transformers", "CLIPTextConfig")(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=12,
        projection_dim=16,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-12,
        bos_token_id=48,
        eos_token_id=end,
        pad_token_id=end,
    )
    theirs = randomise(other("transformers", "CLIPTextModelWithProjection")(config))
    for table in (theirs.text_model.embeddings.token_embedding, theirs.text_model.embeddings.position_embedding):
        table.weight.data *= faint
    ours = ClipTextEncoder(
        vocab_size=50, context_length=12, width=32, num_heads=heads, num_layers=layers, output_dim=16
    )
    ours.projection.data.copy_(theirs.text_projection.weight.T)  # x @ P, where nn.Linear is x @ W.T
    copy_weights(ours, theirs, (*CLIP, (r"^text_projection.*", "")), own=("logit_scale", "projection"))
    ids = torch.randint(0, 48, (5, 12), generator=torch.Generator().manual_seed(3))
    for row, length in zip(ids, (2, 5, 12, 3, 7), strict=True):
        row[length - 1 :] = end
    found = ours(ids, end)
    expected = F.normalize(theirs(input_ids=ids).text_embeds, dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    cotangent = noise(5, 16).float()
    (found * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    gradient = theirs.text_model.embeddings.token_embedding.weight.grad
    torch.testing.assert_close(
        ours.token_embedding.weight.grad, gradient, atol=2e-5 * float(gradient.abs().max()), rtol=0
    )
