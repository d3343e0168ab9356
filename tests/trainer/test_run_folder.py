"""Where a run writes to, and which run a path means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from locap.trainer.run_folder import make_run_folder
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
