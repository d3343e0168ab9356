"""A dry run says what a run would be, and what is missing, without numbers in the model and without a folder."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from locap.modeling.schemas import MODEL_SCHEMAS
from locap.trainer.distributed import World
from locap.trainer.dry_run import count_parameters, dry_run, estimate_memory, make_plan, plan_batches
from locap.utils.config import load_config
from locap.utils.errors import DataError, LocapError, UsageError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICK, FULL = CONFIGS / "quickstart.yaml", CONFIGS / "pix2cap_panoptic_segmentation_captioning.yaml"
FEW = ("SHAPES.NUM_TRAIN", "50", "SHAPES.NUM_TEST", "5", "SOLVER.MAX_STEPS", "40", "SOLVER.WARMUP_ITERS", "10")


def config(path: Path, *overrides: str):
    return load_config([path], list(overrides), model_schemas=MODEL_SCHEMAS)


def printed(cfg, world: World | None = None, **options) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    try:
        dry_run(cfg, world or World(), console=console, **options)
    finally:
        text = console.export_text()
    return text


def test_everything_is_told_and_nothing_written(tmp_path: Path):
    text = printed(config(QUICK, *FEW, "SAVE_DIR", str(tmp_path), "BASENAME", "quick"))
    for words in ("captioner", "learning rate", "shapes_train", "ESTIMATE", "not estimated", f"{tmp_path}/quick/run_"):
        assert words in text
    assert not list(tmp_path.iterdir())


def test_a_pass_can_be_measured():
    assert "measured with 2 images" in printed(config(QUICK, *FEW, "COCO.TRAIN.BATCH_SIZE_TOTAL", "2"), measure=True)


def test_batch_arithmetic():
    cfg = config(QUICK, *FEW, "COCO.TRAIN.BATCH_SIZE_TOTAL", "4", "GRADIENT_ACCUMULATE_STEP", "2")
    batches = plan_batches(cfg, make_plan(cfg), World(size=2))
    assert (batches.per_process, batches.per_step, batches.samples, batches.batches_per_epoch) == (2, 8, 50, 13)
    assert (batches.steps, batches.warmup) == (40, 10)
    assert batches.epochs == pytest.approx(80 / 13)


def test_parameters_are_those_of_the_model_itself(tiny_pix2cap):
    model = tiny_pix2cap.build()
    counts = count_parameters(model)
    assert sum(n for n, _ in counts.values()) == sum(p.numel() for p in model.parameters())
    assert sum(t for _, t in counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_memory_arithmetic():
    cfg = config(QUICK, "SOLVER.EMA_DECAY", "0.999")
    alone = estimate_memory(100, 60, cfg, half=False)
    assert (alone.weights, alone.gradients, alone.optimizer, alone.average, alone.casts) == (400, 240, 480, 400, 0)
    shared = estimate_memory(100, 60, cfg, half=True, ranks_per_copy=4)
    assert shared.total == pytest.approx(alone.total / 4 + 50)
    assert estimate_memory(100, 60, config(QUICK), half=False).average == 0


def test_missing_data_are_told_after_the_model(tmp_path: Path):
    words = ("MODEL.TEXT.PRETRAINED_TOKENIZER", "shapes")
    cfg = config(FULL, *words, "DATASETS.ROOT", str(tmp_path), "WEIGHT", "false")
    console, started = Console(record=True, width=160, file=io.StringIO()), time.process_time()
    with pytest.raises(DataError, match=str(tmp_path)):
        dry_run(cfg, World(size=8), console=console)
    text = console.export_text()
    assert "captioner" in text
    assert "fsdp x 8" in text
    assert "unknown" in text
    assert time.process_time() - started < 20


@pytest.mark.parametrize("name", ["pixelllm/bert/pixel_llm_bert_densecap.yaml", "pixelllm/pixelllm_shapes.yaml"])
def test_pixelllm(name: str, tmp_path: Path):
    paths = [CONFIGS / name]
    cfg = load_config(paths, ["DATASETS.ROOT", str(tmp_path)], model_schemas=MODEL_SCHEMAS)
    plan = make_plan(cfg)
    assert plan.model is not None or plan.problems
    if plan.model is not None:
        assert {p.device for p in plan.model.parameters()} == {torch.device("meta")}


def test_wrong_names_end_it_at_once():
    with pytest.raises(UsageError, match=r"DATASETS\.TEST"):
        printed(config(QUICK, "DATASETS.TEST", "[region:shapes_val]"))
    with pytest.raises(LocapError):
        printed(config(QUICK, "RESUME", "true", "RESUME_FROM", "nowhere"))
