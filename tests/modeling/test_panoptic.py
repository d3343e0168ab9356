"""Panoptic inference on hand-made logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from locap.modeling.heads.panoptic import PanopticMap, keep_queries, panoptic_map

IS_THING = [True, True, False]


def strips(*columns: tuple[int, int], strength: float = 8.0) -> Tensor:
    """Masks over columns [a, b) of a 4 x 10 image."""
    logits = torch.full((len(columns), 4, 10), -strength)
    for row, (a, b) in zip(logits, columns, strict=True):
        row[:, a:b] = strength
    return logits


def run(masks: Tensor, labels: list[int], scores: list[float] | None = None, overlap: float = 0.8) -> PanopticMap:
    scores = scores or [0.9] * len(labels)
    return panoptic_map(
        masks, torch.arange(len(labels)) + 10, torch.tensor(scores), torch.tensor(labels), IS_THING, overlap
    )


def test_score_must_exceed_the_threshold_and_no_object_is_left_out():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]])
    kept, scores, labels = keep_queries(probabilities.log(), 0.5)
    assert kept.tolist() == [1, 3]
    assert scores.tolist() == pytest.approx([0.75, 0.8])
    assert labels.tolist() == [0, 1]


def test_nothing_kept():
    found = run(strips(), [])
    assert found.ids.shape == (4, 10)
    assert found.ids.dtype == torch.int32
    assert not found.ids.any()
    assert found.segments == []


def test_ids_follow_the_queries_and_void_is_zero():
    found = run(strips((0, 3), (4, 8)), [1, 0])
    assert found.ids[0].tolist() == [1, 1, 1, 0, 2, 2, 2, 2, 0, 0]
    assert [(s.id, s.label, s.query) for s in found.segments] == [(1, 1, 10), (2, 0, 11)]
    assert [s.score for s in found.segments] == pytest.approx([0.9, 0.9])


def test_the_better_score_owns_shared_pixels():
    found = run(strips((0, 5), (4, 9)), [0, 1], [0.85, 0.95])
    assert found.ids[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 0]


def test_visible_share_is_strict():
    at_limit = run(strips((0, 5), (4, 9)), [0, 1], [0.85, 0.95])
    assert [s.query for s in at_limit.segments] == [10, 11]  # 4 of 5 columns: 0.8 is enough
    below = run(strips((0, 5), (3, 9)), [0, 1], [0.85, 0.95])
    assert [s.query for s in below.segments] == [11]
    assert below.ids[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]  # what the dropped one owned is void


def test_a_mask_below_one_half_everywhere_is_dropped():
    masks = strips((0, 5), (5, 10))
    masks[1] = -0.1  # it owns the right half but is nowhere solid
    found = run(masks, [0, 1])
    assert [s.query for s in found.segments] == [10]
    assert found.ids[0].tolist() == [1] * 5 + [0] * 5


def test_a_mask_that_owns_no_pixel_is_dropped():
    found = run(strips((0, 5), (0, 5)), [0, 1], [0.95, 0.85])
    assert [s.query for s in found.segments] == [10]


def test_stuff_of_one_class_merges_into_the_first_and_things_do_not():
    found = run(strips((0, 2), (3, 5), (6, 8), (8, 10)), [2, 0, 2, 0])
    assert found.ids[0].tolist() == [1, 1, 0, 2, 2, 0, 1, 1, 3, 3]
    assert [(s.id, s.query) for s in found.segments] == [(1, 10), (2, 11), (3, 13)]
