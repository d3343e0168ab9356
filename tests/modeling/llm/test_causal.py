"""Causal language models: loading and LoRA."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from locap.modeling.llm.causal import CausalLanguageModel
from locap.modeling.llm.lora import Lora
from locap.utils.errors import CheckpointError, MissingDependencyError

from .conftest import VISUAL_DIM, VOCAB, llama, shake


def test_weights_come_back_from_a_folder(tmp_path):
    model = shake(llama())
    model.model.save_pretrained(tmp_path)
    loaded = CausalLanguageModel.from_pretrained(tmp_path, visual_dim=VISUAL_DIM, pad_id=0, lora=None).eval()
    loaded.visual_proj.load_state_dict(model.visual_proj.state_dict())
    text, visual = torch.randint(1, VOCAB, (2, 5)), torch.randn(2, 3, VISUAL_DIM)
    torch.testing.assert_close(loaded.states(visual, text, text), model.states(visual, text, text))


@pytest.mark.fault("H8")
def test_code_in_a_folder_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}'
    )
    with pytest.raises(CheckpointError):
        CausalLanguageModel.from_pretrained(tmp_path, visual_dim=VISUAL_DIM, pad_id=0, lora=None)
    assert not marker.exists()


@pytest.mark.fault("H8")
@pytest.mark.parametrize(
    "asks",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"_experts_implementation": "evil/kernel"},
        {"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}},
        {"trust_remote_code": True},
        {"use_kernels": True},
    ],
)
def test_configurations_that_ask_for_code_get_none(tmp_path, monkeypatch, caplog, asks: dict):
    def fetched(*arguments, **_):
        raise AssertionError(f"asked for code: {arguments}")

    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", fetched)
    monkeypatch.setattr("transformers.modeling_utils.load_and_register_attn_kernel", fetched, raising=False)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", fetched)
    model = shake(llama())
    model.model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asks))
    loaded = CausalLanguageModel.from_pretrained(tmp_path, visual_dim=VISUAL_DIM, pad_id=0, lora=None).eval()
    assert f"{next(iter(asks))} are ignored: they could run code of others" in caplog.text
    loaded.visual_proj.load_state_dict(model.visual_proj.state_dict())
    text, visual = torch.randint(1, VOCAB, (2, 5)), torch.randn(2, 3, VISUAL_DIM)
    torch.testing.assert_close(loaded.states(visual, text, text), model.states(visual, text, text))


@pytest.mark.fault("H6")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("<!doctype html><html>", "HTML page"),
        ('{"model_type": "llama", "hidden_size": "x"}', "cannot be read"),
        ('{"model_type": "llama", "hidden_size": -4}', "cannot be read"),
        ('{"model_type": "nothing known"}', "cannot be read"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}', "cannot be read"),
        ('{"auto_map": {"AutoConfig": "code.C"}}', "cannot be read"),
        ("[1]", "cannot be read"),
    ],
)
def test_odd_configurations_are_refused(tmp_path, content: str, says: str):
    llama().model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        CausalLanguageModel.from_pretrained(tmp_path, visual_dim=VISUAL_DIM, pad_id=0, lora=None)
    assert str(tmp_path) in caught.value.where


def test_lora_learns_alone():
    pytest.importorskip("peft", reason="LoRA is peft's")
    lora = Lora(rank=2, alpha=4, targets=("q_proj", "v_proj"))
    model = CausalLanguageModel(llama().model, visual_dim=VISUAL_DIM, pad_id=0, lora=lora)
    text, visual = torch.randint(1, VOCAB, (2, 5)), torch.randn(2, 3, VISUAL_DIM)
    model.logits(model.states(visual, None, text)).square().sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(learning) == 2 * 2 * 2 + 4
    assert all("lora_" in name or name.startswith("visual_proj.") for name in learning)


@pytest.mark.fault("N5")
def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match="pip install peft"):
        CausalLanguageModel(llama().model, visual_dim=VISUAL_DIM, pad_id=0, lora=Lora(rank=2, alpha=4, targets=()))
