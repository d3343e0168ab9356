"""Both stages as one module.

Shapes: B images, C channels, h x w the feature map, N regions of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..masks import Size
from .levels import Levels, pyramid_levels
from .proposals import Boxes, ProposalHead, ProposalMaps, best_boxes, select_proposals
from .pyramid import SimplePyramid
from .rois import RoiHead, RoiOutputs, RoiSamples, decode_deltas, sample_rois


@dataclass(frozen=True, slots=True)
class DetectorNumbers:
    """How many boxes go through the stages, and which of them stay; as published.

    Attributes:
        train_candidates, train_proposals: boxes before and after the suppression of proposals, in training.
        test_candidates, test_proposals: the same in use.
        proposal_iou: proposals that overlap a better one by more are dropped.
        num_samples, positive_share, object_iou: regions that the second stage learns from, see `sample_rois`.
        least_score, nms_iou, num_detections: of what is detected in the end.
    """

    train_candidates: int = 2000
    train_proposals: int = 1000
    test_candidates: int = 1000
    test_proposals: int = 256
    proposal_iou: float = 0.9
    num_samples: int = 512
    positive_share: float = 0.25
    object_iou: float = 0.6
    least_score: float = 0.05
    nms_iou: float = 0.5
    num_detections: int = 100


@dataclass(slots=True)
class DetectorMaps:
    """The pyramid of a batch and what the first stage says of it.

    Attributes:
        pyramid: (B, dim, h, w) of each level.
        levels: where their cells are.
        proposals: the first stage's predictions.
    """

    pyramid: list[Tensor]
    levels: Levels
    proposals: ProposalMaps


class Detector(nn.Module):
    """Finds objects without naming them.

    Args:
        in_dim: C.
        dim: channels of the pyramid.
        deconv_dim: see `SimplePyramid`.
        num_convs, initial_reach: see `ProposalHead`.
        hidden_dim, pooled: see `RoiHead`.
        published_strides: see `pyramid_levels`; needed for published weights, wrong by up to 12 % otherwise.
        numbers: how many boxes.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int = 256,
        deconv_dim: int = 384,
        num_convs: int = 4,
        initial_reach: float = 8.0,
        hidden_dim: int = 1024,
        pooled: int = 7,
        published_strides: bool = False,
        numbers: DetectorNumbers | None = None,
    ) -> None:
        super().__init__()
        self.published_strides = published_strides
        self.numbers = numbers or DetectorNumbers()
        self.pyramid = SimplePyramid(in_dim=in_dim, dim=dim, deconv_dim=deconv_dim)
        self.proposals = ProposalHead(dim=dim, num_convs=num_convs, initial_reach=initial_reach)
        self.rois = RoiHead(dim=dim, hidden_dim=hidden_dim, pooled=pooled)

    def levels(self, grid: Size, canvas: Size) -> Levels:
        """Return where the cells over a feature map of ``grid`` cells are."""
        return pyramid_levels(grid, canvas, published_strides=self.published_strides)

    def forward(self, features: Tensor, canvas: Size) -> DetectorMaps:
        """Run the first stage on (B, C, h, w) of images padded to ``canvas`` (height, width) pixels."""
        pyramid = self.pyramid(features)
        return DetectorMaps(pyramid, self.levels(tuple(features.shape[-2:]), canvas), self.proposals(pyramid))

    def classify(self, maps: DetectorMaps, boxes: Sequence[Tensor]) -> RoiOutputs:
        """Run the second stage on the boxes of each image, (N_i, 4) pixels."""
        return self.rois(maps.pyramid, maps.levels, boxes)

    def sample(self, maps: DetectorMaps, truth: Sequence[Tensor | None], seeds: Sequence[int]) -> list[RoiSamples]:
        """Choose what the second stage learns from: proposals and objects of each image, by the image's seed.

        Args:
            maps: of B images.
            truth: (G_i, 4) all objects of an image, pixels; None where they are not known, from which no sample comes.
            seeds: of the images.
        """
        n = self.numbers
        known = [i for i, objects in enumerate(truth) if objects is not None]
        proposals = ProposalMaps(maps.proposals.heat[known], maps.proposals.reach[known])
        limits = {"candidates": n.train_candidates, "kept": n.train_proposals, "nms_iou": n.proposal_iou}
        sizes = {"num_samples": n.num_samples, "positive_share": n.positive_share, "iou": n.object_iou}
        samples = [RoiSamples.none(maps.proposals.reach.device) for _ in truth]
        for i, found in zip(known, select_proposals(proposals, maps.levels, **limits), strict=True):
            samples[i] = sample_rois(found.xyxy, truth[i], seed=seeds[i], **sizes)
        return samples

    @torch.no_grad()
    def detect(self, maps: DetectorMaps) -> list[Boxes]:
        """Return the objects of each image, best first; a score is the geometric mean of the two stages'."""
        n = self.numbers
        proposals = select_proposals(
            maps.proposals, maps.levels, candidates=n.test_candidates, kept=n.test_proposals, nms_iou=n.proposal_iou
        )
        outputs = self.classify(maps, [p.xyxy for p in proposals])
        counts = [len(p.xyxy) for p in proposals]
        stages = zip(proposals, outputs.logits.split(counts), outputs.deltas.split(counts), strict=True)
        return [self._final(first, logits, deltas, maps.levels.canvas) for first, logits, deltas in stages]

    def _final(self, first: Boxes, logits: Tensor, deltas: Tensor, canvas: Size) -> Boxes:
        """Combine the stages for one image."""
        scores = (logits.softmax(-1)[:, 1] * first.scores).sqrt()
        kept = scores > self.numbers.least_score
        boxes = decode_deltas(first.xyxy, deltas)[kept]
        n = self.numbers
        return best_boxes(boxes, scores[kept], canvas=canvas, nms_iou=n.nms_iou, kept=n.num_detections)
