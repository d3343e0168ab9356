"""Whole runs whose processes share one model: they learn, save, go on and predict as those with a copy each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp  # once, for all processes that are forked
from safetensors.torch import load_file

from locap.modeling.checkpoints.loader import find_weights
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.trainer.distributed import World
from locap.trainer.experiment import TrainingRun, evaluate, train
from locap.utils.config import load_config
from locap.utils.errors import LocapError, Stopped

# 5 images in batches of 4: the second step of an epoch and the third evaluation batch find ranks without an image
OPTIONS = ("SHAPES.NUM_TRAIN", "5", "COCO.TRAIN.BATCH_SIZE_TOTAL", "4", "SOLVER.MAX_STEPS", "4")
OPTIONS += ("MODEL.TEXT.PROMPT_TEMPLATES", "clip", "COCO.INPUT.RANDOM_FLIP", "horizontal")
# AdamW would make steps of full length out of gradients that are zero but for rounding, such as those of key biases
OPTIONS += ("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.03", "SOLVER.EMA_DECAY", "0.5", "EVAL_PICTURES", "0")
SAVING = {"CHECKPOINT_EVERY_STEPS": 2, "KEEP_CHECKPOINTS": 0}
FULL = os.environ.get("LOCAP_RELIABILITY") == "full"
ONLY_FULL = pytest.mark.skipif(not FULL, reason="only with LOCAP_RELIABILITY=full")
NO_EVALUATION = ("DATASETS.TEST", "[shapes_val]", "SHAPES.NUM_TEST", "1")
SHARED = ("PARALLEL.STRATEGY", "fsdp")
FILES = "model", "ema"
SHARDS = [f"{file}-{part:05d}-of-00002.safetensors" for file in ("ema", "model", "optimizer") for part in (1, 2)]


def _train(world: World, cfg: object) -> str:
    return str(train(cfg, world)[0])


def _stop(world: World, cfg: object, after: int) -> str:
    """Train until a request, which only the last rank hears."""
    run = TrainingRun(cfg, world)
    if world.rank == world.size - 1:
        run.stop.requested = lambda: run.loop.state.step >= after - 1
    with pytest.raises(Stopped):
        run.run()
    return str(run.folder)


@pytest.fixture(scope="module")
def run_on(on_ranks, tiny_config) -> Callable[..., Path]:
    """``run_on(ranks, folder, *options, **values)``: train; returns the run's folder."""

    def call(ranks: int, folder: Path, *options: str, function: Callable = _train, extra=(), **values) -> Path:
        cfg = tiny_config(*OPTIONS, *options, SAVE_DIR=folder, **values)
        return Path(function(World(), cfg, *extra) if ranks == 1 else on_ranks(ranks, function, cfg, *extra)[0])

    return call


@pytest.fixture(scope="module")
def copies(run_on, tmp_path_factory) -> Path:
    """The run of two processes with a copy each."""
    return run_on(2, tmp_path_factory.mktemp("copies"), *NO_EVALUATION, **SAVING)


@pytest.fixture(scope="module")
def shared_run(run_on, tmp_path_factory) -> Path:
    """The run of two processes that share the model."""
    return run_on(2, tmp_path_factory.mktemp("shared"), *SHARED, EVAL_EVERY_STEPS=2, **SAVING)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


def apart(run: Path, other: Path, file: str = "model.safetensors") -> float:
    """Return the distance of two runs' weights, relative to their norm."""
    ours, theirs = load_file(run / file), load_file(other / file)
    assert ours.keys() == theirs.keys()
    squares = sum(float((ours[name].double() - theirs[name]).square().sum()) for name in ours)
    return (squares / sum(float(tensor.double().square().sum()) for tensor in theirs.values())) ** 0.5


def halfway(run: Path, to: Path) -> Path:
    """Copy a run as it was killed after its second step."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "step_00000004")
    (to / "model.safetensors").unlink()
    return to


def predictions(folder: Path) -> bytes:
    content = (folder / "predictions.json").read_bytes()
    assert any(record["regions"] for record in json.loads(content)["records"]), "equal nothings would say nothing"
    return content


def test_processes_that_share_a_model_train_as_those_with_copies(shared_run, copies):
    assert losses(shared_run) == pytest.approx(losses(copies), rel=1e-5)
    assert apart(shared_run, copies) < 1e-5
    assert sorted(path.name for path in (shared_run / "checkpoints").glob("step_????????")) == sorted(
        path.name for path in (copies / "checkpoints").glob("step_????????")
    )
    files = {path.name for path in (shared_run / "checkpoints" / "step_00000002").iterdir()}
    assert files == {*SHARDS, "state.json", "manifest.json"}


@pytest.mark.parametrize("ranks", ["shared_run", "copies"])
def test_the_average_is_exported(ranks, copies, request):
    last, average = (load_file(copies / "checkpoints" / "step_00000004" / f"{file}.safetensors") for file in FILES)
    assert any(not torch.allclose(last[name], average[name], atol=1e-5) for name in average)
    exported = load_file(request.getfixturevalue(ranks) / "model.safetensors")
    assert exported.keys() == last.keys()
    for name, value in exported.items():
        torch.testing.assert_close(value, average.get(name, last[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [2, 4])
def test_one_process_predicts_the_same(step, shared_run, tiny_config, tmp_path):
    """From the exported weights; and, of a run that was killed, from a checkpoint in parts with its average."""
    run = shared_run if step == 4 else halfway(shared_run, tmp_path / "killed")
    found = find_weights(run)
    assert found == (run / "model.safetensors" if step == 4 else run / "checkpoints" / "step_00000002")
    evaluate(tiny_config(*OPTIONS, SAVE_DIR=tmp_path, RESUME_FROM=run), World())
    theirs = predictions(shared_run / "evaluations" / f"step_{step:08d}")
    assert predictions(tmp_path / "tiny" / "evaluation") == theirs


@pytest.mark.fault("B13")
@pytest.mark.parametrize(
    ("writers", "readers", "options"),
    [(2, 2, SHARED), (2, 1, ()), (2, 2, ()), pytest.param(2, 4, SHARED, marks=ONLY_FULL), (1, 2, SHARED)],
    ids=["shared", "one process", "copies", "four", "from copies"],
)
def test_a_run_goes_on_with_other_processes(writers, readers, options, shared_run, copies, run_on, tmp_path):
    written = shared_run if writers == 2 else copies
    run = halfway(written, tmp_path / "killed")
    assert run_on(readers, tmp_path, *options, *NO_EVALUATION, RESUME=True, RESUME_FROM=run, **SAVING) == run
    if (written, readers, options) == (shared_run, 2, SHARED):
        assert apart(run, shared_run) == 0
        assert losses(run) == losses(shared_run)
    assert losses(run) == pytest.approx(losses(copies), rel=1e-5)
    assert apart(run, copies) < 1e-5


@pytest.mark.fault("A8")
def test_a_stopped_run_goes_on_to_the_last_bit(run_on, tmp_path):
    """AdamW in half precision, with steps of several batches; two processes per copy of four in `make reliability`."""
    ranks, pairs = (4, ("PARALLEL.RANKS_PER_COPY", "2")) if FULL else (2, ())
    options = (*SHARED, *pairs, *NO_EVALUATION, "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.001")
    options += ("PRECISION", "bf16", "GRADIENT_ACCUMULATE_STEP", "2")
    whole = run_on(ranks, tmp_path / "whole", *options)
    stopped = run_on(ranks, tmp_path / "stopped", *options, function=_stop, extra=(2,))
    assert losses(stopped) == losses(whole)[:2]
    run_on(ranks, tmp_path, *options, RESUME=True, RESUME_FROM=stopped)
    assert losses(stopped) == losses(whole)
    assert apart(stopped, whole) == 0


@ONLY_FULL
@pytest.mark.fault("B1")
def test_pairs_of_processes_share_a_copy_each_though_a_disk_refuses(run_on, copies, tmp_path, monkeypatch):
    """The last rank's disk refuses one checkpoint, which costs that checkpoint and nothing else."""
    monkeypatch.setenv("LOCAP_FAULT", "checkpoint.write@1:enospc#3")
    run = run_on(4, tmp_path, *SHARED, "PARALLEL.RANKS_PER_COPY", "2", *NO_EVALUATION, **SAVING)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000004"]
    assert losses(run) == pytest.approx(losses(copies), rel=1e-5)
    assert apart(run, copies) < 1e-5


def test_a_run_that_turns_the_average_on_starts_it_at_its_weights(run_on, tmp_path):
    options = (*NO_EVALUATION, "SOLVER.MAX_STEPS", "1", "SOLVER.EMA_DECAY")
    run = run_on(1, tmp_path, *options, "0")
    run_on(1, tmp_path, *options, "0.5", RESUME=True, RESUME_FROM=run)
    assert apart(run, run / "checkpoints" / "step_00000001") == 0


@pytest.mark.parametrize("half", [("PRECISION", "fp16"), ("FP16", "true")])
def test_loss_scaling_of_a_shared_model_is_refused(half, tiny_config):
    with pytest.raises(LocapError, match=r"PARALLEL.STRATEGY") as caught:
        tiny_config(*SHARED, *half)
    assert "bf16" in str(caught.value)


@ONLY_FULL
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: a compiled run was not checked")
def test_a_compiled_run_learns_the_same(run_on, tmp_path):
    options = (*NO_EVALUATION, "SOLVER.MAX_STEPS", "2")
    plain = run_on(1, tmp_path / "plain", *options)
    compiled = run_on(1, tmp_path / "compiled", *options, COMPILE=True)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    assert apart(compiled, plain) < 1e-4


def test_prompts_of_every_task_with_a_shared_model(tiny_pixelllm, on_ranks, tmp_path):
    """Ranks call the language model equally often, whatever their tasks; predictions need not."""
    changes = {
        **{"SHAPES.NUM_TRAIN": "1", "SHAPES.NUM_TEST": "1", "SHAPES.IMAGE_SIZE": "64", "BASENAME": "tiny"},
        **{"DATASETS.TRAIN": "[region:shapes_train, refer:shapes_train, trace:shapes_train]"},
        **{"DATASETS.TEST": "[refer:shapes_val]", "DATASETS.WEIGHTS": "{}", "COCO.TRAIN.BATCH_SIZE_TOTAL": "2"},
        **{"SOLVER.MAX_STEPS": "3", "SOLVER.BASE_LR": "0.001", "SOLVER.OPTIMIZER": "SGD", "SOLVER.EMA_DECAY": "0.5"},
        **{"TENSORBOARD": "false", "DEVICE": "cpu", "LOG_FIRST": "9", "EVAL_AT_START": "false", "EVAL_PICTURES": "0"},
    }
    words = [*tiny_pixelllm.TINY, *(word for pair in changes.items() for word in pair)]

    def run_of(folder: str, *options: str) -> Path:
        overrides = [*words, "SAVE_DIR", str(tmp_path / folder), *options]
        cfg = load_config([tiny_pixelllm.SHIPPED], overrides, model_schemas=MODEL_SCHEMAS)
        return Path(on_ranks(2, _train, cfg)[0])

    copies, shared = run_of("copies"), run_of("shared", *SHARED)
    assert losses(shared) == pytest.approx(losses(copies), rel=1e-5)
    assert apart(shared, copies) < 1e-5
    theirs, ours = (run / "evaluations" / "step_00000003" for run in (copies, shared))
    assert sorted(path.name for path in ours.rglob("*.json")) == sorted(path.name for path in theirs.rglob("*.json"))
