"""Set criterion: match queries with segments at every prediction point, then compare the pairs.

Shapes: B images, Q object queries, n segments of an image, N of the batch, C mask width, K classes, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.batches import RegionTargets
from ...utils.boxes import xyxy_to_cxcywh
from ..matching.hungarian import MatchingCosts, assign
from ..region_encoders.query_decoder import QueryPrediction
from .box import box_giou, box_l1
from .mask import mask_bce, mask_dice
from .points import PointSource, sample_points, uncertain_points
from .terms import LossTerm

Matches = list[tuple[Tensor, Tensor]]


@dataclass(slots=True)
class SegmentTargets:
    """The batch's ground truth on the padded canvas, made once per step.

    Attributes:
        labels: per image int64 (n,).
        masks: per image float32 (n, H, W).
        boxes_cxcywh: per image float32 (n, 4), in units of the padded image.
    """

    labels: list[Tensor]
    masks: list[Tensor]
    boxes_cxcywh: list[Tensor]

    @classmethod
    def from_regions(cls, targets: list[RegionTargets], height: int, width: int) -> SegmentTargets:
        """Expand id maps to masks and pad them right and below to (height, width)."""
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        masks = [
            F.pad(t.masks().float(), (0, width - t.id_map.shape[1], 0, height - t.id_map.shape[0])) for t in targets
        ]
        boxes = [xyxy_to_cxcywh(t.boxes_xyxy) / scale.to(t.boxes_xyxy.device) for t in targets]
        return cls([t.labels for t in targets], masks, boxes)

    @property
    def counts(self) -> list[int]:
        """Segments per image."""
        return [len(labels) for labels in self.labels]


@dataclass(frozen=True, slots=True)
class SegmentWeights:
    """Factors of the segments' losses; boxes are left out when both of theirs are zero."""

    mask_ce: float
    mask_bce: float
    mask_dice: float
    box_l1: float = 0.0
    box_giou: float = 0.0

    @property
    def boxes(self) -> bool:
        """Whether boxes are learnt."""
        return bool(self.box_l1 or self.box_giou)


class SetCriterion:
    """Losses of one prediction point.

    Args:
        costs: matching costs.
        weights: factors of the losses.
        num_points: P.
        oversample_ratio, importance_ratio: see `uncertain_points`.
        no_object_weight: class weight of unmatched queries.
    """

    def __init__(
        self,
        costs: MatchingCosts,
        weights: SegmentWeights,
        *,
        num_points: int,
        oversample_ratio: float,
        importance_ratio: float,
        no_object_weight: float,
    ) -> None:
        self.costs, self.weights = costs, weights
        self.num_points = num_points
        self.sampling = {"oversample_ratio": oversample_ratio, "importance_ratio": importance_ratio}
        self.no_object_weight = no_object_weight

    @torch.no_grad()
    def match(
        self,
        prediction: QueryPrediction,
        mask_features: Tensor,
        targets: SegmentTargets,
        points: PointSource,
        layer: int,
        num_objects: int,
    ) -> Matches:
        """Assign object queries (the first ``num_objects``) to segments, image by image."""
        costs = []
        for image, (labels, masks) in enumerate(zip(targets.labels, targets.masks, strict=True)):
            at = points.shared(layer, image, self.num_points)[None]
            logits = torch.einsum("qc,chw->qhw", prediction.mask_embed[image, :num_objects], mask_features[image])
            sampled = sample_points(logits[None].float(), at)[0]
            truth = sample_points(masks[None], at)[0] if len(masks) else masks.new_zeros(0, self.num_points)
            costs.append(self.costs(prediction.class_logits[image, :num_objects], sampled, labels, truth))
        return assign(costs)

    def class_weight_count(self, targets: list[RegionTargets], num_objects: int) -> float:
        """Return the sum of class weights over all object queries of a batch."""
        matched = sum(min(len(target), num_objects) for target in targets)
        return matched + self.no_object_weight * (len(targets) * num_objects - matched)

    def losses(
        self,
        prediction: QueryPrediction,
        mask_features: Tensor,
        targets: SegmentTargets,
        matches: Matches,
        points: PointSource,
        layer: int,
        num_objects: int,
    ) -> dict[str, LossTerm]:
        """Return the class and mask losses of prediction point ``layer``, named ``loss_<part>_<layer>``."""
        weights = self.weights
        ce = self.class_loss(prediction.class_logits[:, :num_objects], targets, matches)
        bce, dice = self.mask_losses(prediction, mask_features, targets, matches, points, layer)
        return {
            f"loss_mask_ce_{layer}": LossTerm(ce, "class_weights", weights.mask_ce),
            f"loss_mask_bce_{layer}": LossTerm(bce, "segments", weights.mask_bce),
            f"loss_mask_dice_{layer}": LossTerm(dice, "segments", weights.mask_dice),
        }

    def box_terms(
        self, prediction: QueryPrediction, targets: SegmentTargets, matches: Matches, layer: int
    ) -> dict[str, LossTerm]:
        """Return the box losses of prediction point ``layer``; none when boxes are not learnt."""
        if not self.weights.boxes:
            return {}
        l1, giou = self.box_losses(prediction.boxes_cxcywh, targets, matches)
        return {
            f"loss_bbox_box_{layer}": LossTerm(l1, "segments", self.weights.box_l1),
            f"loss_bbox_giou_{layer}": LossTerm(giou, "segments", self.weights.box_giou),
        }

    def class_loss(self, class_logits: Tensor, targets: SegmentTargets, matches: Matches) -> Tensor:
        """Return the sum of weighted cross-entropies; class_logits: (B, Q, K + 1)."""
        no_object = class_logits.shape[-1] - 1
        wanted = torch.full(class_logits.shape[:2], no_object, dtype=torch.long, device=class_logits.device)
        for image, (queries, segments) in enumerate(matches):
            wanted[image, queries] = targets.labels[image][segments]
        weight = torch.ones(no_object + 1, device=class_logits.device)
        weight[no_object] = self.no_object_weight
        return F.cross_entropy(class_logits.float().transpose(1, 2), wanted, weight, reduction="sum")

    def mask_losses(
        self,
        prediction: QueryPrediction,
        mask_features: Tensor,
        targets: SegmentTargets,
        matches: Matches,
        points: PointSource,
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the matched masks' (cross-entropy, dice), each a sum over N masks of a mean over P points."""
        logits = torch.cat(
            [
                torch.einsum("nc,chw->nhw", embed[queries], features)
                for embed, features, (queries, _) in zip(
                    prediction.mask_embed.unbind(), mask_features.unbind(), matches, strict=True
                )
            ]
        ).float()
        masks = torch.cat([targets.masks[image][segments] for image, (_, segments) in enumerate(matches)])
        if not len(logits):
            return logits.sum(), logits.sum()
        counts = [len(queries) for queries, _ in matches]
        at = uncertain_points(logits, counts, points, layer, num_points=self.num_points, **self.sampling)
        sampled = sample_points(logits[:, None], at)[:, 0]
        truth = sample_points(masks[:, None], at)[:, 0]
        return mask_bce(sampled, truth), mask_dice(sampled, truth)

    def box_losses(self, boxes: Tensor, targets: SegmentTargets, matches: Matches) -> tuple[Tensor, Tensor]:
        """Return the matched boxes' (L1, 1 - GIoU) sums; boxes: cxcywh (B, Q, 4)."""
        predicted = [image[queries] for image, (queries, _) in zip(boxes.unbind(), matches, strict=True)]
        wanted = torch.cat([targets.boxes_cxcywh[image][segments] for image, (_, segments) in enumerate(matches)])
        predicted = torch.cat(predicted).float()
        return box_l1(predicted, wanted), box_giou(predicted, wanted)
