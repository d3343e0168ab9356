"""Files of the original code through the commands: trained from, evaluated, exported and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from locap.datasets.shapes import CATEGORIES
from locap.modeling.build_pix2cap import build_pix2cap, build_tokenizer, original_pix2cap
from locap.trainer.checkpoint import model_tensors

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
WITHOUT_AIDS = (
    *("MODEL.DECODER.QUERY_POSITION", "learned", "MODEL.DECODER.MASK_POOLED_QUERIES", "false"),
    *(
        "MODEL.DECODER.SEMANTIC_AUX_WEIGHT",
        "0",
        "MODEL.DECODER.WORDS_AUX_WEIGHT",
        "0",
        "MODEL.DECODER.CAPTION_TOKENS",
        "[query, global]",
    ),
    *("SOLVER.MAX_STEPS", "2", "SHAPES.NUM_TRAIN", "2", "PROTOCOLS", "[panoptic]"),
)


@pytest.fixture(scope="module")
def original(tiny_config, tmp_path_factory) -> Path:
    """A file as the original's trainer leaves it."""
    cfg = tiny_config(*WITHOUT_AIDS)
    torch.manual_seed(3)
    model = build_pix2cap(cfg, CATEGORIES, build_tokenizer(cfg))
    path = tmp_path_factory.mktemp("original") / "model_state_dict.pt"
    torch.save(original_pix2cap(cfg, model_tensors(model)), path)
    return path


def test_train_evaluate_export_evaluate(original, locap, tiny, tmp_path):
    def run(command: str, *options: object, **values: object):
        overrides = tiny(*WITHOUT_AIDS, SAVE_DIR=tmp_path, **values)
        return locap(command, "--conf_files", QUICKSTART, *options, "--overrides", *overrides)

    merged = tmp_path / "merged.pt"  # as after X-Decoder + GRiT
    tensors = torch.load(original, weights_only=True)
    fresh = ("sem_seg_head.predictor.object_proj.", "sem_seg_head.predictor.bbox_embed.")
    torch.save({name: tensor for name, tensor in tensors.items() if not name.startswith(fresh)}, merged)
    for command in ("evaluate", "predict"):
        refused = run(command, RESUME_FROM=merged)
        assert refused.code == 4
        assert "8 missing: decoder.box_embed (6), region_proj (2)" in refused.err
    trained = run("train", RESUME_FROM=merged, WEIGHT=True)
    assert trained.code == 0, trained.err
    assert "8 missing: decoder.box_embed (6), region_proj (2)" in trained.err
    assert "What is missing keeps its starting values." in trained.err
    folder = tmp_path / "quickstart" / "run_1"

    exported = tmp_path / "exported.pt"
    assert locap("export", "--model", folder, "--to", "original", "--like", original, "--output", exported).code == 0
    written = torch.load(exported, weights_only=True)
    assert written.keys() == tensors.keys()
    inert = "sem_seg_head.predictor.caping_embed"
    assert torch.equal(written[inert], tensors[inert])
    ours = load_file(folder / "model.safetensors")
    assert torch.equal(written["sem_seg_head.predictor.object_proj.weight"], ours["region_proj.weight"])

    results = []
    for weights in (folder, exported):
        assert run("evaluate", RESUME_FROM=weights, BASENAME=weights.stem).code == 0
        results.append((tmp_path / weights.stem / "evaluation" / "predictions.json").read_bytes())
    assert results[0] == results[1]
