"""A Pix2Cap so small that it trains in a second, built from the quickstart's configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from locap import entry
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
TINY = {
    "DEVICE": "cpu",
    "TENSORBOARD": "false",
    "SEED": "0",
    "PRECISION": "fp32",
    "LOG_FIRST": "1000",
    "EVAL_AT_START": "false",
    "EVAL_EVERY_EPOCHS": "0",
    "EVAL_EVERY_STEPS": "0",
    "EVAL_MAX_IMAGES": "0",
    "PROTOCOLS": "[panoptic, caption_attributes]",
    "DATASETS.TRAIN": "[shapes_train]",
    "DATASETS.TEST": "[shapes_train]",
    "SHAPES.NUM_TRAIN": "7",
    "SHAPES.IMAGE_SIZE": "64",
    "COCO.INPUT.IMAGE_SIZE": "64",
    "COCO.INPUT.MIN_SIZE_TEST": "64",
    "COCO.INPUT.MAX_SIZE_TEST": "64",
    "COCO.TRAIN.BATCH_SIZE_TOTAL": "2",
    "COCO.TEST.IMAGES_PER_FORWARD": "2",
    "COCO.DATALOADER.NUM_WORKERS": "0",
    "MODEL.DIM_PROJ": "32",
    "MODEL.BACKBONE.FOCAL.EMBED_DIM": "16",
    "MODEL.BACKBONE.FOCAL.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.ENCODER.CONVS_DIM": "32",
    "MODEL.ENCODER.MASK_DIM": "32",
    "MODEL.DECODER.HIDDEN_DIM": "32",
    "MODEL.DECODER.NHEADS": "2",
    "MODEL.DECODER.DIM_FEEDFORWARD": "64",
    "MODEL.DECODER.DEC_LAYERS": "2",
    "MODEL.DECODER.TRAIN_NUM_POINTS": "64",
    "MODEL.DECODER.TEST.OBJECT_MASK_THRESHOLD": "0.0",
    "MODEL.DECODER.TEST.OVERLAP_THRESHOLD": "0.0",
    "MODEL.TEXT.WIDTH": "32",
    "MODEL.TEXT_DECODER.OBJECT_FEATURE_SIZE": "32",
    "MODEL.TEXT_DECODER.HIDDEN_SIZE": "32",
    "MODEL.TEXT_DECODER.ATTENTION_HEADS": "2",
    "MODEL.TEXT_DECODER.FEEDFORWARD_SIZE": "64",
    "MODEL.TEXT_DECODER.NUM_LAYERS": "1",
    "MODEL.TEXT_DECODER.MAX_STEPS": "12",
    "MODEL.TEXT_DECODER.DROPOUT": "0.0",
    "SOLVER.MAX_STEPS": "5",
    "SOLVER.BASE_LR": "1.0e-3",
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_ITERS": "0",
}


def tiny_overrides(*pairs: str, **values: object) -> list[str]:
    """Return ``KEY VALUE ...`` of the tiny system; ``pairs`` change dotted keys, ``values`` first-level ones."""
    changed = TINY | dict(zip(pairs[::2], pairs[1::2], strict=True)) | {k: str(v) for k, v in values.items()}
    return [word for pair in changed.items() for word in pair]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., list[str]]:
    """See `tiny_overrides`."""
    return tiny_overrides


@pytest.fixture(scope="session")
def tiny_config() -> Callable:
    """Return the resolved configuration of ``tiny_overrides``' arguments."""

    def make(*pairs: str, **values: object):
        overrides = tiny_overrides("BASENAME", "tiny", *pairs, **values)
        return load_config([QUICKSTART], overrides, model_schemas=MODEL_SCHEMAS)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny) -> SimpleNamespace:
    """A run that has begun to learn three scenes by heart: its folder and that of its last evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    epoch = "[" + ", ".join(["shapes_train"] * 60) + "]"  # a long one: a checkpoint is written after each
    changes = ("SHAPES.NUM_TRAIN", "3", "COCO.TRAIN.BATCH_SIZE_TOTAL", "3", "DATASETS.TRAIN", epoch)
    changes += ("SOLVER.MAX_STEPS", "60", "SOLVER.BASE_LR", "2.0e-3")
    overrides = tiny(*changes, SAVE_DIR=folder, EVAL_AT_START=True)
    assert entry.main(["train", "--conf_files", str(QUICKSTART), "--overrides", *overrides]) == 0
    run = folder / "quickstart" / "run_1"
    return SimpleNamespace(folder=run, evaluation=run / "evaluations" / "step_00000060")


@pytest.fixture
def locap(capfd) -> Callable:
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> SimpleNamespace:
        capfd.readouterr()
        try:
            code = entry.main([str(argument) for argument in arguments])
        except SystemExit as err:  # argparse's own
            code = err.code
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capfd.readouterr(), strict=True)))

    return run


@pytest.fixture
def start() -> Callable:
    """Run a command line in processes of their own, one thread each."""

    def run(*words: object, folder: Path = ROOT, timeout: float = 120) -> SimpleNamespace:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def python() -> str:
    return sys.executable
