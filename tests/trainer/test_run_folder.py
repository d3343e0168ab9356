"""Where a run writes to, and which run a path means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from locap.trainer.run_folder import continued, make_run_folder
from locap.utils.errors import CheckpointError


def make(save_dir, resume_from=None):
    return make_run_folder(
        SimpleNamespace(
            SAVE_DIR=str(save_dir), BASENAME="x", RESUME=resume_from is not None, RESUME_FROM=str(resume_from)
        )
    )


def test_every_run_gets_the_first_free_number(tmp_path):
    assert make(tmp_path) == tmp_path / "x" / "run_1"
    (tmp_path / "x" / "run_2").mkdir()
    assert make(tmp_path) == tmp_path / "x" / "run_3"


def test_a_run_is_found_from_itself_and_from_its_checkpoints(tmp_path):
    run = tmp_path / "run_7"
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert make(tmp_path / "unused", run) == run
    assert make(tmp_path / "unused", run / "checkpoints" / "step_00000001") == run
    assert not (tmp_path / "unused").exists()


@pytest.mark.fault("B3")
@pytest.mark.parametrize("path", ["", "nowhere", "file.pt"])
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").touch()
    with pytest.raises(CheckpointError, match="There is no run to go on with") as caught:
        make(tmp_path, path)
    assert "WEIGHT True" in str(caught.value)


@pytest.mark.fault("B3")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="The run's folder cannot be made: Not a directory") as caught:
        make(tmp_path / "file")
    assert str(tmp_path / "file" / "x") in str(caught.value)


def run_at(parent, number, *, checkpoint=True, finished=False):
    """Make a run's folder as training leaves it."""
    run = parent / "x" / f"run_{number}"
    (run / "checkpoints" / ("step_00000005" if checkpoint else "step_00000005.invalid")).mkdir(parents=True)
    if finished:
        (run / "model.safetensors").touch()
    return run


def meant(save_dir, **changes):
    """Return (RESUME, RESUME_FROM) of what RESUME means, and whether the given configuration stayed as it was."""
    values = {"SAVE_DIR": str(save_dir), "BASENAME": "x", "RESUME": True, "RESUME_FROM": "", "WEIGHT": False} | changes
    given = OmegaConf.create(values)
    OmegaConf.set_readonly(given, True)
    found = continued(given)
    assert OmegaConf.to_container(given) == values
    assert OmegaConf.is_readonly(found)
    return found.RESUME, found.RESUME_FROM


def test_without_an_unfinished_run_resume_starts_one(tmp_path):
    assert meant(tmp_path / "nowhere") == (False, "")
    run_at(tmp_path, 1, finished=True)
    run_at(tmp_path, 2, checkpoint=False)  # nothing whole to go on with
    assert meant(tmp_path) == (False, "")


def test_resume_goes_on_with_the_newest_unfinished_run(tmp_path):
    runs = [run_at(tmp_path, number) for number in (2, 9, 10)]
    assert meant(tmp_path) == (True, str(runs[2])), "10 is after 9"
    (runs[2] / "model.safetensors").touch()
    assert meant(tmp_path) == (True, str(runs[1]))
    run_at(tmp_path, "9_copy")
    assert meant(tmp_path) == (True, str(runs[1])), "a folder of the user's own name is not ours"
    assert meant(tmp_path, BASENAME="y") == (False, "")


@pytest.mark.parametrize(
    "changes", [{"RESUME": False}, {"RESUME_FROM": "run_1"}, {"RESUME": False, "RESUME_FROM": "a"}]
)
def test_only_resume_without_a_run_is_looked_up(tmp_path, changes):
    run_at(tmp_path, 1)
    values = {"RESUME": True, "RESUME_FROM": ""} | changes
    assert meant(tmp_path, **changes) == (values["RESUME"], values["RESUME_FROM"])
