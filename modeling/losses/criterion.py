"""Set criterion: match queries with segments at every prediction point, then compare the pairs.

Shapes: B images, Q object queries, n segments of an image, N of the batch, C mask width, K classes, P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.batches import RegionTargets
from ...utils.boxes import xyxy_to_cxcywh
from ..matching.hungarian import Match, MatchingCosts
from ..region_encoders.query_decoder import QueryPrediction
from .box import box_giou, box_l1
from .mask import mask_bce, mask_dice
from .points import PointSource, sample_points, uncertain_points
from .segment_maps import SegmentMap
from .terms import LossTerm

Matches = list[Match]  # one per image


@dataclass(slots=True)
class SegmentTargets:
    """The batch's ground truth on the padded canvas, made once per step.

    Attributes:
        labels: per image int64 (n,).
        maps: per image its masks.
        boxes_cxcywh: per image float32 (n, 4), in units of the padded image.
    """

    labels: list[Tensor]
    maps: list[SegmentMap]
    boxes_cxcywh: list[Tensor]

    @classmethod
    def from_regions(cls, targets: list[RegionTargets], height: int, width: int) -> SegmentTargets:
        """Lay the targets on a canvas of (height, width), padded right and below."""
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        maps = [SegmentMap(t.id_map, t.segment_ids, (height, width)) for t in targets]
        boxes = [xyxy_to_cxcywh(t.boxes_xyxy) / scale.to(t.boxes_xyxy.device, non_blocking=True) for t in targets]
        return cls([t.labels for t in targets], maps, boxes)

    def shrunk(self, height: int, width: int) -> list[Tensor]:
        """Return the masks at the size of predicted ones, float32 (n, height, width) per image."""
        return [segments.shrunk(height, width) for segments in self.maps]

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
    def match_costs(
        self, class_logits: Tensor, mask_logits: list[Tensor], targets: SegmentTargets, points: PointSource, layer: int
    ) -> list[Tensor]:
        """Return what it costs to give each object query each segment at prediction point ``layer``.

        Args:
            class_logits: (B, Q, K + 1).
            mask_logits: per image (Q, h, w).
            targets: ground truth.
            points: where masks are compared.
            layer: the prediction point.

        Returns:
            Per image float32 (Q, n), for `assign`.
        """
        return [self.costs(*pair) for pair in self._compared(class_logits, mask_logits, targets, points, layer)]

    @torch.no_grad()
    def bad_terms(
        self, class_logits: Tensor, mask_logits: list[Tensor], targets: SegmentTargets, points: PointSource, layer: int
    ) -> set[str]:
        """Return the terms of the matching cost that are not finite; arguments as `match_costs`."""
        terms = [self.costs.terms(*pair) for pair in self._compared(class_logits, mask_logits, targets, points, layer)]
        return {name for image in terms for name, cost in image.items() if not bool(cost.isfinite().all())}

    def _compared(
        self, class_logits: Tensor, mask_logits: list[Tensor], targets: SegmentTargets, points: PointSource, layer: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield what `MatchingCosts` compares, image by image."""
        for image, (labels, segments) in enumerate(zip(targets.labels, targets.maps, strict=True)):
            at = points.shared(layer, image, self.num_points)
            sampled = sample_points(mask_logits[image][None].float(), at[None])[0]
            yield class_logits[image], sampled, labels, segments.at_shared(at)

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
        for image, match in enumerate(matches):
            wanted[image, match.queries] = targets.labels[image][match.segments]
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
                torch.einsum("nc,chw->nhw", embed[match.queries], features)
                for embed, features, match in zip(
                    prediction.mask_embed.unbind(), mask_features.unbind(), matches, strict=True
                )
            ]
        ).float()
        if not len(logits):
            return logits.sum(), logits.sum()
        counts = [len(match.queries) for match in matches]
        at = uncertain_points(logits, counts, points, layer, num_points=self.num_points, **self.sampling)
        sampled = sample_points(logits[:, None], at)[:, 0]
        pairs = zip(targets.maps, matches, at.split(counts), strict=True)
        truth = torch.cat([segments.at_own(match.segments, places) for segments, match, places in pairs])
        return mask_bce(sampled, truth), mask_dice(sampled, truth)

    def box_losses(self, boxes: Tensor, targets: SegmentTargets, matches: Matches) -> tuple[Tensor, Tensor]:
        """Return the matched boxes' (L1, 1 - GIoU) sums; boxes: cxcywh (B, Q, 4)."""
        predicted = [image[match.queries] for image, match in zip(boxes.unbind(), matches, strict=True)]
        wanted = [truth[match.segments] for truth, match in zip(targets.boxes_cxcywh, matches, strict=True)]
        predicted, wanted = torch.cat(predicted).float(), torch.cat(wanted)
        return box_l1(predicted, wanted), box_giou(predicted, wanted)
