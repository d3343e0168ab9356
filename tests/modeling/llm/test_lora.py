"""Low-rank adaptation: how much, and that it changes nothing until it has learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from locap.modeling.llm.lora import Lora, add_lora, merge_lora
from locap.utils.errors import UsageError

from .conftest import VISUAL_DIM, VOCAB, shake, t5, t5_config

pytest.importorskip("peft", reason="LoRA is peft's")
LORA = Lora(rank=4, alpha=8, targets=("q", "v"))


def read(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, VOCAB, (3, 5), generator=generator)
    with torch.no_grad():
        return model.logits(model.states(torch.randn(3, 2, VISUAL_DIM, generator=generator), text, text))


def test_flan_t5_xl_has_144_adapted_matrices():
    from transformers import T5ForConditionalGeneration

    config = t5_config(vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        adapted = add_lora(model, Lora(rank=32, alpha=64, targets=("q", "v")))
    assert adapted == 144
    assert sum(x.numel() for x in model.parameters() if x.requires_grad) == 18_874_368


def test_nothing_changes_at_the_start_and_merged_is_unmerged():
    model = shake(t5(), std=0.2)
    before = read(model)
    names = list(model.model.state_dict())
    assert add_lora(model.model, LORA) == 2 * 2 * 3
    torch.testing.assert_close(read(model), before, atol=0, rtol=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    adapted = read(model)
    assert (adapted - before).abs().max() > 0.01
    merge_lora(model.model)
    torch.testing.assert_close(read(model), adapted, atol=1e-5, rtol=1e-5)
    assert list(model.model.state_dict()) == names


def test_the_update_is_alpha_over_rank_times_the_product():
    layer = nn.ModuleDict({"q": nn.Linear(6, 5, bias=False)})
    add_lora(layer, Lora(rank=2, alpha=4, targets=("q",)))
    a, b = layer["q"].lora_A["default"].weight, layer["q"].lora_B["default"].weight
    nn.init.normal_(b)
    x = torch.randn(3, 6)
    wanted = x @ (layer["q"].base_layer.weight + 2 * b @ a).T
    torch.testing.assert_close(layer["q"](x), wanted)


def test_only_the_low_rank_matrices_learn():
    model = shake(t5())
    add_lora(model.model, LORA)
    model.train()
    text = torch.randint(0, VOCAB, (3, 5))
    model.logits(model.states(torch.randn(3, 2, VISUAL_DIM), text, text)).square().sum().backward()
    learning = {name for name, parameter in model.model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.model.named_parameters() if "lora_" in name}
    assert len(learning) == 2 * 12


def test_unknown_layers_are_named():
    with pytest.raises(UsageError, match="q_proj") as error:
        add_lora(t5().model, Lora(rank=4, alpha=8, targets=("q_proj",)))
    assert "lm_head" in str(error.value)
