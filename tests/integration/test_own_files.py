"""Both systems are trained and scored on files of one's own, which a configuration names by their path."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from locap.datasets.prepare import convert

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A COCO-style file of six drawn scenes and their images."""
    path = tmp_path_factory.mktemp("mine") / "train.json"
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    words = ["shapes_train", "--to", "coco", "--count", "6", "--copy-images", "--output", str(path)]
    assert convert.run(parser.parse_args(words)) == 0
    return path


def test_pix2cap_learns_from_a_coco_style_file(locap, tiny, mine, tmp_path):
    names = ("DATASETS.TRAIN", f"[{mine}]", "DATASETS.TEST", f"[{mine}]", "SOLVER.MAX_STEPS", "2")
    overrides = tiny(*names, "PROTOCOLS", "[panoptic]", SAVE_DIR=tmp_path)
    result = locap("train", "--conf_files", ROOT / "configs" / "quickstart.yaml", "--overrides", *overrides)
    assert result.code == 0, result.err
    results = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert results["ground_truth"]["images"] == 6


def test_what_does_not_fit_the_system_is_told(locap, tiny, mine, tmp_path):
    document = json.loads(mine.read_text())
    document["categories"].append({"id": 99, "name": "more", "isthing": 1})
    other = mine.with_name("other.json")
    other.write_text(json.dumps(document))
    names = ("DATASETS.TRAIN", f"[{other}]", "DATASETS.TEST", f"[{other}]", "PROTOCOLS", "[panoptic]")
    start = ("train", "--conf_files", ROOT / "configs" / "quickstart.yaml", "--overrides")
    result = locap(*start, *tiny(*names, SAVE_DIR=tmp_path))
    assert result.code == 2
    assert "--overrides MODEL.ENCODER.NUM_CLASSES 13" in result.err
    del document["annotations"][0]["segmentation"]
    other.write_text(json.dumps(document))
    result = locap(*start, *tiny(*names, SAVE_DIR=tmp_path))
    assert result.code == 3
    assert "The system learns masks, and 1 regions of the file have none." in result.err
    assert str(other) in result.err


def test_pixelllm_learns_from_a_coco_style_file(locap, mine, tmp_path):
    named = "[" + ", ".join(f"'{task}:{mine}'" for task in ("region", "refer", "detect")) + "]"
    values = {
        "SAVE_DIR": tmp_path,
        "DATASETS.TRAIN": named,
        "DATASETS.TEST": f"['refer:{mine}']",
        "MODEL.MASKS": "true",
        "MODEL.DETECTOR.ENABLED": "true",
        "SOLVER.MAX_STEPS": 2,
        "COCO.TRAIN.BATCH_SIZE_TOTAL": 2,
        "COCO.DATALOADER.NUM_WORKERS": 0,
        "TENSORBOARD": "false",
        "DEVICE": "cpu",
        "EVAL_AT_START": "false",
        "EVAL_EVERY_STEPS": 0,
        "EVAL_EVERY_EPOCHS": 0,
    }
    overrides = [word for pair in values.items() for word in pair]
    config = ROOT / "configs" / "pixelllm" / "pixelllm_shapes.yaml"
    result = locap("train", "--conf_files", config, "--overrides", *overrides)
    assert result.code == 0, result.err
    results = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert results["ground_truth"]["images"] == 6
