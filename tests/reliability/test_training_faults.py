"""Real training with two processes under real launchers: one raises, is killed or hangs; the run resumes after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from locap import entry

from ..integration.conftest import QUICKSTART, tiny_overrides
from .jobs import HOST, assert_told_once, environment, mpirun, run_job, torchrun

OPTIONS = ("SHAPES.NUM_TRAIN", "4", "DATASETS.TEST", "[shapes_val]", "SHAPES.NUM_TEST", "1")
OPTIONS += ("PROTOCOLS", "[panoptic]", "CHECKPOINT_EVERY_STEPS", "1")
OPTIONS += ("TIMEOUTS.STEP", "3")  # a step needs a tenth of it
OTHER_SEED = """
import os, sys
rank = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
os.execv(sys.executable, [sys.executable, "entry.py", *sys.argv[1:], "SEED", rank])
"""


@pytest.fixture
def train(tmp_path):
    """Start training under a launcher, with a fault; returns the job."""

    def start(launcher, fault: str = "", script: str | Path = "entry.py"):
        words = ["train", "--conf_files", str(QUICKSTART), "--overrides", *options(tmp_path)]
        environ = environment(tmp_path) | ({"LOCAP_FAULT": fault} if fault else {})
        return run_job([*launcher(), str(script), *words], environ)

    return start


def options(folder: Path) -> list[str]:
    return tiny_overrides(*OPTIONS, SAVE_DIR=folder, BASENAME="tiny")


def resumed(folder: Path) -> list[int]:
    """Resume the run that docs/launch.md would find, in this process; returns the steps that its log then holds."""
    (latest,) = folder.glob("*/run_*/latest")
    run = latest.parent
    words = ["--overrides", *options(folder), "RESUME", "true", "RESUME_FROM", str(run)]
    assert entry.main(["train", "--conf_files", str(QUICKSTART), *words]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step"] for line in lines if line["event"] == "train"]


FAULTS = {  # what rank 1 does as its third step begins: what tells it, seconds from there until all ranks have left
    "raise": ("RuntimeError: a fault at step.begin", 5),
    "kill": (rf"Rank 1 on {HOST} \(process \d+\) ended without a word", 5),
    "hang": (rf"rank 1 on {HOST} is behind: step of step 2, last seen at fault_points\.py", 5),
}


@pytest.mark.parametrize(
    ("launcher", "fault"), [(mpirun, "raise"), (mpirun, "kill"), (torchrun, "kill"), (torchrun, "hang")]
)
@pytest.mark.fault("A13", "A14", "A15")
def test_a_fault_of_one_rank_is_told_once_and_the_run_resumes(launcher, fault, train, tmp_path):
    job = train(launcher, f"step.begin@3:{fault}#1")
    pattern, seconds = FAULTS[fault]
    assert job.code in ((1,) if launcher is not mpirun else (137, 70) if fault == "kill" else (70,)), job.err
    assert_told_once(job, pattern, seconds)
    assert resumed(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.fault("A17")
def test_a_rank_with_another_seed_is_told_at_the_start(train, tmp_path):
    script = tmp_path / "other_seed.py"
    script.write_text(OTHER_SEED, encoding="utf-8")
    job = train(mpirun, script=script)
    assert job.code == 2, job.err
    assert job.err.count("The processes disagree about what they train") == 1
    assert "rank 0: SEED: 0; rank 1: SEED: 1" in job.err
    assert not list(tmp_path.glob("tiny/*/checkpoints"))
