"""N processes, with or without accumulation, do what one does with the whole batch: real heads, ragged sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locap.datasets.batches import Batch, PromptTargets, RegionTargets
from locap.trainer.distributed import World, sum_over_ranks
from locap.trainer.loop import TrainingLoop
from locap.trainer.optimizer import Schedule

NOTHING = Batch([], [], [], [])
# images per step: the second leaves ranks without one, of the third four ranks get 2, 1, 1 and 1
SIZES = (6, 2, 5)
SPLITS = ((2, 2), (3, 1), (4, 1), (1, 4), (1, 3), (2, 1))  # ranks, batches of a step


@dataclass
class Course:
    """A model, in single precision with all its parts, and the images of each step, one batch each."""

    model: Callable[[bool], nn.Module]
    steps: list[list[Batch]]
    targets: type


def join(batches: Sequence[Batch]) -> Batch:
    """Make one batch of several."""
    names = ("images", "targets", "image_ids", "output_sizes")
    return Batch(*([item for batch in batches for item in getattr(batch, name)] for name in names))


def window(images: Sequence[Batch], world: World, accumulate: int) -> list[Batch]:
    """Return this rank's batches of a step: every image goes to one rank, and some ranks get none."""
    parts = np.array_split(np.arange(len(images)), world.size * accumulate)
    mine = parts[world.rank :: world.size]
    return [join([images[i] for i in part]) if len(part) else NOTHING for part in mine]


@contextmanager
def float64():
    """Compute everything in double precision, what asks for float32 too: no rounding hides a wrong division."""
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float64)
        stack.enter_context(patch.object(Tensor, "float", Tensor.double))
        yield


def learn(
    world: World, course: Course, accumulate: int, double: bool, steps: int
) -> tuple[list, dict[str, np.ndarray]]:
    """Take some steps; returns every step's losses and gradient norm, and what the weights became."""
    with float64() if double else ExitStack():
        model = course.model(double)
        model.double() if double else model.float()
        model.train()
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 0.01, "initial_lr": 0.01}]
        loop = TrainingLoop(
            model,
            torch.optim.SGD(groups, momentum=0.9, fused=True),
            Schedule("WarmupMultiStepLR", 100),
            world=world,
            clip_norm=5.0,
            accumulate=accumulate,
            targets=course.targets,
        )
        history = []
        for step in range(steps):
            parts, norm, *_ = loop.step(window(course.steps[step % len(course.steps)], world, accumulate))
            names = sorted(parts)
            values = sum_over_ranks(torch.stack([parts[name].double() for name in names])).tolist()
            history.append({**dict(zip(names, values, strict=True)), "norm": float(norm)})
        return history, {name: value.detach().double().numpy() for name, value in model.named_parameters()}


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    """Return the distance of two sets of weights relative to the way that they have come."""
    difference = sum(float(np.square(one[name] - other[name]).sum()) for name in other)
    return (difference / sum(float(np.square(start[name] - other[name]).sum()) for name in other)) ** 0.5


@pytest.fixture(params=["pix2cap", "pixelllm"])
def course(request, tiny_pix2cap, tiny_pixelllm) -> Course:
    if request.param == "pix2cap":
        segments = [3, 0, 2, 5, 1, 4]
        steps = [
            [tiny_pix2cap.make_batch([segments[i]], seed=10 * k + i) for i in range(n)] for k, n in enumerate(SIZES)
        ]
        return Course(lambda _: tiny_pix2cap.build("MODEL.MASK_HEAD_ENABLED", "true"), steps, RegionTargets)
    tasks = ("region", "refer", "", "trace", "detect", "refer")
    drawn = [tiny_pixelllm.Drawn(seed=k, size=(64, 64)) for k in range(len(SIZES))]
    steps = [tiny_pixelllm.split(source.lessons(*tasks[:n])) for source, n in zip(drawn, SIZES, strict=True)]

    def model(double: bool) -> nn.Module:
        return tiny_pixelllm.build("MODEL.DETECTOR.ENABLED", str(not double))  # detectors of any system pool in float32

    return Course(model, steps, PromptTargets)


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-12), (False, 1e-5)], ids=["float64", "float32"])
def test_any_number_of_ranks_is_one(course, on_ranks, figure, scale, double, tolerance):
    # in float32 rounding decides a comparison sooner or later, in matching or in the choice of points
    steps = scale(3, 20) if double else 3
    splits = SPLITS[: scale(4 if double else 2, len(SPLITS))]
    history, weights = learn(World(), course, 1, double, steps)
    _, start = learn(World(), course, 1, double, 0)
    worst_loss = worst_weights = 0.0
    for ranks, accumulate in splits:
        answers = on_ranks(ranks, learn, course, accumulate, double, steps)
        for theirs, their_weights in answers:
            for one, other in zip(theirs, history, strict=True):
                assert one == pytest.approx(other, rel=tolerance, abs=tolerance), (ranks, accumulate)
                worst_loss = max(worst_loss, *(abs(one[k] - v) / max(abs(v), 1.0) for k, v in other.items()))
            assert all(np.array_equal(their_weights[k], v) for k, v in answers[0][1].items()), "ranks differ"
        far = apart(answers[0][1], weights, start)
        assert far < tolerance, (ranks, accumulate)
        worst_weights = max(worst_weights, far)
    kind = f"{type(course.model(double)).__name__} {'fp64' if double else 'fp32'}"
    figure("T6", f"{kind}, {steps} steps, {len(splits)} splits: loss {worst_loss:.0e}, weights {worst_weights:.0e}")


def test_counts_are_exact_sums(course):
    """What losses are divided by does not depend on how images are dealt."""
    model = course.model(False)
    for images in course.steps:
        whole = model.counts(join(images))
        each = [model.counts(image) for image in images]
        sums = {name: sum(counts[name] for counts in each) for name in whole}
        weighted = "class_weights"  # tenths: no sum of them is exact
        assert sums.pop(weighted, 0) == pytest.approx(whole.pop(weighted, 0), rel=1e-14)
        assert sums == whole
