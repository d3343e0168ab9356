"""Box arithmetic. Boxes are float tensors (..., 4): xyxy = (x0, y0, x1, y1), cxcywh = (centre x, centre y, w, h)."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4)."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4)."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), -1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the GIoU of pairs of xyxy boxes, (N, 4) and (N, 4) -> (N,), in (-1, 1] (Rezatofighi et al., 2019)."""
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clamp(min=0).prod(-1) for box in (a, b))
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = area_a + area_b - shared
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    return shared / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def rescale_boxes(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Bring xyxy boxes (..., 4) from an image of ``size`` to its ``original`` (height, width), and cut them there."""
    (h, w), (height, width) = size, original
    scaled = boxes * boxes.new_tensor((width / w, height / h, width / w, height / h))
    return torch.minimum(scaled.clamp(min=0), scaled.new_tensor((width, height, width, height)))
