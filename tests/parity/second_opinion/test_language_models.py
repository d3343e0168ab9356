"""The language models against transformers' own, on random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from locap.modeling.llm.bert import BertLanguageModel
from locap.modeling.llm.causal import CausalLanguageModel
from locap.modeling.llm.t5 import T5LanguageModel

BERT_ENCODER = (
    (r"attention\.self\.", "attention."),
    (r"attention\.output\.LayerNorm", "attention.norm"),
    (r"attention\.output\.dense", "attention.dense"),
    (r"intermediate\.dense", "intermediate"),
    (r"output\.LayerNorm", "norm"),
    (r"output\.dense", "output"),
    (r"^layer\.", "decoder.layers."),
)
CONTEXT = torch.tensor([[5, 6, 7, 8], [9, 0, 0, 0], [0, 0, 0, 0]])


def prefix_mask(context: Tensor, visual: int, text: int) -> Tensor:
    """What may be attended to, written out entry by entry: bool (R, N, N)."""
    memory = visual + context.shape[1]
    total = memory + text
    allowed = torch.zeros(len(context), total, total, dtype=torch.bool)
    for row in range(len(context)):
        for query in range(total):
            for key in range(total):
                inside = key < memory if query < memory else key <= query
                padding = visual <= key < memory and context[row, key - visual] == 0
                allowed[row, query, key] = inside and not padding
    return allowed


@pytest.mark.parametrize("faint", [1.0, 1e-4])  # a faint embedding shows the epsilons
def test_bert_with_a_context(other, randomise, copy_weights, assert_agree, noise, faint: float):
    config = other("transformers", "BertConfig")(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=3, attn_implementation="eager"
    )
    theirs = randomise(other("transformers.models.bert.modeling_bert", "BertEncoder")(config).double())
    for layer in theirs.layer:
        layer.attention.output.LayerNorm.eps, layer.output.LayerNorm.eps = 1e-5, 1e-12
        for bias in (layer.attention.output.dense.bias, layer.attention.self.value.bias):
            bias.data *= faint
    ours = BertLanguageModel(
        visual_dim=16,
        vocab_size=50,
        dim=32,
        num_layers=3,
        num_heads=4,
        ffn_dim=48,
        dropout=0.1,
        max_positions=20,
        pad_id=0,
    ).double()
    copy_weights(ours, theirs, BERT_ENCODER, own=("decoder.",))
    randomise(ours.decoder.region_proj), randomise(ours.decoder.embedding_norm)
    for norm in (ours.decoder.region_proj[1], ours.decoder.embedding_norm):
        norm.weight.data *= faint
        norm.bias.data *= faint
    text = torch.randint(1, 50, (3, 6), generator=torch.Generator().manual_seed(3))
    additive = torch.zeros(1, dtype=torch.float64).masked_fill(~prefix_mask(CONTEXT, 2, 6), float("-inf"))[:, None]

    def expected(visual: Tensor) -> list[Tensor]:
        words = [
            nn.functional.layer_norm(
                ours.decoder.words(ids) + ours.decoder.positions.weight[: ids.shape[1]],
                (32,),
                ours.decoder.embedding_norm.weight,
                ours.decoder.embedding_norm.bias,
                1e-8,
            )
            for ids in (CONTEXT, text)
        ]
        x = torch.cat((ours.decoder.region_proj(visual), *words), 1)
        return [theirs(x, attention_mask=additive).last_hidden_state[:, -6:]]

    assert_agree(lambda x: [ours.states(x, CONTEXT, text)], expected, [noise(3, 2, 16)], 1e-9)


def test_bert_output_is_its_own():
    model = BertLanguageModel(
        visual_dim=4, vocab_size=300, dim=48, num_layers=1, num_heads=4, ffn_dim=8, dropout=0, max_positions=5, pad_id=0
    )
    assert model.decoder.output.weight is not model.decoder.words.weight
    assert model.decoder.output.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.decoder.region_proj[1].eps == 1e-5
    assert model.decoder.embedding_norm.eps == 1e-8
    assert (model.decoder.layers[0].attention.norm.eps, model.decoder.layers[0].norm.eps) == (1e-5, 1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_t5(other, randomise, assert_agree, noise, tied: bool, told: bool):
    config = other("transformers", "T5Config")(
        vocab_size=50,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied,
    )
    theirs = randomise(other("transformers", "T5ForConditionalGeneration")(config).double())
    ours = T5LanguageModel(theirs, visual_dim=16, lora=None).double().eval()
    text = torch.randint(1, 50, (3, 6), generator=torch.Generator().manual_seed(3))

    def expected(visual: Tensor) -> list[Tensor]:
        given = ours.visual_proj(visual)
        mask = None
        if told:
            given = torch.cat((given, theirs.shared(CONTEXT)), 1)
            mask = torch.cat((torch.ones(3, 2), CONTEXT > 0), 1).long()
        out = theirs(
            inputs_embeds=given, attention_mask=mask, decoder_input_ids=text, output_hidden_states=True, use_cache=False
        )
        return [out.decoder_hidden_states[-1], out.logits]

    def found(visual: Tensor) -> list[Tensor]:
        states = ours.states(visual, CONTEXT if told else None, text)
        return [states, ours.logits(states)]

    assert_agree(found, expected, [noise(3, 2, 16)], 1e-9)


def test_causal_with_a_padded_context_is_the_row_alone(other, randomise, assert_agree, noise):
    config = other("transformers", "LlamaConfig")(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    theirs = randomise(other("transformers", "LlamaForCausalLM")(config).double())
    ours = CausalLanguageModel(theirs, visual_dim=16, pad_id=0, lora=None).double().eval()
    text = torch.randint(1, 50, (3, 6), generator=torch.Generator().manual_seed(3))

    def expected(visual: Tensor) -> list[Tensor]:
        rows = []
        for image, told, words in zip(visual, CONTEXT, text, strict=True):
            tokens = theirs.model.embed_tokens(torch.cat((told[told > 0], words)))
            given = torch.cat((ours.visual_proj(image), tokens))[None]
            rows.append(theirs(inputs_embeds=given, use_cache=False).logits[:, -6:])
        return [torch.cat(rows)]

    assert_agree(lambda x: [ours.logits(ours.states(x, CONTEXT, text))], expected, [noise(3, 2, 16)], 1e-5)
