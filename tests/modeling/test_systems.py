"""How systems are built around stored weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from locap.modeling import systems
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pix2cap_model", "MODEL.BACKBONE.LOAD_PRETRAINED", "true"),
        ("pixelllm_model", "MODEL.BACKBONE.LOAD_PRETRAINED", "true"),
        ("pixelllm_model", "MODEL.SAM.PRETRAINED", "facebook/sam-vit-huge"),
    ],
)
def test_stored_weights_need_nothing_that_training_started_from(name, key, value, tmp_path, monkeypatch):
    """Otherwise a run could be evaluated only where the hub can be reached."""
    seen = []

    def build(cfg, categories, tokenizer):
        seen.append(cfg)
        return torch.nn.Linear(1, 1)

    monkeypatch.setitem(systems.SYSTEMS, name, replace(systems.SYSTEMS[name], tokenizer=lambda cfg: None, model=build))
    save_file(torch.nn.Linear(1, 1).state_dict(), tmp_path / "model.safetensors")
    words = ["MODEL.NAME", name, key, value, "RESUME_FROM", str(tmp_path), "MODEL.BACKBONE.NAME", "timm:resnet18"]
    cfg = load_config([], words, model_schemas=MODEL_SCHEMAS)
    systems.build_trained(cfg, ())
    model = seen[0].MODEL
    assert not model.BACKBONE.LOAD_PRETRAINED
    assert name == "pix2cap_model" or model.SAM.PRETRAINED == ""
    assert str(cfg.MODEL.BACKBONE.LOAD_PRETRAINED).lower() == value or key.endswith("SAM.PRETRAINED")
