"""Is a resumed run still the same run?"""

from __future__ import annotations

from pathlib import Path

import pytest

from locap.modeling.schemas import MODEL_SCHEMAS
from locap.trainer.continuation import check_continuation, converted_position
from locap.utils.config import load_config, save_config
from locap.utils.errors import CheckpointError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def config(*overrides: str):
    return load_config([QUICKSTART], overrides, model_schemas=MODEL_SCHEMAS)


@pytest.fixture
def run(tmp_path) -> Path:
    save_config(config("SEED", "3"), tmp_path / "config.yaml")
    return tmp_path


@pytest.mark.fault("B12")
def test_the_same_configuration_is_fine_and_silent(run, caplog):
    check_continuation(config("SEED", "3", "RESUME", "true", "RESUME_FROM", str(run)), run)
    assert not caplog.records


@pytest.mark.fault("B12")
def test_other_rates_and_lengths_are_told(run, caplog):
    check_continuation(config("SEED", "3", "SOLVER.BASE_LR", "0.5", "SOLVER.MAX_STEPS", "7"), run)
    assert "SOLVER.BASE_LR" in caplog.text
    assert "-> 0.5" in caplog.text
    assert "SOLVER.MAX_STEPS" in caplog.text


@pytest.mark.fault("B12")
@pytest.mark.fault("B13")
@pytest.mark.parametrize(
    ("key", "value"),
    [("SEED", "4"), ("COCO.TRAIN.BATCH_SIZE_TOTAL", "2"), ("DATASETS.TRAIN", "[shapes_val]")],
)
def test_what_the_order_of_samples_hangs_on_may_not_change(run, key, value):
    changed = ("SEED", "3", key, value)
    with pytest.raises(CheckpointError, match="was started with another value") as caught:
        check_continuation(config(*changed), run)
    assert caught.value.where == key
    assert f"RESUME_CHANGES [{key}]" in caught.value.fix
    check_continuation(config(*changed, "RESUME_CHANGES", f"[{key}]"), run)


def test_a_configuration_that_cannot_be_read_is_no_obstacle(run, caplog):
    (run / "config.yaml").write_text("MODEL: {NAME: a_later_system}\n")
    check_continuation(config(), run)
    assert "cannot be compared" in caplog.text


@pytest.mark.fault("B13")
def test_another_global_batch_goes_on_at_the_same_sample(caplog):
    state = {"step": 9, "batch": 5, "batch_size": 4}
    assert converted_position(state, 4) == state
    assert converted_position(state, 8)["batch"] == 2
    assert converted_position(state, 2)["batch"] == 10
    assert "20 samples" in caplog.text
