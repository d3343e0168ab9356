"""Instance inference (Mask2Former, as X-Decoder runs it): the surest pairs of query and class, each with its mask.

Shapes: Q queries, K classes, n instances, H x W the output size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.boxes import cxcywh_to_xyxy
from .masks import Frame, QueryMasks

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Instances:
    """Instances of one image, best first; a query may stand behind several, under different classes.

    Attributes:
        queries: int64 (n,).
        labels: int64 (n,), class indices.
        scores: float32 (n,), class probability times the mean probability inside the mask.
        masks: bool (n, H, W).
        boxes_xyxy: float32 (n, 4), pixels of the output, or None when the model predicts no boxes.
    """

    queries: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    boxes_xyxy: Tensor | None


def find_instances(
    class_logits: Tensor,
    masks: QueryMasks,
    boxes_cxcywh: Tensor | None,
    *,
    max_instances: int,
    allowed: Sequence[bool] | None = None,
) -> Instances:
    """Rank all pairs of query and class.

    Args:
        class_logits: (Q, K + 1), the last column "no object".
        masks: of the Q queries.
        boxes_cxcywh: (Q, 4) in units of the padded image, or None.
        max_instances: pairs considered, by class probability; equal ones in the order of queries and classes.
        allowed: per class, whether its pairs among those considered are kept; None keeps all.

    Returns:
        The instances in descending order of their final scores. The published code returns them in no order.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1].nan_to_num(nan=0.0)  # NaN would come first
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().sort(descending=True, stable=True)
    scores, pairs = scores[:max_instances], pairs[:max_instances]
    kept = _finite(class_logits, boxes_cxcywh)[pairs // num_classes]
    if allowed is not None:
        kept &= torch.tensor(allowed, device=pairs.device)[pairs % num_classes]
    scores, pairs = scores[kept], pairs[kept]
    queries, labels = pairs // num_classes, pairs % num_classes
    distinct, row = queries.unique(return_inverse=True)
    logits = masks[distinct]
    solid = logits > 0
    inside = torch.where(solid, logits.sigmoid(), 0.0).sum((1, 2)) / (solid.sum((1, 2)) + 1e-6)
    scores, order = (scores * inside[row]).sort(descending=True, stable=True)
    queries, labels, row = queries[order], labels[order], row[order]
    boxes = None if boxes_cxcywh is None else place_boxes(boxes_cxcywh[queries], masks.frame)
    return Instances(queries, labels, scores, solid[row], boxes)


def _finite(class_logits: Tensor, boxes_cxcywh: Tensor | None) -> Tensor:
    """Return which queries have finite scores and boxes, bool (Q,); a warning counts the others."""
    finite = class_logits.isfinite().all(-1)
    if boxes_cxcywh is not None:
        finite = finite & boxes_cxcywh.isfinite().all(-1)
    if lost := len(finite) - int(finite.sum()):
        _log.warning("%d of %d queries are left out: their scores or boxes are not finite", lost, len(finite))
    return finite


def place_boxes(boxes_cxcywh: Tensor, frame: Frame) -> Tensor:
    """Bring boxes (n, 4) in units of the padded image to xyxy pixels of the output, clipped to the image."""
    boxes = cxcywh_to_xyxy(boxes_cxcywh.float())
    (height, width), device = frame.image, boxes.device
    boxes = boxes * torch.tensor(frame.padded[::-1] * 2, device=device)
    boxes = boxes.clamp(min=0).minimum(torch.tensor((width, height) * 2, device=device, dtype=boxes.dtype))
    return boxes * torch.tensor((frame.output[1] / width, frame.output[0] / height) * 2, device=device)
