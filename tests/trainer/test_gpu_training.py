"""What `make gpu-check` does with the training step, run on the processor with tiny shapes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from locap.modeling.benchmarks.workload import SHAPES, build, draw_batch

GPU = Path(__file__).resolve().parents[1] / "gpu" / "training.py"
QUIET = ("MODEL.TEXT_DECODER.DROPOUT", "0", "MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0")


@pytest.fixture(scope="module")
def training() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_training", GPU)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_training"] = module
    spec.loader.exec_module(module)
    return module


def test_half_precision_is_within_the_stated_tolerance(training: ModuleType):
    model = build("tiny", [], (*training.KEYS, *QUIET, "MODEL.TEXT_DECODER.VOCAB_SIZE", "400"))
    found = training.mixed_precision(model, draw_batch(SHAPES["tiny"], 400), "cpu")
    assert found["bf16"]["within"], found
    assert found["bf16"]["gradients"] > 0


def test_the_full_step_on_a_small_scale(training: ModuleType):
    training.KEYS = (*training.KEYS, "MODEL.TEXT_DECODER.VOCAB_SIZE", "400")
    found = training.full_step("cpu", size="tiny", side=64, images=1, repeats=1, half=False)
    ours, theirs = found["locap"], found["published code's paths"]
    assert ours["images/s"] > 0
    assert ours["waits of the host"] == 1 < theirs["waits of the host"]
    assert 0 < ours["GB allocated"] < theirs["GB allocated"]
