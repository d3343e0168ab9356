"""Both systems, tiny, with everything that draws switched on, trained by the real run in forked processes."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from locap.modeling.schemas import MODEL_SCHEMAS
from locap.trainer.distributed import World
from locap.trainer.experiment import TrainingRun
from locap.utils.config import load_config
from locap.utils.endings import describe

from .. import tiny_pixelllm
from ..integration.conftest import QUICKSTART, tiny_overrides
from . import toy

# 5 images in batches of 2: with two ranks, the last step of an epoch finds one of them without an image
COMMON = {
    "BASENAME": "tiny",
    "DEVICE": "cpu",
    "PRECISION": "fp32",
    "TENSORBOARD": "false",
    "SHAPES.NUM_TRAIN": "5",
    "SHAPES.NUM_TEST": "2",
    "SHAPES.IMAGE_SIZE": "64",
    "COCO.TRAIN.BATCH_SIZE_TOTAL": "2",
    "COCO.INPUT.RANDOM_FLIP": "horizontal",
    "COCO.INPUT.MIN_SCALE": "0.5",
    "COCO.INPUT.MAX_SCALE": "1.5",
    "COCO.DATALOADER.NUM_WORKERS": "0",
    "SOLVER.BASE_LR": "1.0e-3",
    "SOLVER.EMA_DECAY": "0.9",
    "EVAL_AT_START": "false",
    "EVAL_EVERY_EPOCHS": "0",
    "EVAL_MAX_IMAGES": "1",
    "CHECKPOINT_EVERY_STEPS": "1",
    "KEEP_CHECKPOINTS": "0",
    "LOG_FIRST": "1000",
}
PIX2CAP = {
    "DATASETS.TRAIN": "[shapes_train]",
    "DATASETS.TEST": "[shapes_val]",
    "MODEL.TEXT_DECODER.DROPOUT": "0.1",
    "MODEL.DECODER.DROPOUT": "0.1",
    "MODEL.TEXT.PROMPT_TEMPLATES": "clip",
    "MODEL.BACKBONE.FOCAL.DROP_PATH_RATE": "0.2",
}
PIXELLLM = {
    "DATASETS.WEIGHTS": "{}",
    "DATASETS.TRAIN": "[region:shapes_train, refer:shapes_train, trace:shapes_train]",
    "DATASETS.SAMPLES_PER_EPOCH": "5",
    "DATASETS.TEST": "[refer:shapes_val]",
    "MODEL.TEXT_DECODER.DROPOUT": "0.1",
}
SYSTEMS = ("Pix2Cap", "PixelLLM")
OF_TIME = ("images_per_second", "data_wait", "shares", "memory_gb", "mfu", "seconds")


def words(system: str, folder: Path, **changes: object) -> list[str]:
    """Return the command line's ``--conf_files FILE --overrides KEY VALUE ...``; dots in keys are written ``__``."""
    changed = {key.replace("__", "."): str(value) for key, value in changes.items()} | {"SAVE_DIR": str(folder)}
    if system == "Pix2Cap":
        pairs = COMMON | PIX2CAP | changed
        return ["--conf_files", str(QUICKSTART), "--overrides", *tiny_overrides(*sum(pairs.items(), ()))]
    own = [*tiny_pixelllm.TINY, *sum((COMMON | PIXELLLM | changed).items(), ())]
    return ["--conf_files", str(tiny_pixelllm.SHIPPED), "--overrides", *own]


def config(system: str, folder: Path, **changes: object) -> Any:
    """Return the resolved configuration of `words`."""
    _, file, _, *overrides = words(system, folder, **changes)
    return load_config([file], overrides, model_schemas=MODEL_SCHEMAS)


def train(
    cfg: Any,
    world: World | None = None,
    *,
    evaluates: bool = False,
    before: Callable[[TrainingRun], None] = id,
    after_step: Callable[[TrainingRun], None] = id,
) -> TrainingRun:
    """Train to the end.

    Args:
        cfg: the configuration.
        world: this process among its peers.
        evaluates: whether the run scores anything.
        before: called with the run before it starts.
        after_step: called with the run after each step.
    """
    run = TrainingRun(cfg, world or World())
    if not evaluates:
        run.evaluate = dict
    before(run)
    own = run._after_step

    def both() -> None:
        own()
        after_step(run)

    run._after_step = both
    run.run()
    return run


def train_on(size: int, cfg: Any, fault: str | None = None, timeout: float = 120, **options: Any) -> list[int]:
    """`train` in forked processes, as many as there are ranks; returns their exit codes, as those of the command."""

    def alone() -> None:
        multiprocessing.current_process().daemon = False  # else it could not start processes that load
        try:
            train(cfg, **options)
        except (Exception, KeyboardInterrupt) as err:
            text, code = describe(err)
            sys.stderr.write(f"{text}\n")
            raise SystemExit(code) from None

    if size == 1:
        return [toy.in_process(alone, fault, timeout=timeout)]
    return toy.on_ranks(lambda world: train(cfg, world, **options), size, fault, timeout)


def run_of(folder: Path) -> Path:
    """Return the one run in SAVE_DIR."""
    (run,) = (folder / "tiny").iterdir()
    return run


def cut_back(run: Path, step: int, copy: Path) -> Path:
    """Copy a run's folder as it was after a step, the log excepted, which goes on to the end."""
    name = f"step_{step:08d}"
    shutil.copytree(run, copy, ignore=lambda folder, names: [n for n in names if n[:5] == "step_" and n != name])
    (copy / "latest").write_text(f"{name}\n")
    (copy / "model.safetensors").unlink(missing_ok=True)
    return copy


def metrics(run: Path, event: str = "train") -> list[dict]:
    """Return the lines of the log but for what is measured with a clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in OF_TIME} for line in lines if line["event"] == event]


def outcome(run: Path) -> dict[str, object]:
    """Return what two equal runs have in common, to the last bit."""
    last = run / "checkpoints" / (run / "latest").read_text().strip()
    found: dict[str, object] = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    found["state"] = json.loads((last / "state.json").read_text()) | {"seconds": 0}
    found["metrics"] = metrics(run)
    found["exported"] = (run / "model.safetensors").read_bytes()
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Return which parts of two outcomes differ: none of equal runs."""
    ours, theirs = outcome(one), outcome(other)
    return [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
