"""Points of words, the tokens that have them, boxes from them, and their loss."""

from __future__ import annotations

import pytest
import torch

from locap.modeling.heads.word_locations import WordLocations, points_to_boxes, token_mask
from locap.modeling.losses.word_points import located, word_points_l1
from locap.utils.boxes import generalized_iou
from locap.utils.errors import UsageError

BERT = {"begin_id": 101, "end_id": 102, "pad_id": 0}
T5 = {"begin_id": 0, "end_id": 1, "pad_id": 0}


@pytest.mark.parametrize(("row", "ids"), [([101, 7, 8, 102, 0], BERT), ([0, 7, 8, 1, 0], T5)])
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("begin,end,pad", [0, 1, 1, 0, 0]),
        ("^text", [0, 1, 1, 0, 0]),
        ("^end-1", [0, 0, 1, 0, 0]),
        ("end-1", [1, 1, 0, 1, 1]),
        ("^end-1,end", [0, 0, 1, 1, 0]),
    ],
)
def test_token_masks(row, ids, spec, expected):
    assert token_mask(torch.tensor([row, row]), spec, **ids).int().tolist() == [expected] * 2


def test_a_text_without_an_end_has_no_last_word():
    assert not token_mask(torch.tensor([[101, 7, 8, 9]]), "^end-1", **BERT).any()


def test_an_unknown_kind_of_token_is_named():
    with pytest.raises(UsageError, match="Did you mean 'begin'"):
        token_mask(torch.zeros(1, 2, dtype=torch.long), "pad,begn", **BERT)


def test_points_are_in_pixels_of_the_valid_area():
    head = WordLocations(dim=8, hidden_dim=16, depth=4)
    assert head.mlp.layers[-1].weight.shape == (8, 16)
    torch.nn.init.zeros_(head.mlp.layers[-1].weight)
    head.mlp.layers[-1].bias.data = torch.tensor([-1.0, 0, 9, 9, 1, 2, 9, 9])
    points = head(torch.randn(2, 5, 8), torch.tensor([[100.0, 40], [20, 10]]))
    assert points.shape == (2, 5, 2, 2)
    assert points[0, 3].tolist() == [[0, 50], [40, 150]]  # not clamped
    assert points[1, 0].tolist() == [[0, 10], [10, 30]]


def test_the_place_of_a_word_depends_on_its_own_state():
    head, states = WordLocations(dim=8, hidden_dim=16), torch.randn(1, 4, 8, requires_grad=True)
    head(states, torch.tensor([[30.0, 50]]))[0, 2].sum().backward()
    assert states.grad[0].abs().sum(-1).bool().tolist() == [False, False, True, False]


def test_boxes_from_points():
    points = torch.tensor([[[[9.0, 2], [4, 8]], [[-5, -5], [99, 99]]]]).repeat(2, 1, 1, 1)
    boxes = points_to_boxes(points, torch.tensor([[True, False], [True, True]]))
    assert boxes.tolist() == [[4, 2, 9, 8], [-5, -5, 99, 99]]


def test_no_word_no_box():
    points = torch.tensor([[[[9.0, 2], [4, 8]]]], requires_grad=True)
    box = points_to_boxes(points, torch.zeros(1, 1, dtype=torch.bool))
    assert box.tolist() == [[10, 9, 3, 1]]
    assert generalized_iou(box, torch.tensor([[0.0, 0, 20, 20]])) <= 0
    box.sum().backward()
    assert points.grad.isfinite().all()


def test_point_loss_by_hand():
    points = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 5], [5, 5]], [[7, 7], [7, 7]], [[1, 1], [1, 1]]]])
    targets = torch.tensor([[[[2.0, 2], [3, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 9]], [[9, 9], [9, 9]]]])
    learns = torch.tensor([[True, True, True, False]])  # the second is nowhere, the last not asked for
    assert located(targets, learns).tolist() == [[True, False, True, False]]
    assert word_points_l1(points, targets, learns) == 5 / 4 + (7 + 7 + 7 + 2) / 4
    assert word_points_l1(points, targets, learns, squared=True) == 17 / 4 + (49 * 3 + 4) / 4


def test_point_loss_of_nothing_is_zero_and_differentiable():
    points = torch.full((2, 3, 2, 2), float("inf"), requires_grad=True)
    loss = word_points_l1(points, torch.zeros(2, 3, 2, 2), torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert not points.grad.any()
    assert word_points_l1(torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, dtype=torch.bool)) == 0
