"""Models in the original's configurations, with tokenizers that need no file of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from locap.datasets.categories import COCO_PANOPTIC
from locap.modeling.build_pix2cap import build_pix2cap, build_tokenizer
from locap.modeling.checkpoints.loader import load_weights
from locap.modeling.pix2cap import Pix2Cap
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config

from .originals import DATA, NUMBERS, Names, original_file, original_names

PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "pix2cap_panoptic_segmentation_captioning.yaml"
TINY = [
    *(
        word
        for key, value in NUMBERS["config_overrides"].items()
        if key != "MODEL.BACKBONE_DIM"
        for word in (key, json.dumps(value))
    ),
    *("MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0", "MODEL.TEXT_DECODER.DROPOUT", "0"),
]


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory) -> dict[str, Path]:
    """Folders with word pieces in BERT's format, of the published sizes; the pieces that tests use have their ids."""
    folders = {}
    for name, content in json.loads((DATA / "vocabularies.json").read_text()).items():
        pieces = {number: piece for piece, number in content["pieces"].items()}
        special = iter([piece for piece in ("[PAD]", "[UNK]", "[MASK]") if piece not in content["pieces"]])
        lines = [pieces.get(i) or next(special, f"[unused{i}]") for i in range(content["size"])]
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "vocab.txt").write_text("\n".join(lines) + "\n")
    return folders


@pytest.fixture(scope="session")
def make_config(vocabularies) -> Callable[..., Any]:
    """``make_config(*overrides, tiny=True)``: the measured tiny configuration, or the published one."""

    def make(*overrides: str, tiny: bool = True) -> Any:
        tokenizers = ("MODEL.TEXT.PRETRAINED_TOKENIZER", str(vocabularies["clip"]))
        tokenizers += ("MODEL.TEXT_DECODER.TOKENIZER", str(vocabularies["bert"]))
        pairs = [*(TINY if tiny else []), *tokenizers, *overrides]
        return load_config([PUBLISHED], pairs, model_schemas=MODEL_SCHEMAS)

    return make


@pytest.fixture(scope="session")
def make_model(make_config) -> Callable[..., Pix2Cap]:
    """``make_model(*overrides, tiny=True, device="cpu")``: untrained; on "meta" it has shapes and no values."""

    def make(*overrides: str, tiny: bool = True, device: str = "cpu") -> Pix2Cap:
        cfg = make_config(*overrides, tiny=tiny)
        tokenizer = build_tokenizer(cfg)
        with torch.device(device):
            return build_pix2cap(cfg, COCO_PANOPTIC, tokenizer)

    return make


@pytest.fixture(scope="session")
def original(make_config, make_model, tmp_path_factory) -> Callable[..., SimpleNamespace]:
    """``original(*overrides)``: names, tensors and file of a tiny original, and our model with its weights loaded."""

    def make(*overrides: str) -> SimpleNamespace:
        names: Names = original_names(make_config(*overrides))
        tensors = original_file(names)
        path = tmp_path_factory.mktemp("original") / "model_state_dict.pt"
        torch.save(tensors, path)
        model = make_model(*overrides)
        report = load_weights(model, path)
        return SimpleNamespace(names=names, tensors=tensors, path=path, model=model.eval(), report=report)

    return make
