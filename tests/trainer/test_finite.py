"""What becomes of gradients that are not finite."""

from __future__ import annotations

import pytest
import torch

from locap.trainer.distributed import World
from locap.trainer.finite import FiniteWatch
from locap.utils.errors import NumericError

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def test_as_many_in_a_row_as_allowed_are_left_out():
    told = []
    watch = FiniteWatch(World(), 2, on_skip=lambda *arguments: told.append(arguments))
    parts = {"loss_a": GOOD, "loss_b": torch.tensor(float("inf"))}
    watch.note(1, BAD, parts, ["x.jpg"])
    watch.note(2, torch.tensor(float("inf")), parts, ["y.jpg"])
    watch.note(3, GOOD, parts, [])
    assert (watch.in_a_row, watch.skipped) == (0, 2)
    watch.note(4, BAD, parts, [])
    watch.note(5, BAD, parts, [])
    with pytest.raises(NumericError, match=r"diverged at step 6.*\n.*z\.jpg.*\n.*loss_b; 3 steps in a row") as caught:
        watch.note(6, BAD, parts, ["z.jpg"])
    assert caught.value.exit_code == 6
    assert [step for step, *_ in told] == [1, 2, 4, 5, 6]
    _, norm, ranks = told[0]
    assert norm != norm
    assert ranks == [{"images": ["x.jpg"], "losses": {"loss_a": "1.0", "loss_b": "inf"}, "bad": ["loss_b"]}]


def test_none_may_be_left_out():
    with pytest.raises(NumericError, match="no loss of this process, only the gradient"):
        FiniteWatch(World(), 0).note(1, BAD, {"loss": GOOD}, [])
