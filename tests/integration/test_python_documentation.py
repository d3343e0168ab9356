"""The examples of docs/python.md run in their order, and what docs/detectron2.md imports is there."""

from __future__ import annotations

import ast
import importlib
import re

import torch
from PIL import Image

from locap.datasets.shapes import CATEGORIES, Shapes
from locap.inference.captioner import Captioner
from locap.modeling.systems import find_system

from .conftest import ROOT


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_page(tiny_config, tmp_path, monkeypatch):
    torch.manual_seed(0)
    cfg = tiny_config()
    system = find_system(cfg.MODEL.NAME)
    Captioner.of_model(system.model(cfg, CATEGORIES, system.tokenizer(cfg)), cfg, CATEGORIES).save(
        tmp_path / "my_model"
    )
    Image.fromarray(Shapes(3, split="train", image_size=64)[0].read_image()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples("python.md"):
        exec(compile(example, "docs/python.md", "exec"), names)
    assert names["broken"] == ["missing.jpg"]
    assert len(names["answer"]) == len(names["result"])  # untrained weights may find nothing
    assert "<html" in names["page"]
    for path in ("picture.png", "out/photo.json", "out/photo.png", "shared_model/model.safetensors"):
        assert (tmp_path / path).is_file(), path


def test_the_detectron2_page_names_what_is_there():
    imported = 0
    for example in examples("detectron2.md"):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("locap"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name
                    imported += 1
    assert imported > 8
