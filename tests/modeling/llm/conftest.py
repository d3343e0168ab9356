"""Tiny language models of every kind, and what the tests of all of them need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from locap.modeling.llm.bert import BertLanguageModel
from locap.modeling.llm.causal import CausalLanguageModel
from locap.modeling.llm.t5 import T5LanguageModel

VISUAL_DIM, VOCAB = 6, 23


def shake(model: nn.Module, seed: int = 0, std: float = 0.5) -> nn.Module:
    """Random weights that are well apart, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def bert() -> nn.Module:
    return BertLanguageModel(
        visual_dim=VISUAL_DIM,
        vocab_size=VOCAB,
        dim=16,
        num_layers=2,
        num_heads=4,
        ffn_dim=24,
        dropout=0.1,
        max_positions=32,
        pad_id=0,
    )


def t5_config(**changes):
    from transformers import T5Config

    tiny = {
        "vocab_size": VOCAB,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    return T5Config(**{**tiny, **changes})


def t5() -> nn.Module:
    from transformers import T5ForConditionalGeneration

    return T5LanguageModel(T5ForConditionalGeneration(t5_config()), visual_dim=VISUAL_DIM, lora=None)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return CausalLanguageModel(LlamaForCausalLM(config), visual_dim=VISUAL_DIM, pad_id=0, lora=None)


MODELS: dict[str, Callable[[], nn.Module]] = {"bert": bert, "t5": t5, "llama": llama}


@pytest.fixture(params=list(MODELS))
def model(request) -> nn.Module:
    """A language model with random weights."""
    return shake(MODELS[request.param]())


@pytest.fixture
def visual() -> Tensor:
    """Visual tokens of 7 prompts, (7, 3, 6)."""
    return torch.randn(7, 3, VISUAL_DIM, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def context() -> Tensor:
    """Instructions of 0 to 5 tokens, int64 (7, 5)."""
    rows = torch.randint(3, VOCAB, (7, 5), generator=torch.Generator().manual_seed(4))
    for row, length in zip(rows, (5, 0, 2, 1, 5, 3, 4), strict=True):
        row[length:] = 0
    return rows
