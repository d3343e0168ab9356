"""The faults that other tests rely on."""

from __future__ import annotations

import multiprocessing
import signal
import timeit

import pytest

from locap.utils import fault_points
from locap.utils.fault_points import Fault, Faults, activate, parse, reach


def test_a_text_names_point_passage_action_and_rank():
    assert parse("step.begin:kill;*@12:nan#1") == [Fault("step.begin", 1, "kill"), Fault("*", 12, "nan", 1)]
    for wrong in ("step.begni:kill", "step.begin:kil", "step.begin"):
        with pytest.raises(ValueError, match="no fault"):
            parse(wrong)


def test_the_chosen_passage_acts_and_no_other():
    faults = Faults(parse("step.forward@2:nan;*@5:nan"))
    points = ["step.forward", "step.begin", "step.forward", "step.forward", "step.end", "step.end"]
    assert [faults.pass_by(point) for point in points] == [None, None, "nan", None, "nan", None]


def test_a_fault_of_another_rank_does_nothing():
    assert Faults(parse("step.begin:kill#1"), rank=0).pass_by("step.begin") is None


def test_a_full_disk_is_the_systems_own_error():
    with pytest.raises(OSError, match="No space left"):
        Faults(parse("file.write:enospc")).pass_by("file.write")


def test_killing_kills(monkeypatch):
    monkeypatch.setenv("LOCAP_FAULT", "step.end:kill")

    def passes() -> None:
        activate()
        reach("step.end")

    process = multiprocessing.get_context("fork").Process(target=passes)
    process.start()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_points_cost_nothing_without_a_fault():
    assert fault_points._active is None
    assert min(timeit.repeat(lambda: reach("step.begin"), number=1000, repeat=5)) / 1000 < 5e-6
