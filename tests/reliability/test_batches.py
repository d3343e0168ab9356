"""What is said about an image, or a region, does not depend on what else is asked in the same breath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from locap.datasets.batches import Batch, PromptTargets
from locap.datasets.collate import collate
from locap.datasets.records import Record
from locap.datasets.shapes import Shapes
from locap.datasets.transforms.mapper import EvalMapper

from .test_ranks import float64, join

SAME_PADDING = [(64, 64), (50, 60), (64, 40), (33, 64), (60, 60), (48, 64)] * 2
ANY_SIZE = [(64, 64), (50, 60), (64, 40), (96, 64), (70, 90), (64, 128)] * 2
TASKS = ("region", "refer", "detect", "trace", "caption", "instruct")


def varied(parts: Sequence[nn.Module], std: float) -> None:
    """Draw weights from far apart: an untrained model says the same about everything."""
    for part in parts:
        for name, parameter in part.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=std)


def seeing(tiny_pix2cap) -> nn.Module:
    """A tiny Pix2Cap that makes segments of what it sees, and different sentences of them."""
    model = tiny_pix2cap.build()
    table = F.normalize(torch.randn(13, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    model.class_texts.ensemble = lambda encoder: table.to(next(encoder.parameters()))
    model.thresholds = replace(model.thresholds, score=0.0, overlap=0.0)
    varied([model.captioner, model.region_proj], 0.4)
    return model.eval()


def talking(tiny_pixelllm, *overrides: str) -> nn.Module:
    """A tiny PixelLLM that says something else about everything, and points elsewhere."""
    model = tiny_pixelllm.build("MODEL.TEXT_DECODER.MAX_STEPS", "9", *overrides)
    with torch.no_grad():
        model.places.mlp.layers[-1].weight.mul_(5)
    varied([model.language], 0.3)
    return model.eval()


def scenes(sizes: Sequence[tuple[int, int]]) -> Batch:
    return collate([EvalMapper(shortest=None)(Shapes(1, seed=k, image_size=size)[0]) for k, size in enumerate(sizes)])


def questions(tiny_pixelllm, tasks: Sequence[str]) -> Batch:
    """Scenes of several shapes, each with the questions of a task."""
    sizes = [(48, 64), (64, 64), (64, 36), (40, 80)]
    return join([tiny_pixelllm.Drawn(seed=k, size=sizes[k % 4]).questions(task) for k, task in enumerate(tasks)])


def words(record: Record) -> list[Any]:
    """Return every text and label of an answer."""
    kept = [(r.id, r.category_id, r.captions) for r in [*record.regions, *(record.instances or [])]]
    return [kept, [n.caption for n in record.narratives], record.captions, record.conversations]


def numbers(record: Record) -> np.ndarray:
    """Return every score and, as a part of the image, every coordinate of an answer."""
    found: list[float] = []
    for region in [*record.regions, *(record.instances or [])]:
        found += [value for value in (region.score, region.caption_score) if value is not None]
        found += [side / max(record.height, record.width) for side in region.box_xyxy or ()]
    for narrative in record.narratives:
        points = [xy for stroke in narrative.traces for point in stroke for xy in point[:2]]
        found += [xy / max(record.height, record.width) for xy in points]
    return np.array(found)


def apart(one: Record, other: Record) -> float:
    """Return the largest difference of two answers' numbers, relative where they are large."""
    a, b = numbers(one), numbers(other)
    return float((abs(a - b) / np.maximum(abs(a), 1)).max(initial=0)) if a.shape == b.shape else float("inf")


def rebatched(model: nn.Module, batch: Batch, trials: int) -> tuple[int, int, float]:
    """Predict in random batches; returns how many answers have other words than alone, of how many, and how far
    the numbers of the rest are off.
    """
    alone = [model.predict(batch.select([row]))[0] for row in range(len(batch))]
    rng, changed, worst = np.random.default_rng(0), 0, 0.0
    for _ in range(trials):
        order = rng.permutation(len(batch))
        cuts = np.flatnonzero(rng.random(len(batch) - 1) < rng.random()) + 1
        for rows in np.split(order, cuts):
            for row, answer in zip(rows, model.predict(batch.select(rows)), strict=True):
                same = words(answer) == words(alone[row])
                changed += not same
                worst = max(worst, apart(answer, alone[row])) if same else worst
    said = {str(words(answer)) for answer in alone}
    seen = {str((words(answer), numbers(answer))) for answer in alone}
    assert len(said) > len(batch) / 2, "texts that are alike would hide a swap"
    assert len(seen) > len(batch) - 2, "answers that are alike would hide a swap"
    return changed, trials * len(batch), worst


CASES = {  # what is predicted -> (sizes of the scenes, or the kind of prompts)
    "Pix2Cap, one padded size": SAME_PADDING,
    "Pix2Cap, any sizes": ANY_SIZE,
    "PixelLLM, every prompt": TASKS,
}


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_an_image_is_answered_as_if_alone(case, double, tiny_pix2cap, tiny_pixelllm, figure, scale):
    trials = scale(4 if double else 12, 100 if double else 500)
    with float64() if double else nullcontext():
        if "Pix2Cap" in case:
            model, batch = seeing(tiny_pix2cap), scenes(CASES[case])
        else:
            model, batch = talking(tiny_pixelllm), questions(tiny_pixelllm, TASKS * 2)
        changed, _, worst = rebatched(model.double() if double else model, batch, trials)
    assert changed == 0
    assert worst <= (1e-12 if double else 1e-6)
    kind = "fp64" if double else "fp32"
    figure("T8", f"{case}, {kind}: 100 % of {trials} re-batchings of 12 images, scores to {worst:.0e}")


def test_joint_padding_reaches_what_is_seen(tiny_pix2cap, figure):
    """Published evaluation pads a batch to one size: no matter among images of one, and not otherwise."""
    model = seeing(tiny_pix2cap)
    model.joint_padding = True
    changed, *_ = rebatched(model, scenes(SAME_PADDING), 3)
    assert changed == 0
    changed, answers, _ = rebatched(model, scenes(ANY_SIZE), 3)
    assert changed > answers / 4
    figure("T8", f"Pix2Cap, any sizes, padded jointly as upstream: {changed} of {answers} answers change")


# Regions of one image


def asking(target: PromptTargets, rows: Sequence[int]) -> PromptTargets:
    """Return these prompts of an image, with new ids; some may come twice."""
    at = torch.tensor(rows)
    tensors = ("text", "context", "prompt_points", "prompt_labels", "boxes_xyxy", "word_boxes", "learns")
    lists = {name: [getattr(target, name)[row] for row in rows] for name in ("contexts", "texts")}
    masks = None if target.masks is None else target.masks[at]
    moved = {name: getattr(target, name)[at] for name in tensors}
    return replace(target, **moved, **lists, masks=masks, region_ids=list(range(1, len(rows) + 1)))


@pytest.fixture(scope="module")
def prompted(tiny_pixelllm) -> dict[str, Callable[[Sequence[int]], list[tuple]]]:
    """Task -> function: which of six prompts, in which order -> what is answered to each, in double precision."""
    with float64():
        model = talking(tiny_pixelllm).double()

    def asker(task: str) -> Callable[[Sequence[int]], list[tuple]]:
        batch = next(
            batch
            for seed in range(100)
            if len((batch := tiny_pixelllm.Drawn(seed=seed, size=(64, 64)).questions(task)).targets[0]) >= 6
        )

        def ask(rows: Sequence[int]) -> list[tuple]:
            with float64():
                [answer] = model.predict(replace(batch, targets=[asking(batch.targets[0], rows)]))
            assert [region.id for region in answer.regions] == list(range(1, len(rows) + 1))
            return [(r.captions, r.mask, [r.score, r.caption_score, *r.box_xyxy]) for r in answer.regions]

        return ask

    return {task: asker(task) for task in ("region", "refer")}


@pytest.mark.parametrize("task", ["region", "refer"])
def test_a_region_is_answered_as_if_asked_for_alone(task, prompted, figure, scale):
    """So permuted prompts permute the answers, equal prompts get equal ones, and one more changes none."""
    ask, worst = prompted[task], 0.0
    alone = [ask([row])[0] for row in range(6)]
    assert len({str(answer) for answer in alone}) == 6, "answers that are alike would hide a swap"
    assert task == "refer" or len({captions for captions, *_ in alone}) > 2, "texts that are alike would hide a swap"

    @settings(max_examples=scale(15, 300), deadline=None, derandomize=True, database=None)
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
    def check(rows: list[int]) -> None:
        nonlocal worst
        for row, (captions, mask, values) in zip(rows, ask(rows), strict=True):
            assert (captions, mask) == alone[row][:2]
            pairs = zip(values, alone[row][2], strict=True)
            worst = max([worst, *(abs(a - b) for a, b in pairs if a is not None)])

    check()
    assert worst <= 1e-10
    figure("T8", f"prompts of one image ({task}), any order, number and repetition: same texts, numbers to {worst:.0e}")
