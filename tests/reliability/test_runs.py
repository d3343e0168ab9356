"""Runs that are resumed, repeated, or watched more or less closely end with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from locap import entry
from locap.datasets.shapes import Shapes
from locap.modeling import systems
from locap.trainer import evaluate, run_folder, saving
from locap.trainer.checkpoint import CheckpointFolder
from locap.trainer.distributed import World
from locap.trainer.ema import MovingAverage
from locap.trainer.experiment import TrainingRun
from locap.utils.errors import CheckpointError, UsageError

from . import tiny, toy

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
KILLED = -signal.SIGKILL


@pytest.mark.fault("A1")
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("system", tiny.SYSTEMS)
def test_a_run_goes_on_exactly_from_every_step(system, size, tmp_path, figure, scale):
    """The numbers of the log are compared as well; it still holds the lines after the step, which must not stay."""
    steps = scale(6, STEPS)
    changes = {"SOLVER__MAX_STEPS": steps}
    assert tiny.train_on(size, tiny.config(system, tmp_path / "whole", **changes)) == [0] * size
    whole = tiny.run_of(tmp_path / "whole")
    losses = [line["loss"] for line in tiny.metrics(whole)]
    assert len(set(losses)) == steps
    assert {"model.safetensors", "optimizer.safetensors", "ema.safetensors"} < tiny.outcome(whole).keys()
    starts = range(1, steps + 1) if scale(0, 1) else (4,)
    for step in starts:
        copy = tiny.cut_back(whole, step, tmp_path / f"from_{step}")
        again = tiny.config(system, tmp_path / "none", **changes, RESUME=True, RESUME_FROM=copy)
        assert tiny.train_on(size, again) == [0] * size, step
        assert tiny.differences(whole, copy) == [], step
    figure("T2", f"{system}, {size} rank(s), average and log included: bitwise from {len(starts)} of {steps} steps")


def _forget(*names: str, value: object = 0) -> Callable[[], None]:
    """Return what makes a resumed run not know a part of its state."""
    known = saving.converted_position
    return lambda: setattr(saving, "converted_position", lambda *args: known(*args) | dict.fromkeys(names, value))


def _forget_moment(name: str) -> None:
    restore = saving.restore_optimizer
    kept = lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(name)}  # noqa: E731
    zeros = lambda tensors: {key: value * 0 for key, value in tensors.items() if key.startswith(name)}  # noqa: E731
    saving.restore_optimizer = lambda optimizer, model, tensors: restore(
        optimizer, model, kept(tensors) | zeros(tensors)
    )


ABLATIONS = {
    "nothing": lambda: None,
    "weights": lambda: setattr(saving, "load_weights", lambda *args, **options: None),
    "optimiser": lambda: setattr(saving, "restore_optimizer", lambda *args: None),
    "first moment": lambda: _forget_moment("exp_avg/"),
    "second moment": lambda: _forget_moment("exp_avg_sq/"),
    "count of the optimiser": lambda: _forget_moment("step/"),
    "average": lambda: setattr(MovingAverage, "load", lambda *args: None),
    "step": _forget("step"),
    "epoch": _forget("epoch"),
    "place in the epoch": _forget("batch"),
    "scaler": _forget("scaler", value=None),
}


@pytest.mark.parametrize("item", ABLATIONS)
def test_every_part_of_the_state_is_needed(item, tmp_path):
    """In half precision, where the first step overflows, so that the scale is not what it was at the start."""
    options = {"options": {"precision": "fp16"}}
    first = lambda folder: toy.train(folder, steps=4, **options)  # noqa: E731

    def rest(folder: Path) -> None:
        ABLATIONS[item]()
        toy.train(folder, steps=7, **options)

    whole, part = tmp_path / "whole", tmp_path / "part"
    overflow = "step.forward@1:nan"
    assert toy.in_process(lambda: toy.train(whole, steps=7, **options), overflow) == 0
    assert toy.in_process(lambda: first(part), overflow) == 0
    assert toy.in_process(lambda: rest(part)) == 0
    same = toy.outcome(whole) == toy.outcome(part)
    assert same == (item == "nothing")


@pytest.mark.fault("D1")
def test_a_bad_step_of_one_rank_changes_no_bit_on_any(tmp_path):
    """And the order of samples moves on by one batch."""
    train = lambda world: toy.train(tmp_path, steps=2, world=world, options={"max_skipped": 1})  # noqa: E731
    assert toy.on_ranks(train, 2, "step.forward@2:nan#1") == [0, 0]
    before, after = (tmp_path / "checkpoints" / f"step_0000000{step}" for step in (1, 2))
    for path in before.glob("*.safetensors"):
        assert path.read_bytes() == (after / path.name).read_bytes(), path.name
    states = [json.loads((folder / "state.json").read_text()) for folder in (before, after)]
    assert [(s["step"], s["batch"], s["not_finite"]["skipped"]) for s in states] == [(1, 1, 0), (2, 2, 1)]


@pytest.mark.fault("D2")
@pytest.mark.parametrize("size", [1, 2])
def test_an_overflow_in_half_precision_lowers_the_scale_on_every_rank(size, tmp_path):
    """It is no divergence: ``max_skipped`` is 0."""
    train = lambda world: toy.train(tmp_path, steps=2, world=world, options={"precision": "fp16"})  # noqa: E731
    assert toy.on_ranks(train, size, f"step.forward@2:nan#{size - 1}") == [0] * size
    scales = [
        json.loads((tmp_path / "checkpoints" / f"step_0000000{step}" / "state.json").read_text())["scaler"]["scale"]
        for step in (1, 2)
    ]
    assert scales[1] == scales[0] / 2


WATCHED = {
    "again": {},
    "logged rarely": {"LOG_FIRST": 0, "LOG_EVERY": 4},
    "evaluated often": {"EVAL_EVERY_STEPS": 2, "EVAL_AT_START": True},
    "two loader processes": {"COCO__DATALOADER__NUM_WORKERS": 2},
    "other time-outs, TensorBoard": {"TIMEOUTS__STEP": 77, "TENSORBOARD": True},
    "saved in a thread, rarely": {"ASYNC_CHECKPOINTS": True, "CHECKPOINT_EVERY_STEPS": 3},
}


@pytest.mark.parametrize("system", tiny.SYSTEMS)
def test_what_watches_a_run_does_not_change_it(system, tmp_path, scale):
    """The same seed gives the same bits twice, with two threads as well."""

    def weights(name: str, **changes: object) -> dict[str, object]:
        folder = tmp_path / name.replace(" ", "_").replace(",", "")
        cfg = tiny.config(system, folder, SOLVER__MAX_STEPS=4, **changes)
        assert tiny.train_on(1, cfg, evaluates="EVAL_AT_START" in changes) == [0], name
        found = tiny.outcome(tiny.run_of(folder))
        return {key: value for key, value in found.items() if key != "metrics"}

    wanted = weights("first")
    names = list(WATCHED) if scale(0, 1) or system == "Pix2Cap" else ["again"]
    for name in names:
        assert weights(name, **WATCHED[name]) == wanted, name


# dropout is drawn by each rank for itself, so it is left out where their number changes; AdamW would make steps of
# full length out of rounding
STEADY = {"SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": "0.03", "SOLVER__MAX_STEPS": 4, "SHAPES__NUM_TRAIN": 9}
STEADY |= {"COCO__TRAIN__BATCH_SIZE_TOTAL": 4, "MODEL__TEXT_DECODER__DROPOUT": 0}
STEADY_PIX2CAP = STEADY | {"MODEL__DECODER__DROPOUT": 0, "MODEL__BACKBONE__FOCAL__DROP_PATH_RATE": 0}


def _note_order(run: TrainingRun) -> None:
    """Write down which images each step of this rank sees, and in which epoch."""
    own, folder = run.loop.step, run.folder

    def step(window: list) -> Any:
        with (folder / f"seen_{run.world.rank}_of_{run.world.size}.jsonl").open("a") as file:
            ids = [image for batch in window for image in batch.image_ids]
            file.write(json.dumps([run.loop.state.step, ids]) + "\n")
        return own(window)

    run.loop.step = step


def _order(run: Path, size: int) -> dict[int, list]:
    """Return step -> the images of the global batch, in order."""
    ranks = [
        dict(map(json.loads, (run / f"seen_{rank}_of_{size}.jsonl").read_text().splitlines())) for rank in range(size)
    ]
    longest = max(len(ids) for rank in ranks for ids in rank.values())
    return {step: [rank[step][k] for k in range(longest) for rank in ranks if k < len(rank[step])] for step in ranks[0]}


def _distance(one: Path, other: Path) -> float:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    return (apart / sum(float(tensor.square().sum()) for tensor in theirs.values())) ** 0.5


@pytest.mark.fault("B13")
def test_another_number_of_ranks_goes_on_with_the_same_samples(tmp_path, scale):
    """In the middle of an epoch of three batches, the last with a single image."""
    changes, wholes = [(2, 1), (2, 4), (1, 2)][: scale(2, 3)], {}
    for size in {before for before, _ in changes}:
        cfg = tiny.config("Pix2Cap", tmp_path / f"whole_{size}", **STEADY_PIX2CAP)
        assert tiny.train_on(size, cfg, before=_note_order) == [0] * size
        wholes[size] = tiny.run_of(tmp_path / f"whole_{size}")
    wanted = _order(wholes[2], 2)
    assert [len(ids) for ids in wanted.values()] == [4, 4, 1, 4]
    del wanted[0]
    for before, size in changes:
        copy = tiny.cut_back(wholes[before], 1, tmp_path / f"from_{before}_to_{size}")
        for file in copy.glob("seen_*"):
            file.unlink()
        cfg = tiny.config("Pix2Cap", tmp_path, **STEADY_PIX2CAP, RESUME=True, RESUME_FROM=copy)
        assert tiny.train_on(size, cfg, before=_note_order) == [0] * size
        assert _order(copy, size) == wanted
        assert _distance(copy, wholes[before]) < 1e-5, (before, size)


@pytest.mark.fault("B13")
def test_another_global_batch_and_ranks_that_do_not_divide_it_are_refused(tmp_path):
    cfg = tiny.config("Pix2Cap", tmp_path, **STEADY_PIX2CAP | {"SOLVER__MAX_STEPS": 1})
    assert tiny.train_on(1, cfg) == [0]
    run = tiny.run_of(tmp_path)
    again = STEADY_PIX2CAP | {"RESUME": True, "RESUME_FROM": run}
    with pytest.raises(CheckpointError, match="was started with another value"):
        TrainingRun(tiny.config("Pix2Cap", tmp_path, **again | {"COCO__TRAIN__BATCH_SIZE_TOTAL": 2}), World())
    with pytest.raises(UsageError, match="4 samples over 3 processes"):
        TrainingRun(tiny.config("Pix2Cap", tmp_path, **again), World(0, 3))


@pytest.mark.fault("B10")
def test_a_run_of_another_model_is_refused_and_left_alone(tmp_path):
    assert tiny.train_on(1, tiny.config("Pix2Cap", tmp_path, SOLVER__MAX_STEPS=1)) == [0]
    run = tiny.run_of(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    wider = {"MODEL__TEXT_DECODER__HIDDEN_SIZE": 64, "RESUME": True, "RESUME_FROM": run}
    with pytest.raises(CheckpointError, match="The weights do not fit the model"):
        TrainingRun(tiny.config("Pix2Cap", tmp_path, **wider), World())
    with pytest.raises(CheckpointError, match="was started with another value"):
        TrainingRun(tiny.config("PixelLLM", tmp_path, RESUME=True, RESUME_FROM=run), World())
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert after == before


@pytest.mark.fault("C5")
@pytest.mark.parametrize("images", [1, 3])
def test_fewer_images_than_ranks(images, tmp_path):
    """Some rank has no image in any step, and still both do the same as one."""
    changes = STEADY_PIX2CAP | {"SHAPES__NUM_TRAIN": images, "COCO__TRAIN__BATCH_SIZE_TOTAL": 4, "SOLVER__MAX_STEPS": 2}
    for size in (1, 4):
        cfg = tiny.config("Pix2Cap", tmp_path / str(size), **changes)
        assert tiny.train_on(size, cfg) == [0] * size
    assert _distance(*(tiny.run_of(tmp_path / str(size)) for size in (1, 4))) < 1e-5


@pytest.mark.fault("C6")
@pytest.mark.parametrize("system", tiny.SYSTEMS)
def test_a_rank_without_regions_steps_along(system, tmp_path):
    """Every second image shows nothing; alternately one rank, or both, have nothing to learn from."""

    def without_regions(world: World | None = None) -> None:
        whole = Shapes.__getitem__

        def half(self: Shapes, index: int) -> Any:
            record = whole(self, index)
            return replace(record, regions=[], narratives=(), captions=()) if index % 2 else record

        Shapes.__getitem__ = half
        steady = STEADY_PIX2CAP if system == "Pix2Cap" else STEADY
        cfg = tiny.config(system, tmp_path / str(world.size), **steady | {"COCO__TRAIN__BATCH_SIZE_TOTAL": 2})
        run = tiny.train(cfg, world)
        assert all(parameter.grad is None for parameter in run.model.parameters())

    for size in (1, 2):
        assert toy.on_ranks(without_regions, size) == [0] * size
    one, two = (tiny.run_of(tmp_path / str(size)) for size in (1, 2))
    assert _distance(one, two) < 1e-5
    assert all(line["loss"] is not None for line in tiny.metrics(two))


@pytest.mark.fault("C7")
@pytest.mark.parametrize("what", ["save", "scores"])
def test_the_others_wait_for_what_rank_0_does_alone(what, tmp_path):
    """Longer than a step may last: it is no step."""

    def slow(function: Callable) -> Callable:
        def slowed(*args: Any, **options: Any) -> Any:
            time.sleep(6)
            return function(*args, **options)

        return slowed

    def run(world: World) -> None:
        if what == "save":
            CheckpointFolder.save = slow(CheckpointFolder.save)
        else:
            evaluate.score = slow(evaluate.score)
        often = {"CHECKPOINT_EVERY_STEPS": 2 if what == "save" else 100, "EVAL_EVERY_STEPS": 2}
        cfg = tiny.config("Pix2Cap", tmp_path, SOLVER__MAX_STEPS=3, TIMEOUTS__STEP=3, **often)
        tiny.train(cfg, world, evaluates=what == "scores")

    assert toy.on_ranks(run, 2) == [0, 0]


@pytest.mark.fault("B3")
@pytest.mark.parametrize("place", ["a file", "below a file", "forbidden"])
def test_a_folder_that_cannot_be_used_is_told_before_the_model_is_built(place, tmp_path, capsys, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("a model was built")

    (tmp_path / "file").touch()
    folder = {"a file": "file", "below a file": "file/runs", "forbidden": "."}[place]
    if place == "forbidden":  # root may write everywhere
        monkeypatch.setattr(run_folder.os, "access", lambda path, mode: False)
    for name, system in systems.SYSTEMS.items():
        monkeypatch.setitem(systems.SYSTEMS, name, replace(system, model=never))
    began = time.monotonic()
    assert entry.main(["train", *tiny.words("Pix2Cap", tmp_path / folder)]) == 4
    assert time.monotonic() - began < 2
    error = capsys.readouterr().err
    assert "The run's folder cannot be made" in error
    assert "SAVE_DIR" in error
    assert "Traceback" not in error


@pytest.mark.fault("A1")
def test_the_same_command_restarts_a_killed_run(tmp_path, figure):
    """With the real command, imports and all."""
    steps = {"SOLVER__MAX_STEPS": 5}
    command = [sys.executable, str(ROOT / "entry.py"), "train"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    killed = environment | {"LOCAP_FAULT": "step.end@3:kill"}
    words = tiny.words("Pix2Cap", tmp_path / "part", **steps)
    assert subprocess.run([*command, *words], env=killed, capture_output=True, timeout=120).returncode == KILLED
    run = tmp_path / "part" / "tiny" / "run_1"
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, *words, "RESUME", "true", "RESUME_FROM", str(run)], env=environment, stderr=subprocess.DEVNULL
    )
    while not any(line["step"] > 2 for line in tiny.metrics(run)):
        assert process.poll() is None
        time.sleep(0.01)
    seconds = time.monotonic() - began
    assert process.wait(120) == 0
    assert tiny.train_on(1, tiny.config("Pix2Cap", tmp_path / "whole", **steps)) == [0]
    assert tiny.differences(tiny.run_of(tmp_path / "whole"), run) == []
    assert seconds < 30
    figure("T4", f"tiny Pix2Cap, one process: {seconds:.1f} s from the command to the first step, imports included")
