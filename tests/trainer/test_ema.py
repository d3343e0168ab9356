"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from locap.trainer.ema import MovingAverage
from locap.utils.errors import CheckpointError

KEPT, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


def model_of(*values: float) -> nn.Linear:
    model = nn.Linear(len(values), 1)
    model.bias.requires_grad_(False)
    model.weight.data = torch.tensor([values])
    return model


def test_the_average_follows_the_definition():
    model = model_of(0.0)
    average, wanted = MovingAverage(model, decay=0.5), 0.0
    for step, value in enumerate((1.0, 5.0, -3.0, 2.0, 2.0, 8.0, 1.0, 0.0, 4.0, 6.0)):
        model.weight.data.fill_(value)
        average.update(step, KEPT)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * value
        assert float(average.average["weight"]) == pytest.approx(wanted, rel=1e-5)
    assert list(average.average) == ["weight"], "what is frozen is not averaged"


def test_a_step_that_was_left_out_changes_no_bit():
    model = model_of(0.1, 0.7)
    average = MovingAverage(model, decay=0.9)
    model.weight.data += 0.3
    before = average.average["weight"].clone()
    average.update(5, SKIPPED)
    assert torch.equal(average.average["weight"], before)


def test_the_model_has_the_average_only_inside_the_block():
    model = model_of(1.0)
    average = MovingAverage(model, decay=0.9)
    model.weight.data.fill_(3.0)
    seen = []

    def fail_inside() -> None:
        with average.in_place():
            seen.append(model.weight.item())
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail_inside()
    assert seen == [1.0]
    assert model.weight.item() == 3.0


def test_another_models_average_is_refused():
    average = MovingAverage(model_of(1.0), decay=0.9)
    average.load({"weight": torch.tensor([[7.0]])})
    assert float(average.average["weight"]) == 7.0
    with pytest.raises(CheckpointError, match="belongs to another model"):
        average.load({"other": torch.zeros(1, 1)})


def test_an_average_that_starts_anew_is_the_weights():
    model = model_of(0.0)
    average = MovingAverage(model, decay=0.9)
    model.weight.data.fill_(3.0)
    average.restart()
    assert torch.equal(average.average["weight"], model.weight)
    model.weight.data.fill_(4.0)
    assert float(average.average["weight"]) == 3.0, "a copy"
