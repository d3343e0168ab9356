"""A run of a prompted system from its configuration to its figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from locap.trainer.distributed import World
from locap.trainer.evaluate import score_stored
from locap.trainer.experiment import TrainingRun, evaluate
from locap.utils.errors import UsageError

EVERYTHING = "[trace:shapes_val, caption:shapes_val, region:shapes_val, refer:shapes_val, detect:shapes_val]"


def test_perfect_answers_score_perfectly_in_every_task(configure):
    cfg = configure("DATASETS.TRAIN", "[refer:shapes_train, trace:shapes_train]", "DATASETS.TEST", EVERYTHING)
    run = TrainingRun(cfg, World())
    figures = run.run()
    for name in ("P@0.5", "cIoU", "gIoU"):
        assert figures[f"{name} (refer:shapes_val)"] == 100
    assert figures["coverage % (trace:shapes_val)"] == 100
    assert figures["word error % (trace:shapes_val)"] == 0
    for task in ("caption", "region"):
        assert figures[f"BLEU-4 ({task}:shapes_val)"] == pytest.approx(1)
    assert figures["detection mAP (detect:shapes_val)"] > 99
    folder = run.folder / "evaluations" / "step_00000001"
    written = {path.name for path in folder.iterdir()}
    assert written == {f"{task}_shapes_val" for task in ("trace", "caption", "region", "refer", "detect")}
    for path in folder.iterdir():
        meta = json.loads((path / "predictions.json").read_text())["meta"]
        assert meta["data"] == path.name.replace("_", ":", 1)
        assert meta["decoding"] == {"beam_size": 1, "max_words": 30}
        assert (path / "results.json").is_file()


def test_real_files_are_trained_on_and_scored(configure, coco_mini):
    """Of several data sets with other categories, ids and sizes, in one mixture."""
    train = "[trace:ln_coco_val, region:vg_densecap_train, refer:refcoco_unc_train, instruct:llava_instruct]"
    test = "[trace:ln_coco_val, caption:coco_captions_val, refer:refcoco_unc_testB, detect:vg_densecap_test]"
    weights = "{trace:ln_coco_val: 2, instruct:llava_instruct: 0.5}"
    names = ("DATASETS.TRAIN", train, "DATASETS.TEST", test, "DATASETS.WEIGHTS", weights)
    variants = "{refer:refcoco_unc_testB: pixelllm, trace:ln_coco_val: standard}"
    cfg = configure(*names, "DATASETS.ROOT", str(coco_mini), "EVAL_VARIANTS", variants, "SOLVER.MAX_STEPS", "5")
    run = TrainingRun(cfg, World())
    figures = run.run()
    assert figures["P@0.5 (refer:refcoco_unc_testB)"] == 100
    assert figures["word error % (trace:ln_coco_val)"] == 0
    assert figures["coverage % (trace:ln_coco_val)"] == 100
    assert figures["BLEU-4 (caption:coco_captions_val)"] == pytest.approx(1)
    assert figures["detection mAP (detect:vg_densecap_test)"] > 60
    variants = {result.protocol: result.variant for result in run.results}
    assert variants["referring"] == "pixelllm"


def test_evaluations_during_training_take_some_images_of_each_data_set(configure):
    names = ("DATASETS.TEST", "[refer:shapes_val, trace:shapes_val]")
    run = TrainingRun(configure(*names, "SOLVER.MAX_STEPS", "2", "EVAL_AT_START", "true"), World())
    run.run()
    images = {
        step: [result.counts["images"] for result in results_in(run.folder / "evaluations" / f"step_{step:08d}")]
        for step in (0, 2)
    }
    assert images == {0: [2, 2], 2: [3, 3]}


def results_in(folder: Path) -> list:
    bodies = [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]
    return [SimpleNamespace(**result) for body in bodies for result in body["results"]]


def test_stored_predictions_are_scored_against_one_data_set(configure):
    cfg = configure("EVAL_VARIANTS", "{refer:shapes_val: pixellm}")
    run = TrainingRun(cfg, World())
    run.run()
    path = str(run.folder / "evaluations" / "step_00000001" / "refer_shapes_val" / "predictions.json")
    (result,) = score_stored(cfg, path)
    assert (result.protocol, result.variant) == ("referring", "pixellm")
    assert result.figures["giou"] == pytest.approx(1)
    assert [r.figures for r in evaluate(cfg, World(), predictions=path)] == [result.figures]
    several = configure("DATASETS.TEST", EVERYTHING)
    with pytest.raises(UsageError, match="several are configured") as caught:
        score_stored(several, path)
    assert caught.value.fix == "--overrides DATASETS.TEST [trace:shapes_val]"


def test_tasks_that_cannot_be_scored_are_told_before_training(configure):
    with pytest.raises(UsageError, match="No protocol scores"):
        TrainingRun(configure("DATASETS.TEST", "[instruct:shapes_val]"), World())
