"""N processes do what one does: the same losses, the same weights, the same predictions and figures."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from locap.modeling.schemas import MODEL_SCHEMAS
from locap.trainer.distributed import process_group
from locap.trainer.experiment import train
from locap.utils.config import load_config

BIN = Path(sys.executable).parent
# 5 images in batches of 2: the third step of an epoch and the third evaluation batch find one rank without an image
OPTIONS = ("SHAPES.NUM_TRAIN", "5", "COCO.TRAIN.BATCH_SIZE_TOTAL", "2", "SOLVER.MAX_STEPS", "5")
OPTIONS += ("MODEL.TEXT.PROMPT_TEMPLATES", "clip", "COCO.INPUT.RANDOM_FLIP", "horizontal")
# AdamW would make steps of full length out of gradients that are zero but for rounding, such as those of key biases
OPTIONS += ("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.03")
NO_EVALUATION = ("DATASETS.TEST", "[shapes_val]", "SHAPES.NUM_TEST", "1")


@pytest.fixture(scope="module")
def settings(trained) -> dict[str, object]:
    """Start from weights that find and describe something, so that the figures are not zero."""
    return {"EVAL_AT_START": True, "WEIGHT": True, "RESUME_FROM": trained.folder / "model.safetensors"}


@pytest.fixture(scope="module")
def alone(tiny_config, settings, tmp_path_factory) -> Path:
    """The run folder of one process."""
    cfg = tiny_config(*OPTIONS, SAVE_DIR=tmp_path_factory.mktemp("alone"), **settings)
    with process_group(device="cpu") as world:
        return train(cfg, world)[0]


def mpirun() -> list[str]:
    program = BIN / "mpirun"
    if not program.exists():
        pytest.skip("mpirun is not installed beside this Python: 2 processes under mpirun were not checked")
    return [str(program), "-n", "2", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def torchrun() -> list[str]:
    return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("launcher", [mpirun, torchrun])
def test_two_processes_are_one(launcher, alone, tiny, settings, tmp_path, start, python):
    words = [*launcher(), *([python] if launcher is mpirun else []), "entry.py", "train"]
    words += ["--conf_files", "configs/quickstart.yaml", "--overrides", *tiny(*OPTIONS, SAVE_DIR=tmp_path, **settings)]
    done = start(*words)
    assert done.code == 0, done.err
    assert "2 process(es)" in done.err
    run = tmp_path / "quickstart" / "run_1"
    assert not (tmp_path / "quickstart" / "run_2").exists()
    assert_same_training(run, alone)
    assert_same_evaluation(run, alone)


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run: Path, alone: Path, tolerance: float = 1e-5) -> None:
    """All losses of all steps, and the final weights relative to their norm."""
    ours, theirs = ([event for event in events(folder) if event["event"] == "train"] for folder in (run, alone))
    assert [event["step"] for event in ours] == [1, 2, 3, 4, 5]
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["lr"] == other["lr"]
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, alone))
    assert weights.keys() == others.keys()
    apart = sum(float((weights[name] - others[name]).square().sum()) for name in weights)
    assert (apart / sum(float(tensor.square().sum()) for tensor in others.values())) ** 0.5 < tolerance


def assert_same_evaluation(run: Path, alone: Path) -> None:
    """At the start, where the weights are equal to the last bit."""
    ours, theirs = (folder / "evaluations" / "step_00000000" for folder in (run, alone))
    assert (ours / "predictions.json").read_bytes() == (theirs / "predictions.json").read_bytes()
    figures = [json.loads((folder / "results.json").read_text())["results"] for folder in (ours, theirs)]
    assert figures[0] == figures[1]
    values = {name: value for result in figures[0] for name, value in result["figures"].items()}
    assert values["pq"] > 0, "equal zeros would say nothing"
    assert values["size"] > 0
    for name in ("panoptic_regions.csv", "caption_attributes_regions.csv"):
        if (theirs / name).exists():
            assert list(csv.reader((ours / name).open())) == list(csv.reader((theirs / name).open()))
    assert [event["step"] for event in events(run) if event["event"] == "evaluate"] == [0, 5]


def _member(rank: int, port: int, cfg) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group(device="cpu") as world:
        train(cfg, world)


def train_with_two(cfg) -> list[int]:
    """Train in two forked processes, which saves them the start-up; returns their exit codes."""
    context, port = multiprocessing.get_context("fork"), free_port()
    members = [context.Process(target=_member, args=(rank, port, cfg), daemon=True) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(60)
    return [member.exitcode for member in members]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("MODEL.DECODER.FROZEX", "true", "MODEL.MASK_HEAD_ENABLED", "true"), id="published freezing"),
        pytest.param(("MODEL.DECODER.DETECTION", "true", "GRADIENT_ACCUMULATE_STEP", "2"), id="boxes, accumulation"),
        pytest.param(
            # a small rate, because AdamW turns rounding of gradients near zero into steps of full length
            ("MODEL.DECODER.DENSECAPTION_MATCH", "iou", "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.0001"),
            id="iou, AdamW",
        ),
    ],
)
def test_every_kind_of_training_works_with_two(tiny_config, tmp_path, options):
    """A parameter without a gradient on one rank would stop both."""
    options = (*OPTIONS, *NO_EVALUATION, "SOLVER.BASE_LR", "0.001", *options)
    with process_group(device="cpu") as world:
        alone, _, _ = train(tiny_config(*options, SAVE_DIR=tmp_path / "alone"), world)
    assert train_with_two(tiny_config(*options, SAVE_DIR=tmp_path / "two")) == [0, 0]
    tolerance = 1e-4 if "ADAMW" in options else 1e-5
    assert_same_training(tmp_path / "two" / "tiny" / "run_1", alone, tolerance)


def test_two_go_on_where_one_stopped(tiny_config, tmp_path):
    options = (*OPTIONS, *NO_EVALUATION)
    with process_group(device="cpu") as world:
        alone, _, _ = train(
            tiny_config(*options, SAVE_DIR=tmp_path, CHECKPOINT_EVERY_STEPS=2, KEEP_CHECKPOINTS=0), world
        )
    copy = tmp_path / "copy"
    shutil.copytree(alone, copy)
    for newer in ("step_00000003", "step_00000004", "step_00000005"):
        shutil.rmtree(copy / "checkpoints" / newer)
    cfg = tiny_config(*options, SAVE_DIR=tmp_path, RESUME=True, RESUME_FROM=copy)
    assert train_with_two(cfg) == [0, 0]
    assert_same_training(copy, alone)


@pytest.mark.parametrize("aids", [False, True], ids=["published parts", "aids"])
def test_prompts_of_every_task_with_two(aids, tiny_pixelllm, tmp_path):
    """Tasks differ between the ranks of a step, and the last batch leaves one rank without an image."""
    words = [
        *tiny_pixelllm.TINY,
        *(tiny_pixelllm.AIDS if aids else ()),
        "SHAPES.NUM_TRAIN",
        "1",
        "SHAPES.NUM_TEST",
        "1",
    ]
    words += ["SHAPES.IMAGE_SIZE", "64", "DATASETS.WEIGHTS", "{}", "COCO.TRAIN.BATCH_SIZE_TOTAL", "2"]
    words += ["DATASETS.TRAIN", "[region:shapes_train, refer:shapes_train, trace:shapes_train]", "BASENAME", "tiny"]
    words += ["DATASETS.TEST", "[refer:shapes_val]", "SOLVER.MAX_STEPS", "5", "SOLVER.BASE_LR", "0.001"]
    words += [
        "SOLVER.OPTIMIZER",
        "SGD",
        "TENSORBOARD",
        "false",
        "DEVICE",
        "cpu",
        "LOG_FIRST",
        "9",
        "EVAL_AT_START",
        "false",
    ]
    if aids:
        words[words.index("DATASETS.TRAIN") + 1] = "[detect:shapes_train, refer:shapes_train, trace:shapes_train]"

    def cfg(folder: str):
        options = [*words, "SAVE_DIR", str(tmp_path / folder)]
        return load_config([tiny_pixelllm.SHIPPED], options, model_schemas=MODEL_SCHEMAS)

    with process_group(device="cpu") as world:
        alone, _, _ = train(cfg("alone"), world)
    assert train_with_two(cfg("two")) == [0, 0]
    assert_same_training(tmp_path / "two" / "tiny" / "run_1", alone)
