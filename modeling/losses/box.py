"""Box losses, summed over boxes (DETR, equation 2)."""

from __future__ import annotations

from torch import Tensor

from ...utils.boxes import cxcywh_to_xyxy, generalized_iou


def box_l1(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> Tensor:
    """Sum of absolute differences; (N, 4) each, in units of the padded image."""
    return (boxes_cxcywh - targets_cxcywh).abs().sum()


def box_giou(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> Tensor:
    """Sum of 1 - GIoU of pairs; (N, 4) each."""
    return (1 - generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(targets_cxcywh))).sum()
