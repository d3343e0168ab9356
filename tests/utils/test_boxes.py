"""Box conversions and generalised overlap."""

from __future__ import annotations

import pytest
import torch

from locap.utils.boxes import cxcywh_to_xyxy, generalized_iou, rescale_boxes, xyxy_to_cxcywh


def test_conversions_are_inverse():
    boxes = torch.tensor([[1.0, 2.0, 5.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    assert xyxy_to_cxcywh(boxes)[0].tolist() == [3.0, 6.0, 4.0, 8.0]
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0, 0, 2, 2], 1.0),
        ([1, 0, 3, 2], 2 / 6),  # hull 6 = union
        ([4, 0, 6, 2], 0 - (12 - 8) / 12),
        ([2, 2, 4, 4], 0 - (16 - 8) / 16),
        ([5, 5, 5, 5], 0 - (25 - 4) / 25),  # a box without area
    ],
)
def test_generalized_iou_by_hand(other: list[int], expected: float):
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    found = generalized_iou(box, torch.tensor([other], dtype=torch.float32))
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert generalized_iou(torch.tensor([other], dtype=torch.float32), box).item() == pytest.approx(expected, abs=1e-5)


def test_boxes_return_to_the_original_image():
    boxes = torch.tensor([[10.0, 20, 30, 60], [-5, 0, 100, 50]])
    found = rescale_boxes(boxes, (50, 100), (100, 400))
    assert found.tolist() == [[40, 40, 120, 100], [0, 0, 400, 100]]
