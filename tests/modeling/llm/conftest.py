"""Tiny language models of every kind, and what the tests of all of them need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from locap.modeling.llm.bert import BertLanguageModel

VISUAL_DIM, VOCAB = 6, 23


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that are well apart, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
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


MODELS: dict[str, Callable[[], nn.Module]] = {"bert": bert}


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
