"""Assignment of queries to segments, and the overlap that picks a caption's query."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from locap.modeling.losses.segment_maps import SegmentMap
from locap.modeling.matching.hungarian import MatchingCosts, assign, best_overlap
from locap.utils.errors import NumericError


@pytest.mark.parametrize(("queries", "targets"), [(5, 3), (3, 3), (2, 4)])
def test_assignment_is_the_cheapest_of_all(queries: int, targets: int):
    cost = torch.randn(queries, targets, generator=torch.Generator().manual_seed(queries))
    [(rows, columns, _)] = assign([cost])
    assert rows.tolist() == sorted(rows.tolist())
    if queries >= targets:
        totals = [sum(cost[q, t] for t, q in enumerate(p)) for p in itertools.permutations(range(queries), targets)]
    else:
        totals = [sum(cost[q, t] for q, t in enumerate(p)) for p in itertools.permutations(range(targets), queries)]
    torch.testing.assert_close(cost[rows, columns].sum(), torch.stack(totals).min())


def test_many_problems_are_solved_as_if_alone():
    costs = [torch.randn(q, n, generator=torch.Generator().manual_seed(q)) for q, n in ((5, 3), (4, 0), (2, 4), (3, 3))]
    for together, cost in zip(assign(costs), costs, strict=True):
        [alone] = assign([cost])
        assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))
        assert torch.equal(together.segments, together.on_host)


def test_an_image_without_segments_matches_nothing():
    [(rows, columns, _)] = assign([torch.zeros(4, 0)])
    assert rows.shape == columns.shape == (0,)


@pytest.mark.fault("D6")
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_cost_that_is_not_finite_stops_training(value: float):
    with pytest.raises(NumericError, match="matching cost is not finite"):
        assign([torch.tensor([[0.0, value]])])


def test_costs_by_hand():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5), torch.tensor([2, 0])
    x, y = torch.randn(3, 10), torch.rand(2, 10).round()
    found = MatchingCosts(class_weight=2.0, mask_weight=3.0, dice_weight=5.0)(logits, x, labels, y)
    for query, target in itertools.product(range(3), range(2)):
        p = logits[query].softmax(-1)[labels[target]]
        bce = F.binary_cross_entropy_with_logits(x[query], y[target])
        s = x[query].sigmoid()
        dice = 1 - (2 * (s * y[target]).sum() + 1) / (s.sum() + y[target].sum() + 1)
        torch.testing.assert_close(found[query, target], -2 * p + 3 * bce + 5 * dice)


def boxes_as_logits(*boxes: tuple[int, int, int, int], size: int = 8) -> torch.Tensor:
    logits = torch.full((len(boxes), size, size), -1.0)
    for row, (x0, y0, x1, y1) in zip(logits, boxes, strict=True):
        row[y0:y1, x0:x1] = 1.0
    return logits


def small(*segments: Tensor) -> Tensor:
    """Bool masks (32, 32) -> at (8, 8)."""
    ids = sum((segment * (i + 1) for i, segment in enumerate(segments)), torch.zeros(32, 32, dtype=torch.int32))
    return SegmentMap(ids.int(), torch.arange(1, len(segments) + 1), (32, 32)).shrunk(8, 8)


def rectangle(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_captions_go_to_the_query_of_highest_overlap_even_twice():
    found = boxes_as_logits((0, 0, 4, 4), (4, 4, 8, 8), (0, 0, 8, 8))
    corner = rectangle(slice(18, None), slice(18, None))
    around = rectangle(slice(16, None), slice(16, None)) & ~corner
    rest = rectangle(slice(None), slice(28)) & ~corner & ~around
    assert best_overlap(found, small(around, corner, rest)).tolist() == [1, 1, 2]


def test_a_vanished_target_goes_to_the_first_empty_query():
    found = boxes_as_logits((0, 0, 4, 4), (0, 0, 0, 0), (1, 1, 1, 1))
    columns = rectangle(slice(None), slice(4, 5)), rectangle(slice(None), slice(5, 6))
    assert best_overlap(found, small(*columns)).tolist() == [1, 0]  # shrinking reads columns 1 and 2 of every 4


def test_no_targets():
    assert best_overlap(torch.randn(3, 8, 8), small()).shape == (0,)


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    ("part", "value", "terms"),
    [("class_logits", float("nan"), "class"), ("masks", float("nan"), "dice, mask"), ("masks", float("inf"), "mask")],
)
def test_the_term_that_is_not_finite_is_named(build, make_batch, monkeypatch, part: str, value: float, terms: str):
    model = build()
    inner = type(model.criterion)._compared

    def spoiled(self, class_logits, mask_logits, *rest):
        for logits, sampled, labels, truth in inner(self, class_logits, mask_logits, *rest):
            spoilt = logits.clone() if part == "class_logits" else sampled.clone()
            spoilt[0, 0] = value
            yield (spoilt, sampled, labels, truth) if part == "class_logits" else (logits, spoilt, labels, truth)

    monkeypatch.setattr(type(model.criterion), "_compared", spoiled)
    with pytest.raises(NumericError, match=rf"matching cost is not finite: {terms}\.") as caught:
        model(make_batch([2]), 0)
    assert caught.value.exit_code == 6
