"""The scripts of docs/extending.md, as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from locap.datasets.shapes import Shapes

from .conftest import QUICKSTART, ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (my\w*\.\w+)\n(.*?)```", PAGE, re.DOTALL))
COMMON = ("EVAL_AT_START", "false", "TENSORBOARD", "false", "COCO.DATALOADER.NUM_WORKERS", "0", "SAVE_DIR", "runs")


@pytest.fixture
def scripts(tmp_path) -> Path:
    """A folder with the page's files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def figures(folder: Path) -> dict[str, float]:
    """Return the figures of the last evaluation."""
    events = [json.loads(line) for line in next(folder.glob("runs/*/run_1/metrics.jsonl")).read_text().splitlines()]
    return next(event["metrics"] for event in reversed(events) if event["event"] == "evaluate")


def test_each_case_is_there_and_short():
    assert sorted(FILES) == ["my.yaml", "my_data.py", "my_head.py", "my_system.py"]
    for name, text in FILES.items():
        assert len(text.splitlines()) <= 60, name
        assert max(map(len, text.splitlines())) <= 120, name


@pytest.mark.slow
def test_a_data_set(scripts, start, python):
    folder = scripts / "my_data" / "images"
    folder.mkdir(parents=True)
    lines = []
    for index in range(4):
        scene = Shapes(4, split="train", image_size=96)[index]
        Image.fromarray(scene.read_image()).save(folder / f"{index}.png")
        lines.append(f"{index}.png\t10 10 60 60\t{scene.regions[0].captions[0]}")
    notes = scripts / "my_data" / "notes.tsv"
    notes.write_text("\n".join(lines))
    names = ("DATASETS.ROOT", "my_data", "DATASETS.TRAIN", "[region:notes]", "DATASETS.TEST", "[region:notes]")
    command = (scripts / "my_data.py", "train", "--conf_files", ROOT / "configs/pixelllm/pixelllm_shapes.yaml")
    steps = ("SOLVER.MAX_STEPS", "1", "COCO.TRAIN.BATCH_SIZE_TOTAL", "2", "EVAL_PICTURES", "0")
    done = start(python, *command, "--overrides", *names, *steps, *COMMON, folder=scripts)
    assert done.code == 0, done.err
    assert "METEOR" in figures(scripts)
    notes.write_text("0.png 10 10 60 60 no tabs")
    done = start(python, *command, "--overrides", *names, *steps, *COMMON, folder=scripts)
    assert done.code == 3
    assert "Not a note." in done.err
    assert "notes.tsv:1" in done.err


@pytest.mark.slow
def test_a_head(scripts, start, python):
    small = ("SOLVER.MAX_STEPS", "1", "SHAPES.NUM_TEST", "2", "EVAL_MAX_IMAGES", "2", "EVAL_PICTURES", "0")
    command = (scripts / "my_head.py", "train", "--conf_files", QUICKSTART, "--overrides")
    done = start(python, *command, "MODEL.NAME", "pix2cap_edges", *small, *COMMON, folder=scripts)
    assert done.code == 0, done.err
    (run,) = scripts.glob("runs/*/run_1")
    assert '"loss_edges": ' in (run / "metrics.jsonl").read_text()
    wrong = ("MODEL.NAME", "pix2cap_edges", "MODEL.EDGE_WEIGHT", "-1")
    done = start(python, *command, *wrong, folder=scripts)
    assert done.code == 2
    assert "MODEL.EDGE_WEIGHT: -1 is too small." in done.err


@pytest.mark.slow
def test_a_system(scripts, start, python):
    command = (scripts / "my_system.py", "train", "--conf_files", "my.yaml", "--overrides")
    done = start(python, *command, "SOLVER.MAX_STEPS", "2", "EVAL_PICTURES", "0", *COMMON, folder=scripts)
    assert done.code == 0, done.err
    assert "mAP" in figures(scripts)
    done = start(python, scripts / "my_system.py", "predict", "--model", "runs/my/run_1", folder=scripts)
    assert done.code == 0, done.err
    assert (scripts / "output").is_dir()
