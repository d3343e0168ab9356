"""The loop's arithmetic on a toy system: division, accumulation, clipping, and stopping before harm is done."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from locap.datasets.batches import Batch, PromptTargets, RegionTargets
from locap.modeling.losses.terms import LossTerm
from locap.trainer.distributed import World
from locap.trainer.ema import MovingAverage
from locap.trainer.loop import Hooks, TrainingLoop
from locap.trainer.optimizer import Schedule
from locap.utils.errors import NumericError


class Toy(nn.Module):
    """Pull every image's mean to 1; the loss is a sum, ``counts`` says over what."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]))
        self.dropout = nn.Dropout(dropout)
        self.seeds: list[int] = []

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"pixels": sum(image[0].numel() for image in batch.images), "images": len(batch)}

    def forward(self, batch: Batch, step_seed: int) -> dict[str, LossTerm]:
        self.seeds.append(step_seed)
        each = [(self.dropout(self.scale[0] * image / 100) - 1).square().mean(0).sum() for image in batch.images]
        scale = self.scale[1].expand(len(batch))
        return {
            "loss_pixels": LossTerm(torch.stack(each).sum(), "pixels", 3.0),
            "loss_scale": LossTerm(scale.square().sum(), "images", 0.5),
        }


def batch_of(*means: float, size: int = 4) -> Batch:
    """Return an image per mean, the one of mean 50 two rows higher than the others."""
    images = [torch.full((3, size + 2 * (mean == 50), size), float(mean)) for mean in means]
    return Batch(images, [], [f"image_{mean:g}" for mean in means], [(size, size)] * len(means))


def make_loop(model: nn.Module, optimizer: str = "SGD", lr: float = 0.1, **options) -> TrainingLoop:
    groups = [{"params": list(model.parameters()), "lr": lr, "initial_lr": lr}]
    made = getattr(torch.optim, optimizer)(groups, lr=lr, fused=True)
    return TrainingLoop(model, made, Schedule("WarmupMultiStepLR", 10), world=World(), **options)


def test_losses_are_means_over_what_they_count():
    model = Toy()
    loop = make_loop(model)
    parts, norm, lrs = loop.step([batch_of(100, 50)])
    wanted = (16 * (0.5 - 1) ** 2 + 24 * (0.25 - 1) ** 2) / 40
    assert float(parts["loss_pixels"]) == pytest.approx(3 * wanted)
    assert float(parts["loss_scale"]) == pytest.approx(0.5 * 4.0)
    assert lrs == {"0.1": 0.1}
    slopes = torch.tensor([3 * (16 * 2 * -0.5 + 24 * 2 * -0.75 * 0.5) / 40, 2.0])
    assert float(norm) == pytest.approx(float(slopes.norm()))
    assert torch.allclose(model.scale, torch.tensor([0.5, 2.0]) - 0.1 * slopes)


def test_accumulated_batches_are_one_batch():
    """Also when they differ in size: a mean of means would be wrong."""
    whole, split = Toy(), Toy()
    one, two = make_loop(whole, "AdamW"), make_loop(split, "AdamW", accumulate=2)
    for _ in range(2):
        one.step([batch_of(100, 50, 20)])
        parts = two.step([batch_of(100), batch_of(50, 20)])[0]
    assert torch.allclose(whole.scale, split.scale, rtol=1e-6, atol=0)
    assert float(parts["loss_scale"]) > 0
    assert two.state.step == 2
    assert len(set(split.seeds[:2])) == 1, "the sentences of a step are the same for all its batches"
    assert split.seeds[0] != split.seeds[2]


def test_an_empty_batch_adds_nothing():
    """A rank without samples in the ragged tail of an epoch still has to join the step."""
    alone, along = Toy(), Toy()
    parts = make_loop(alone).step([batch_of(100)])[0]
    others = make_loop(along, accumulate=2).step([batch_of(100), batch_of()])[0]
    assert torch.equal(alone.scale, along.scale)
    assert {name: float(value) for name, value in parts.items()} == {name: float(v) for name, v in others.items()}


@pytest.mark.parametrize("kind", [RegionTargets, PromptTargets])
def test_an_empty_batch_is_computed_with_the_systems_kind_of_targets(kind):
    model, seen = Toy(), []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].targets))
    make_loop(model, targets=kind).step([batch_of()])
    assert [type(targets[0]) for targets in seen] == [kind]


def test_gradients_are_clipped_to_one_norm_over_everything():
    model = Toy()
    before = model.scale.detach().clone()
    _, norm, _ = make_loop(model, lr=1.0, clip_norm=0.25).step([batch_of(100)])
    assert float(norm) > 0.25
    assert float((model.scale - before).detach().norm()) == pytest.approx(0.25, rel=1e-4)


def test_dropout_is_a_function_of_seed_and_step_alone():
    def scales(seed: int, first: int) -> list[float]:
        loop = make_loop(Toy(dropout=0.5), lr=0.0, seed=seed)
        loop.state.step = first
        batch = batch_of(0, size=8)
        batch.images[0] += torch.linspace(0, 100, 64).sqrt().reshape(8, 8)  # every choice of pixels has its own loss
        return [float(loop.step([batch])[0]["loss_pixels"]) for _ in range(3)]

    everything = scales(0, 0)
    torch.rand(17)  # whatever else was drawn in between
    assert scales(0, 1)[:2] == everything[1:]
    assert len({*everything, *scales(1, 0)}) == 6


@pytest.mark.fault("D1")
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_bad_gradient_changes_no_bit_and_training_goes_on(optimizer):
    model = Toy()
    average = MovingAverage(model, 0.9)
    told = []
    loop = make_loop(model, optimizer, max_skipped=1, average=average, on_skip=lambda *args: told.append(args))
    loop.step([batch_of(100)])
    before = copies(loop, average)
    loop.step([batch_of(100), batch_of(float("nan"))])
    assert all(torch.equal(one, other) for one, other in zip(before, copies(loop, average), strict=True))
    assert (loop.state.step, loop.watch.skipped) == (2, 1)
    assert told[0][2][0]["images"] == ["image_100", "image_nan"]
    loop.step([batch_of(100)])
    assert not torch.equal(before[0], model.scale)
    assert loop.watch.in_a_row == 0


def copies(loop: TrainingLoop, average: MovingAverage) -> list[torch.Tensor]:
    """Weights, everything the optimiser remembers, and the average."""
    state = loop.optimizer.state[loop.model.scale]
    tensors = [loop.model.scale, *(state[key] for key in sorted(state) if state[key] is not None)]
    return [tensor.detach().clone() for tensor in (*tensors, average.average["scale"])]


@pytest.mark.fault("D1")
def test_a_run_of_bad_gradients_stops_before_the_weights_and_names_the_images():
    model = Toy()
    loop = make_loop(model, "AdamW", max_skipped=1)
    loop.step([batch_of(100)])
    weights = model.scale.detach().clone()
    loop.step([batch_of(float("nan"))])
    with pytest.raises(NumericError, match=r"diverged at step 3\. The gradient is not finite") as caught:
        loop.step([batch_of(100), batch_of(float("nan"))])
    assert caught.value.exit_code == 6
    assert "image_100" in str(caught.value)
    assert "image_nan" in str(caught.value)
    assert "not finite: loss_pixels; 2 steps in a row" in str(caught.value)
    assert torch.equal(model.scale, weights)


def test_how_often_steps_were_left_out_is_remembered():
    loop = make_loop(Toy(), max_skipped=1)
    loop.step([batch_of(float("nan"))])
    twin = make_loop(Toy(), max_skipped=1)
    twin.load_state_dict(loop.state_dict())
    with pytest.raises(NumericError, match="2 steps in a row"):
        twin.step([batch_of(float("nan"))])


@pytest.mark.fault("D2")
def test_an_infinite_gradient_in_half_precision_skips_the_step_and_halves_the_scale():
    model = Toy()
    loop = make_loop(model, precision="fp16")
    before, scale = model.scale.detach().clone(), loop.state_dict()["scaler"]["scale"]
    loop.step([batch_of(float("inf"))])
    assert torch.equal(model.scale, before)
    assert loop.state_dict()["scaler"]["scale"] == scale / 2
    loop.step([batch_of(100)])
    assert not torch.equal(model.scale, before)
    twin = make_loop(Toy(), precision="fp16")
    twin.load_state_dict(loop.state_dict())
    assert twin.state_dict() == loop.state_dict()
    assert twin.state.step == 2


def run(loop: TrainingLoop, batches: int, max_steps: int, per_epoch: int) -> list[tuple[int, int, int]]:
    """Return (step, epoch, batch) after every step."""
    seen = []

    def note() -> None:
        seen.append((loop.state.step, loop.state.epoch, loop.state.batch))

    loop.run([batch_of(100)] * batches, per_epoch, max_steps, Hooks(after_step=note))
    return seen


def test_the_position_counts_batches_across_epochs():
    assert run(make_loop(Toy()), 9, 4, 3) == [(1, 0, 1), (2, 0, 2), (3, 1, 0), (4, 1, 1)]
    assert run(make_loop(Toy(), accumulate=2), 9, 4, 3) == [(1, 0, 2), (2, 1, 1), (3, 2, 0), (4, 2, 2)]


def test_time_spent_evaluating_is_no_training_speed():
    loop, reports = make_loop(Toy()), []
    hooks = Hooks(lambda step: step == 2, reports.append, after_step=lambda: time.sleep(0.3))
    loop.run([batch_of(100, 50)] * 2, 2, 2, hooks)
    report = reports[0]
    assert report.seconds > 0.3
    assert report.images_per_second > 4 / 0.3
    assert 0 <= report.data_wait <= 1
    assert report.loss == pytest.approx(sum(report.losses.values()))
    assert report.epoch == 1.0


def test_a_request_to_stop_ends_the_run_after_the_step():
    loop, asked = make_loop(Toy()), iter([False, False, True])
    loop.run([batch_of(100)] * 9, 9, 9, Hooks(stop_requested=lambda: next(asked)))
    assert (loop.state.step, loop.stopping) == (3, True)


def test_broken_samples_are_reported_with_the_step():
    batch, told = batch_of(100), []
    batch.bad = ["the loader's note"]
    loop = make_loop(Toy())
    loop.run([batch_of(100), batch], 2, 2, Hooks(on_bad_samples=lambda bad: told.append((loop.state.step, bad))))
    assert told == [(1, ["the loader's note"])]
