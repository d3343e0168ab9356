"""Losses of masks of prompts (SAM's, with PixelLLM's weights): focal, dice, and the predicted quality.

Shapes: R prompts, h x w the logits, H x W the canvas.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskSums(NamedTuple):
    """Sums over the prompts that learn; each is to be divided by their number, or 1.

    Attributes:
        mask: 20 focal + dice.
        quality: squared error of the predicted IoU.
    """

    mask: Tensor
    quality: Tensor


def sam_mask_losses(
    logits: Tensor, quality: Tensor, masks: Tensor, sizes: Tensor, learns: Tensor, *, focal_weight: float = 20.0
) -> MaskSums:
    """Compare masks at the size of the canvas.

    The focal loss is a mean over the image's own pixels; dice and IoU look at the padding too, as published.

    Args:
        logits: (R, h, w), one mask for each prompt.
        quality: (R,) predicted IoU.
        masks: bool (R, H, W).
        sizes: (R, 2) height and width of the images without padding.
        learns: bool (R,); what the others hold is never looked at.
        focal_weight: factor of the focal loss.
    """
    kept = learns.nonzero()[:, 0]
    logits, quality, sizes = logits[kept].float(), quality[kept].float(), sizes[kept]
    masks = masks[kept]
    if not len(kept):
        return MaskSums(logits.sum(), quality.sum())
    logits = F.interpolate(logits[:, None], size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    truth = masks.float()
    inside = _inside(sizes, masks.shape[-2], masks.shape[-1])
    focal = (focal_loss(logits, truth) * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return MaskSums(
        (focal_weight * focal + dice_loss(logits, truth)).sum(),
        (quality - hard_iou(logits.detach() > 0, masks)).square().sum(),
    )


def focal_loss(logits: Tensor, truth: Tensor, *, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Return -alpha_t (1 - p_t)^gamma log p_t of each pixel (Lin et al., 2017); truth is 0 or 1."""
    ce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = torch.where(truth > 0, (-logits).sigmoid(), logits.sigmoid())  # 1 - p_t
    return torch.where(truth > 0, alpha, 1 - alpha) * wrong**gamma * ce


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - (2 |p y| + 1) / (|p| + |y| + 1) of each mask, (R,)."""
    p = logits.sigmoid()
    return 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)


def hard_iou(predicted: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of pairs of bool masks (R, H, W); two empty ones have 0."""
    shared, union = ((x.sum((1, 2))) for x in (predicted & masks, predicted | masks))
    return shared / union.clamp(min=1)


def _inside(sizes: Tensor, height: int, width: int) -> Tensor:
    """(R, 2) -> bool (R, H, W), the pixels that are not padding."""
    rows, columns = (torch.arange(n, device=sizes.device) for n in (height, width))
    return (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
