"""T5: loading, dropout, freezing."""

from __future__ import annotations

import pytest
import torch

from locap.modeling.layers.frozen import rest_frozen
from locap.modeling.llm.t5 import T5LanguageModel
from locap.utils.errors import CheckpointError, MissingDependencyError, UsageError

from .conftest import VISUAL_DIM, VOCAB, llama, shake, t5, t5_config


def save(folder, **changes) -> torch.nn.Module:
    """Write a tiny FLAN-T5: its output is not its word table."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(t5_config(**changes))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, 16))
    shake(model)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    config = (folder / "config.json").read_text()
    if '"tie_word_embeddings": false' not in config:
        (folder / "config.json").write_text(
            config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
        )
    return model


def test_flan_keeps_its_output_and_scales_nothing(tmp_path):
    saved = save(tmp_path)
    loaded = T5LanguageModel.from_pretrained(tmp_path, visual_dim=VISUAL_DIM, lora=None)
    assert loaded.model.config.scale_decoder_outputs is False
    assert torch.equal(loaded.model.lm_head.weight, saved.lm_head.weight)
    assert torch.equal(loaded.model.shared.weight, saved.shared.weight)
    assert not torch.equal(loaded.model.lm_head.weight, loaded.model.shared.weight)
    states = torch.randn(3, 16)
    torch.testing.assert_close(loaded.eval().logits(states), states @ saved.lm_head.weight.T)


def test_the_first_t5_scales():
    from transformers import T5ForConditionalGeneration

    config = t5_config(tie_word_embeddings=True)
    model = T5LanguageModel(T5ForConditionalGeneration(config), visual_dim=VISUAL_DIM, lora=None).eval()
    states = torch.randn(3, 16)
    torch.testing.assert_close(model.logits(states), states @ model.model.shared.weight.T / 4)


def test_states_are_not_dropped_out_but_logits_are():
    model = shake(t5())
    model.model.decoder.dropout.train()
    model.model.decoder.dropout.p = 0.5
    text, visual = torch.zeros(2, 4, dtype=torch.long), torch.randn(2, 3, VISUAL_DIM)
    assert (model.states(visual, None, text) != 0).all()
    states = model.states(visual, None, text)
    assert not torch.equal(model.logits(states), model.logits(states))


def test_only_the_projection_learns():
    model = t5().train()
    text, visual = torch.zeros(2, 4, dtype=torch.long), torch.randn(2, 3, VISUAL_DIM)
    model.logits(model.states(visual, None, text)).square().sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {f"visual_proj.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}


def test_at_rest_it_is_the_same_in_training():
    model = shake(t5())
    text, visual = torch.zeros(2, 4, dtype=torch.long), torch.randn(2, 3, VISUAL_DIM)
    wanted = model.logits(model.states(visual, text, text))
    model.train()
    rest_frozen(model)
    assert torch.equal(model.logits(model.states(visual, text, text)), wanted)


@pytest.mark.parametrize("make", [t5, llama])
def test_recomputed_layers_give_the_same_gradients(make):
    gradients = []
    for checkpoint in (False, True):
        model = shake(make())
        if checkpoint:
            options = {"pad_id": 0} if make is llama else {}
            weights = model.state_dict()
            model = type(model)(model.model, visual_dim=VISUAL_DIM, lora=None, checkpoint=True, **options)
            model.load_state_dict(weights)
            assert model.model.is_gradient_checkpointing
        for part in model.modules():  # dropout is drawn by modules and, in attention, from a number
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            elif isinstance(getattr(part, "dropout", None), float):
                part.dropout = 0.0
        generator = torch.Generator().manual_seed(1)
        visual = torch.randn(2, 3, VISUAL_DIM, generator=generator).requires_grad_()
        text = torch.randint(1, VOCAB, (2, 4), generator=generator)
        model.train().logits(model.states(visual, text, text)).square().sum().backward()
        gradients.append(visual.grad)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_wrong_folders(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    options = {"visual_dim": VISUAL_DIM, "lora": None}
    with pytest.raises(CheckpointError, match="cannot be read"):
        T5LanguageModel.from_pretrained(tmp_path, **options)
    with pytest.raises(UsageError):
        T5LanguageModel.from_pretrained(tmp_path / "nowhere", **options)


def test_missing_weights(tmp_path):
    save(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks weights"):
        T5LanguageModel.from_pretrained(tmp_path, visual_dim=VISUAL_DIM, lora=None)


@pytest.mark.fault("H7")
def test_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingDependencyError, match="language model"):
        T5LanguageModel.from_pretrained("nobody/no-such-language-model", visual_dim=VISUAL_DIM, lora=None)
