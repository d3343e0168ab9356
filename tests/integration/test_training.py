"""Training runs of a tiny system: exact resume, accumulation, and what a run folder holds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from locap import entry
from locap.datasets import samplers
from locap.datasets.prepare.shards import write_shards
from locap.datasets.shapes import Shapes
from locap.trainer.distributed import World
from locap.trainer.experiment import TrainingRun
from locap.utils.errors import EXIT_STOPPED, CheckpointError, UsageError

RANDOM = (  # everything that draws
    *("MODEL.TEXT_DECODER.DROPOUT", "0.1", "MODEL.DECODER.DROPOUT", "0.1"),
    *("MODEL.TEXT.PROMPT_TEMPLATES", "clip"),
    *("COCO.INPUT.RANDOM_FLIP", "horizontal", "COCO.INPUT.MIN_SCALE", "0.5", "COCO.INPUT.MAX_SCALE", "1.5"),
)
SIX_STEPS = ("SOLVER.MAX_STEPS", "6", "SHAPES.NUM_TRAIN", "9", "DATASETS.TEST", "[shapes_val]", "SHAPES.NUM_TEST", "1")


class Killed(Exception):
    """Stands for the power cut."""


def train(cfg, kill_after: int | None = None) -> TrainingRun:
    run = TrainingRun(cfg, World())
    after_step = run._after_step

    def after() -> None:
        after_step()
        if run.loop.state.step == kill_after:
            raise Killed

    run._after_step = after
    try:
        run.run()
    except Killed:
        assert not (run.folder / "model.safetensors").exists()
    return run


def terminating(function: Callable, step: int) -> Callable:
    """Return a method of the run that asks for the end at a step, as the system does."""

    def both(run: TrainingRun, *arguments: object) -> object:
        if run.loop.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(run, *arguments)

    return both


def events(folder: Path, kind: str = "train") -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def losses(folder: Path) -> list[tuple]:
    return [(line["step"], line["lr"], line["loss"], line["grad_norm"], line["losses"]) for line in events(folder)]


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, optimiser and position, bit by bit."""
    ours, theirs = (run / "checkpoints" / (run / "latest").read_text().strip() for run in (one, other))
    assert ours.name == theirs.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    states = [json.loads((folder / "state.json").read_text()) | {"seconds": 0} for folder in (ours, theirs)]
    assert states[0] == states[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_goes_on_exactly(tiny_config, tmp_path, accumulate):
    """Killed in the middle of an epoch, one step after a checkpoint."""
    options = (*SIX_STEPS, *RANDOM, "MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0.2")
    options += ("COCO.TRAIN.BATCH_SIZE_TOTAL", str(2 // accumulate)) if accumulate > 1 else ()
    settings = {"GRADIENT_ACCUMULATE_STEP": accumulate, "CHECKPOINT_EVERY_STEPS": 3, "KEEP_CHECKPOINTS": 1}
    whole = train(tiny_config(*options, SAVE_DIR=tmp_path / "whole", **settings)).folder
    part = train(tiny_config(*options, SAVE_DIR=tmp_path / "part", **settings), kill_after=4).folder
    assert (part / "latest").read_text() == "step_00000003\n"
    with (part / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    resumed = train(tiny_config(*options, SAVE_DIR=tmp_path, RESUME=True, RESUME_FROM=part, **settings))
    assert resumed.folder == part
    assert not (tmp_path / "tiny").exists(), "no second run folder"
    assert_same_state(whole, part)
    assert (whole / "model.safetensors").read_bytes() == (part / "model.safetensors").read_bytes()
    assert [line["step"] for line in events(part)] == [1, 2, 3, 4, 5, 6]
    assert losses(part) == losses(whole)
    assert len({line["loss"] for line in events(part)}) == 6


def test_a_run_is_the_same_in_a_process_of_its_own(tiny, tiny_config, tmp_path, start, python):
    """Nothing may hang on what the process did before."""
    options = (*SIX_STEPS, *RANDOM, "SOLVER.MAX_STEPS", "4")
    here = train(tiny_config(*options, SAVE_DIR=tmp_path / "here")).folder
    first = train(tiny_config(*options, SAVE_DIR=tmp_path / "there", CHECKPOINT_EVERY_STEPS=2), kill_after=2).folder
    overrides = tiny(*options, RESUME=True, RESUME_FROM=first)
    done = start(python, "entry.py", "train", "--conf_files", "configs/quickstart.yaml", "--overrides", *overrides)
    assert done.code == 0, done.err
    assert_same_state(here, first)
    assert losses(first) == losses(here)


@pytest.mark.parametrize("fault", ["SIGTERM", "SIGKILL"])
def test_one_command_starts_a_run_and_goes_on_with_it(tiny, tiny_config, tmp_path, start, python, monkeypatch, fault):
    """Stopped at step 4 of 6, one step after a checkpoint; as often as it is given."""
    options = ("SOLVER.MAX_STEPS", "6", *SIX_STEPS[2:], *RANDOM, "CHECKPOINT_EVERY_STEPS", "3")
    whole = train(tiny_config(*options, SAVE_DIR=tmp_path / "whole")).folder
    words = ("train", "--conf_files", "quickstart.yaml", "--overrides")
    words += tuple(tiny(*options, SAVE_DIR=tmp_path, BASENAME="tiny", RESUME=True))
    if fault == "SIGKILL":
        monkeypatch.setenv("LOCAP_FAULT", "step.end@4:kill")
        assert start(python, "entry.py", *words).code == -signal.SIGKILL
        monkeypatch.delenv("LOCAP_FAULT")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "_should_report", terminating(TrainingRun._should_report, step=4))
            assert entry.main(list(words)) == EXIT_STOPPED
    part = tmp_path / "tiny" / "run_1"
    assert not (part / "model.safetensors").exists()
    assert entry.main(list(words)) == 0
    assert_same_state(whole, part)
    assert losses(part) == losses(whole)
    assert [run.name for run in (tmp_path / "tiny").iterdir()] == ["run_1"]
    if fault == "SIGKILL":
        assert entry.main([*words, "SOLVER.MAX_STEPS", "1"]) == 0
        assert sorted(run.name for run in (tmp_path / "tiny").iterdir()) == ["run_1", "run_2"], "run_1 is finished"


def test_going_on_from_an_older_checkpoint_repeats_from_there(tiny_config, tmp_path):
    options, settings = (*SIX_STEPS, "SOLVER.MAX_STEPS", "4"), {"CHECKPOINT_EVERY_STEPS": 2, "KEEP_CHECKPOINTS": 0}
    run = train(tiny_config(*options, SAVE_DIR=tmp_path, **settings)).folder
    older = run / "checkpoints" / "step_00000002"
    changed = tiny_config(*options, "SOLVER.BASE_LR", "2.0e-3", RESUME=True, RESUME_FROM=older, **settings)
    before = losses(run)
    train(changed)
    assert losses(run)[:2] == before[:2]
    assert [row[0] for row in losses(run)] == [1, 2, 3, 4]
    assert losses(run)[2][1] == pytest.approx(2 * before[2][1])
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step_00000002", "step_00000004", "step_00000004.abandoned"}


@pytest.mark.fault("B10")
def test_resuming_checks_what_it_is_given(tiny_config, tmp_path):
    run = train(tiny_config(*SIX_STEPS, "SOLVER.MAX_STEPS", "1", SAVE_DIR=tmp_path)).folder
    with pytest.raises(CheckpointError, match="There is no run to go on with"):
        TrainingRun(tiny_config(RESUME=True, RESUME_FROM=tmp_path, SAVE_DIR=tmp_path), World())
    with pytest.raises(CheckpointError, match="The weights do not fit the model"):
        TrainingRun(tiny_config(*SIX_STEPS, "MODEL.DIM_PROJ", "16", RESUME=True, RESUME_FROM=run), World())
    with (run / "checkpoints" / "step_00000001" / "optimizer.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        TrainingRun(tiny_config(*SIX_STEPS, RESUME=True, RESUME_FROM=run), World())


def distance(one: Path, other: Path, start: Path | None = None) -> float:
    """Return how far two runs' weights lie apart, relative to their norm, or to the way they came from ``start``."""
    ours, theirs, first = (load_file(run / "model.safetensors") if run else {} for run in (one, other, start))
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    scale = sum(float((ours[name] - first.get(name, 0)).square().sum()) for name in ours)
    return (apart / scale) ** 0.5


def test_two_accumulated_batches_are_one_of_twice_the_size(tiny_config, tmp_path):
    options = ("SOLVER.MAX_STEPS", "2", "SHAPES.NUM_TRAIN", "8", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01")
    options += ("MODEL.TEXT.PROMPT_TEMPLATES", "clip", "DATASETS.TEST", "[shapes_val]", "SHAPES.NUM_TEST", "1")
    size = "COCO.TRAIN.BATCH_SIZE_TOTAL"
    large = train(tiny_config(*options, size, "4", SAVE_DIR=tmp_path / "large")).folder
    small = train(tiny_config(*options, size, "2", SAVE_DIR=tmp_path / "small", GRADIENT_ACCUMULATE_STEP=2)).folder
    start = train(tiny_config(*options, size, "4", "SOLVER.BASE_LR", "0.0", SAVE_DIR=tmp_path / "start")).folder
    assert distance(large, small) < 1e-6
    assert distance(large, small, start) < 1e-4
    for ours, theirs in zip(losses(large), losses(small), strict=True):
        assert ours[2:4] == pytest.approx(theirs[2:4], rel=1e-6)


def test_saving_and_evaluating_happen_when_asked(tiny_config, tmp_path):
    """5 batches an epoch and 2 a step: the epochs end after steps 3 (middle of a step) and 5."""
    cfg = tiny_config(
        *SIX_STEPS,
        SAVE_DIR=tmp_path,
        GRADIENT_ACCUMULATE_STEP=2,
        KEEP_CHECKPOINTS=0,
        EVAL_EVERY_EPOCHS=2,
        EVAL_EVERY_STEPS=4,
        EVAL_AT_START=True,
        LOG_FIRST=1,
        LOG_EVERY=4,
    )
    run = train(cfg).folder
    saved = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert saved == ["step_00000003", "step_00000005", "step_00000006"]
    assert [line["step"] for line in events(run, "evaluate")] == [0, 4, 5, 6]
    assert [line["step"] for line in events(run)] == [1, 4, 6]
    assert sorted(path.name for path in (run / "evaluations").iterdir()) == [f"step_{s:08d}" for s in (0, 4, 5, 6)]


def test_the_run_folder_explains_itself_and_holds_no_pickle(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert names == {
        *("checkpoints", "config.yaml", "evaluations", "latest", "metrics.jsonl", "model.safetensors", "run.lock")
    }
    for path in trained.folder.rglob("*"):
        if path.is_file():
            assert path.suffix in {".safetensors", ".json", ".yaml", ".jsonl", ".csv", ".png", ".lock", ""}
            assert not path.read_bytes().startswith((b"\x80", b"PK"))
    first, *_, last = events(trained.folder)
    assert last["loss"] < first["loss"] / 2
    assert {"epoch", "lr", "images_per_second", "data_wait", "seconds", "grad_norm"} <= last.keys()


def test_bfloat16_trains(tiny_config, tmp_path):
    options = (*SIX_STEPS, "SOLVER.MAX_STEPS", "2")
    full, half = (
        losses(train(tiny_config(*options, SAVE_DIR=tmp_path / kind, PRECISION=kind)).folder)
        for kind in ("fp32", "bf16")
    )
    for exact, rough in zip(full, half, strict=True):
        assert rough[2] == pytest.approx(exact[2], rel=0.1)
        assert rough[2] != exact[2]


def test_a_wrong_protocol_is_told_before_anything_is_made(tiny_config, tmp_path):
    cfg = tiny_config(SAVE_DIR=tmp_path / "out", PROTOCOLS="[panoptik]")
    with pytest.raises(UsageError, match="There is no such protocol") as caught:
        TrainingRun(cfg, World())
    assert "use panoptic" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_frozen_parameters_stay(tiny_config, tmp_path):
    """FROZEX, as in the published recipe, trains the captioner and the class projection only."""
    options = (*SIX_STEPS, "SOLVER.MAX_STEPS", "2", "MODEL.DECODER.FROZEX", "true", "SOLVER.BASE_LR", "0.01")
    run = TrainingRun(tiny_config(*options, SAVE_DIR=tmp_path), World())
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run.run()
    changed = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all(name.startswith(("captioner.", "region_proj.", "region_tokens.", "decoder.class")) for name in changed)
    in_optimizer = load_file(run.folder / "checkpoints" / "step_00000002" / "optimizer.safetensors")
    assert {name.split("/", 1)[1] for name in in_optimizer} >= changed
    assert not any("backbone" in name for name in in_optimizer)


@pytest.fixture
def scenes(tiny_config, tmp_path) -> Path:
    """The nine scenes of `SIX_STEPS` as shards of two."""
    cfg = tiny_config(*SIX_STEPS).SHAPES
    reader = Shapes(9, seed=cfg.SEED, split="train", image_size=cfg.IMAGE_SIZE)
    return write_shards(reader, tmp_path / "scenes", samples_per_shard=2)


def test_a_killed_run_on_shards_goes_on_exactly(scenes, tiny_config, tmp_path):
    options = (*SIX_STEPS, *RANDOM, "DATASETS.TRAIN", f"['{scenes}']", "COCO.DATALOADER.NUM_WORKERS", "1")
    settings = {"CHECKPOINT_EVERY_STEPS": 3, "KEEP_CHECKPOINTS": 1}
    whole = train(tiny_config(*options, SAVE_DIR=tmp_path / "whole", **settings)).folder
    part = train(tiny_config(*options, SAVE_DIR=tmp_path / "part", **settings), kill_after=4).folder
    train(tiny_config(*options, SAVE_DIR=tmp_path, RESUME=True, RESUME_FROM=part, **settings))
    assert_same_state(whole, part)
    assert losses(part) == losses(whole)


def test_training_on_shards_is_training_on_their_records(scenes, tiny_config, tmp_path, monkeypatch):
    """In the order of records that lie apart."""
    options = (*SIX_STEPS, *RANDOM, "SOLVER.MAX_STEPS", "3")
    apart = train(tiny_config(*options, SAVE_DIR=tmp_path / "apart")).folder
    options += ("DATASETS.TRAIN", f"['{scenes}/scenes-{{000000..000004}}.tar']")
    other = train(tiny_config(*options, SAVE_DIR=tmp_path / "other")).folder
    assert losses(other) != losses(apart), "shards have an order of their own"
    monkeypatch.setattr(samplers, "draw_order", lambda random, length, blocks: random.permutation(length))
    same = train(tiny_config(*options, SAVE_DIR=tmp_path / "same")).folder
    assert_same_state(apart, same)
    assert losses(same) == losses(apart)
