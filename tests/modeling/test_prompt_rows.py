"""Prompts of a batch as rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from locap.datasets.batches import PromptTargets
from locap.modeling.heads.detector.rois import RoiSamples
from locap.modeling.region_encoders.prompt_rows import PromptRows, group_prompts

CPU = torch.device("cpu")


def target(task: str, count: int, tokens: int = 4, *, first: int = 10, masks: bool = False, **changes) -> PromptTargets:
    """Row k has text and context of first + k, a box at k, and teaches its words and place."""
    numbers = first + torch.arange(count)
    boxes = numbers[:, None] + torch.tensor([0.0, 0, 5, 6])
    made = PromptTargets(
        text=numbers[:, None].expand(count, tokens).clone(),
        context=numbers[:, None].expand(count, tokens - 1).clone(),
        prompt_points=boxes.view(count, 2, 2),
        prompt_labels=torch.tensor([[2, 3]]).expand(count, 2),
        boxes_xyxy=boxes,
        word_boxes=numbers[:, None, None].expand(count, tokens, 4).float(),
        learns=torch.tensor([[True, True, masks]]).expand(count, 3).clone(),
        size=(30, 40),
        masks=torch.full((count, 8, 1), first, dtype=torch.uint8) if masks else None,
        region_ids=numbers.tolist(),
        task=task,
    )
    return replace(made, **changes)


def grouped(*targets: PromptTargets, **options) -> list[PromptRows]:
    return group_prompts(targets, pad_id=0, device=CPU, **options)


def test_a_group_per_task_in_the_order_of_the_images():
    groups = grouped(target("refer", 2), target("region", 1, 6), target("refer", 3, 5, first=20), target("", 0))
    assert [(rows.task, rows.images, rows.counts) for rows in groups] == [
        ("refer", [0, 2], [2, 3]),
        ("region", [1], [1]),
        ("", [3], [0]),
    ]
    refer, region, nothing = groups
    assert refer.text[:, -1].tolist() == [0, 0, 20, 21, 22]  # padded to the longest of its own task
    assert refer.text[:, 0].tolist() == [10, 11, 20, 21, 22]
    assert refer.context[:, -1].tolist() == [0, 0, 20, 21, 22]
    assert not refer.word_boxes[:2, -1].any()
    assert region.text.shape == (1, 6)
    assert (len(nothing), len(nothing.points), nothing.sizes.shape) == (0, 1, (0, 2))


def test_texts_about_the_whole_image_share_its_prompt():
    (rows,) = grouped(target("refer", 2, size=(10, 20)), target("refer", 0), target("refer", 1, size=(30, 40)))
    assert rows.whole
    assert (rows.prompt_counts, rows.counts) == ([1, 1, 1], [2, 0, 1])
    assert rows.reads.tolist() == [0, 0, 2]
    assert rows.points[:, 1].tolist() == [[20, 10], [40, 30], [40, 30]]
    assert rows.sizes.tolist() == [[10, 20], [10, 20], [30, 40]]


def test_located_texts_have_their_own_prompts():
    points = target("region", 1, first=20)
    points.prompt_labels = torch.tensor([[1, -1]])
    (rows,) = grouped(target("region", 2), points)
    assert not rows.whole
    assert (rows.prompt_counts, rows.reads.tolist()) == ([2, 1], [0, 1, 2])
    assert rows.points.flatten(1).tolist() == [[10, 10, 15, 16], [11, 11, 16, 17], [20, 20, 25, 26]]
    assert rows.bounds.tolist() == [[10, 10, 15, 16], [11, 11, 16, 17], [20, 20, 20, 20]]  # a point is its own box


def test_rows_that_teach_nothing_are_left_out_of_training_only():
    learns = torch.tensor([[False] * 3, [True, False, False], [False] * 3])
    silent = target("region", 3, learns=learns)
    (rows,) = grouped(silent, target("region", 1, first=20))
    assert rows.text[:, 0].tolist() == [11, 20]
    assert [source.tolist() for source in rows.sources] == [[1], [0]]
    (every,) = grouped(silent, target("region", 1, first=20), all_rows=True)
    assert every.text[:, 0].tolist() == [10, 11, 12, 20]


def test_masks_of_some_images():
    learns = torch.tensor([[False, False, False], [True, True, True]])
    targets = target("refer", 1), target("refer", 2, first=20, masks=True, learns=learns)
    (rows,) = grouped(*targets)
    assert rows.packed_masks[:, 0, 0].tolist() == [0, 20]
    assert rows.unpacked_masks((8, 8))[1, 0].tolist() == [False, False, False, True, False, True, False, False]
    (bare,) = grouped(target("refer", 2))
    assert bare.packed_masks is None
    assert not bare.unpacked_masks((8, 8)).any()
    assert bare.unpacked_masks((8, 8)).shape == (2, 8, 8)


def test_padding_is_behind_a_text():
    (rows,) = grouped(target("refer", 1))
    rows.text = torch.tensor([[0, 5, 0, 1, 0, 0], [2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 7]])
    assert rows.spoken(0).sum(1).tolist() == [4, 2, 6]
    assert rows.spoken(0)[0].tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("kept", [[], [0], [1, 3], [0, 1, 2, 3]])
def test_some_texts(kept: list[int]):
    (rows,) = grouped(target("refer", 2, masks=True), target("refer", 0), target("refer", 2, first=20, masks=True))
    some = rows.select(torch.tensor(kept, dtype=torch.int64))
    assert some.text[:, 0].tolist() == [[10, 11, 20, 21][k] for k in kept]
    assert some.counts == [sum(k < 2 for k in kept), 0, sum(k > 1 for k in kept)]
    assert [s.tolist() for s in some.sources] == [[k for k in kept if k < 2], [], [k - 2 for k in kept if k > 1]]
    for name in ("context", "boxes_xyxy", "word_boxes", "sizes", "packed_masks", "reads", "learns"):
        assert torch.equal(getattr(some, name), getattr(rows, name)[kept]), name
    assert (some.prompt_counts, len(some.points)) == ([1, 1, 1], 3)  # still all prompts


def test_asking_about_detected_boxes():
    (rows,) = grouped(*(target("detect", 1, first=k, size=(k, 50)) for k in (10, 20, 30)), all_rows=True)
    boxes = [torch.rand(2, 4), torch.zeros(0, 4), torch.rand(1, 4)]
    asked = rows.asking(boxes)
    assert (asked.counts, asked.prompt_counts, len(asked)) == ([2, 0, 1], [2, 0, 1], 3)
    assert torch.equal(asked.points.flatten(1), torch.cat(boxes))
    assert asked.context[:, 0].tolist() == [10, 10, 30]
    assert asked.sizes[:, 0].tolist() == [10, 10, 30]
    assert asked.labels.tolist() == [[2, 3]] * 3
    nothing = rows.asking([torch.zeros(0, 4)] * 3)
    assert (len(nothing), nothing.counts) == (0, [0, 0, 0])


def test_proposals_stand_in_for_the_objects_they_overlap():
    learns = torch.tensor([[True, False, False], [False] * 3, [True, False, False]])
    (rows,) = grouped(target("detect", 3, learns=learns), target("detect", 1, first=20))
    found = torch.tensor([[0.0, 0, 1, 1], [12, 12, 18, 19], [10, 10, 15, 15]])
    samples = RoiSamples(found, torch.tensor([0, 2, 0]), torch.tensor([False, True, False]))
    asked = rows.standing_in([samples, RoiSamples.none()])
    assert asked.points.flatten(1).tolist() == [[10, 10, 15, 16], [12, 12, 18, 19], [20, 20, 25, 26]]
    assert torch.equal(asked.text, rows.text)
    (others,) = grouped(target("region", 1))
    assert others.standing_in([samples]) is others
