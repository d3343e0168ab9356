"""From nothing to a report: train on drawn scenes, evaluate on unseen ones, caption one more, and show it all."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ..datasets.records import Record, read_records
from ..datasets.shapes import Shapes
from ..evaluation.report import exit_code
from ..inference.captioner import Captioner
from ..inference.report import write_report
from .distributed import World, processes
from .experiment import TrainingRun

GOALS = {
    "PQ": 85.0,
    "size %": 90.0,
    "colour %": 80.0,
    "texture %": 60.0,
    "relation %": 40.0,
    "METEOR": 0.29,
    "CIDEr": 2.1,
    "mAP": 35.0,
}
SHOWN_SCENES = 12
_log = logging.getLogger(__name__)


def quickstart(cfg: Any, output: Path) -> int:
    """Run everything and write ``report.html``; returns the exit code.

    Args:
        cfg: the resolved configuration, of drawn scenes.
        output: folder of the report, of the example and of the run.
    """
    with processes(cfg, cfg.DEVICE if cfg.CUDA else "cpu") as world:
        started = time.monotonic()
        run = TrainingRun(cfg, world)
        figures = run.run()
        minutes = (time.monotonic() - started) / 60
        if not world.is_main:
            return 0
        _log.info("training and evaluation took %.1f minutes", minutes)
        report = write_page(run, figures, output, minutes=minutes, world=world)
        _log.info("report: %s", report)
        return exit_code(run.results)


def write_page(run: TrainingRun, figures: dict[str, float], output: Path, *, minutes: float, world: World) -> Path:
    """Caption an unseen scene and write the report."""
    cfg, categories = run.cfg, run.experiment.eval_sets[0].reader.categories
    scene = Shapes(1, seed=cfg.SHAPES.SEED, split="test", image_size=cfg.SHAPES.IMAGE_SIZE)[0]
    example = Captioner.of_model(run.model, cfg, categories).set_image(scene).caption_everything()
    example.save(output, "example")
    example.print(Console())
    parameters = sum(p.numel() for p in run.model.parameters())
    return write_report(
        output / "report.html",
        title="locap quickstart: Pix2Cap on drawn scenes",
        metrics_path=run.folder / "metrics.jsonl",
        categories=categories,
        figures={name: figures.get(name) for name in {**GOALS, **figures}},
        goals=GOALS,
        example=(example.pixels, example.record),
        grids={"Unseen scenes: truth and prediction": comparison(run)},
        config_summary={
            "training and evaluation": f"{minutes:.1f} minutes",
            "parameters": f"{parameters / 1e6:.1f} million",
            "training scenes seen": run.max_steps * cfg.COCO.TRAIN.BATCH_SIZE_TOTAL,
            "evaluation scenes, never trained on": len(run.experiment.eval_sets[0].reader),
            "picture size": f"{cfg.SHAPES.IMAGE_SIZE} pixels",
            "seed": cfg.SEED,
            "processes": world.size,
            "configuration": str(run.folder / "config.yaml"),
        },
    )


def comparison(run: TrainingRun) -> list[tuple[Any, Record, Record]]:
    """Return some evaluated scenes: (pixels, truth, prediction)."""
    folder = run.folder / "evaluations" / f"step_{run.max_steps:08d}"
    predictions, _, _ = read_records(folder / "predictions.json")
    reader = run.experiment.eval_sets[0].reader
    truths = [reader[index] for index in range(min(SHOWN_SCENES, len(predictions)))]
    return [(truth.read_image(), truth, prediction) for truth, prediction in zip(truths, predictions, strict=False)]
