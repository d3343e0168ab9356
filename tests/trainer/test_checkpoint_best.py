"""Which checkpoints stay: the newest and the best."""

from __future__ import annotations

import pytest
import torch

from locap.trainer.checkpoint import CheckpointFolder

FILES = {"model.safetensors": {"w": torch.ones(2)}}


def steps(run: CheckpointFolder) -> list[int]:
    return [int(path.name[5:]) for path in sorted(run.root.glob("step_????????"))]


def trained(path, figures: dict[int, float], *, higher: bool = True, **options) -> CheckpointFolder:
    """Save a checkpoint of each step, then note its figure."""
    run = CheckpointFolder(path, **options)
    for step, value in figures.items():
        run.save(FILES, {}, step)
        run.note_figure(step, value, higher)
    return run


def test_the_best_stay_beside_the_newest(tmp_path):
    run = trained(tmp_path, {1: 0.3, 2: 0.9, 3: 0.1, 4: 0.8, 5: 0.2, 6: 0.4}, keep=2, keep_best=2)
    assert steps(run) == [2, 4, 5, 6]
    assert run.best().name == "step_00000002"
    run.save(FILES, {}, 7)
    assert steps(run) == [2, 4, 6, 7]


def test_of_losses_the_lowest_are_the_best_and_of_equal_ones_the_later(tmp_path):
    run = trained(tmp_path, {1: 0.3, 2: 0.1, 3: 0.1, 4: 0.5, 5: 0.6}, higher=False, keep=1, keep_best=1)
    assert steps(run) == [3, 5]


def test_the_newest_stays_whatever_its_figure(tmp_path):
    assert steps(trained(tmp_path, {1: 0.9, 2: 0.1, 3: 0.1}, keep=1, keep_best=1)) == [1, 3]


def test_a_resumed_run_knows_the_best(tmp_path):
    trained(tmp_path, {1: 0.9, 2: 0.1}, keep=1, keep_best=1)
    assert steps(trained(tmp_path, {3: 0.2, 4: 0.3}, keep=1, keep_best=1)) == [1, 4]


def test_going_back_forgets_the_figures_after_it(tmp_path):
    run = trained(tmp_path, {1: 0.2, 2: 0.9}, keep=0, keep_best=1)
    run.go_back(run.root / "step_00000001")
    run.save(FILES, {}, 2)
    assert run.best().name == "step_00000001"


def test_what_is_not_finite_is_never_the_best(tmp_path, caplog):
    run = trained(tmp_path, {1: 0.2, 2: float("nan"), 3: float("inf")}, keep=0, keep_best=1)
    assert run.best().name == "step_00000001"
    assert "figure of step 2 is nan" in caplog.text


def test_figures_without_a_checkpoint_take_no_place(tmp_path):
    run = CheckpointFolder(tmp_path, keep=1, keep_best=1)
    run.note_figure(1, 100.0)
    assert run.best() is None
    for step, value in {2: 0.9, 3: 0.1, 4: 0.2}.items():
        run.save(FILES, {}, step)
        run.note_figure(step, value)
    assert steps(run) == [2, 4]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"figures": {"a": 1}}', '{"higher_is_better": 1, "figures": 3}'])
def test_damaged_figures_are_passed_over(tmp_path, text, caplog):
    trained(tmp_path, {1: 0.9})
    (tmp_path / "checkpoints" / "best.json").write_text(text)
    run = trained(tmp_path, {2: 0.1, 3: 0.2}, keep=0, keep_best=1)
    assert "best.json is damaged" in caplog.text
    assert run.best().name == "step_00000003"


def test_figures_that_cannot_be_written_stop_nothing(tmp_path, monkeypatch, caplog):
    run = trained(tmp_path, {1: 0.9}, keep=1, keep_best=1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("locap.trainer.checkpoint_best.write_json", full)
    run.note_figure(2, 0.1)
    assert "best.json could not be written: No space left" in caplog.text
    assert run.best().name == "step_00000001"
