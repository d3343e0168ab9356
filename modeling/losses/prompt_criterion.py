"""The training objective of prompted systems: words, places of words, boxes, masks, and a detector's.

Shapes: R texts, T tokens, K = 2 points per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...datasets.batches import PromptTargets
from ...utils.boxes import generalized_iou
from ...utils.tokenizers import LanguageTokenizer
from ..heads.dense_words import DenseWords
from ..heads.detector.detector import Detector, DetectorMaps
from ..heads.detector.levels import Levels
from ..heads.detector.rois import RoiSamples
from ..heads.sam_masks import SamMasks
from ..heads.word_locations import Located, points_to_boxes, token_mask
from ..heads.word_pointer import covered_cells, pointing_loss
from ..llm.adapter import LanguageModel
from ..region_encoders.prompt_rows import PromptRows
from .detection import centre_losses, centre_targets, roi_losses
from .sam_masks import sam_mask_losses
from .terms import LossTerm
from .text import spoken_words, text_loss
from .word_points import located, word_points_l1

Losses = dict[str, LossTerm]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PromptWeights:
    """Factors of the losses' means; the published ones.

    Attributes:
        text: cross entropy of the next word.
        trace: L1 of the places of a narrative's words, pixels.
        box: L1 of the corners that the last word of an expression points at, pixels.
        giou: 1 - GIoU of that box; not published, 0 leaves it out.
        mask, quality: of masks, see `MaskSums`.
        pointer: of the cells that words point at; not published.
        words: of the auxiliary head on the map; not published.
        heat, reach, objects, deltas: of the detector, see `CentreSums` and `RoiSums`.
    """

    text: float = 1.0
    trace: float = 0.1
    box: float = 0.1
    giou: float = 0.0
    mask: float = 1.0
    quality: float = 1.0
    pointer: float = 0.0
    words: float = 0.0
    heat: float = 0.5
    reach: float = 1.0
    objects: float = 1.0
    deltas: float = 1.0


class PromptCriterion:
    """Losses of rows of prompts, each with what it counts.

    Args:
        weights: of the losses.
        tokenizer: of the texts.
        smoothing: of the labels of words.
    """

    def __init__(self, weights: PromptWeights, tokenizer: LanguageTokenizer, *, smoothing: float = 0.1) -> None:
        self.weights, self.smoothing = weights, smoothing
        self._ends = {"end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
        self._ids = {"begin_id": tokenizer.start_id, **self._ends}

    def counts(self, targets: Sequence[PromptTargets]) -> dict[str, float]:
        """Count words, traced words, boxes and masks that are learnt, and pictures; on the host."""
        counts = dict.fromkeys(("words", "traced", "boxes", "masks"), 0.0)
        counts["pictures"] = float(len(targets))
        for target in targets:
            learns = target.learns
            counts["words"] += float((spoken_words(target.text, **self._ends) & learns[:, :1]).sum())
            counts["traced"] += float(self._traced(target.text, target.word_boxes, learns[:, 1]).sum())
            counts["boxes"] += float(self._boxed(target.text, target.task, learns[:, 1]).sum())
            counts["masks"] += float(learns[:, 2].sum())
        return counts

    def detector_counts(self, levels: Levels, targets: Sequence[PromptTargets]) -> dict[str, float]:
        """Count peaks, cells and images that a detector learns from; on the host."""
        boxes = [t.boxes_xyxy if t.boxes_on_host is None else t.boxes_on_host for t in targets if t.detects]
        known = [centre_targets(each, levels).counts for each in boxes]
        peaks, cells = (float(sum(column)) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
        return {"peaks": peaks, "cells": cells, "detecting": float(len(known))}

    def last_pieces(self, rows: PromptRows) -> Tensor:
        """Return which token points at the box of its text, the last piece of the last word: bool (R, T)."""
        return token_mask(rows.text, "^end-1", **self._ids)

    def _traced(self, text: Tensor, word_boxes: Tensor, learns: Tensor) -> Tensor:
        """Return which words learn a place of their own: bool (R, T)."""
        words = token_mask(text, "begin,end,pad", **self._ids) & learns.to(text.device, non_blocking=True)[:, None]
        return located(word_boxes.unflatten(-1, (2, 2)), words)

    def _boxed(self, text: Tensor, task: str, learns: Tensor) -> Tensor:
        """Return which tokens learn the box of their text: bool (R, T); those of a narrative have other places."""
        last = token_mask(text, "^end-1", **self._ids)
        return last & learns.to(text.device, non_blocking=True)[:, None] & (task != "trace")

    def texts(self, language: LanguageModel, states: Tensor, rows: PromptRows) -> Losses:
        """Compare predicted words, from states (R, T, D)."""
        learns = rows.learns[:, 0].to(states.device, non_blocking=True)
        weight = self.weights.text
        term = text_loss(
            language, states, rows.text, learns=learns, smoothing=self.smoothing, weight=weight, **self._ends
        )
        return {"loss_text": term}

    def places(self, words: Located, rows: PromptRows, size: Size, canvas: Size) -> Losses:
        """Compare the places of tokens: of a narrative's words, of the boxes of expressions.

        Args:
            words: their places.
            rows: of the texts.
            size: (h, w) of the map that words point at.
            canvas: (height, width), pixels.
        """
        points = words.points
        learns, weights = rows.learns[:, 1], self.weights
        traced, boxed = self._traced(rows.text, rows.word_boxes, learns), self._boxed(rows.text, rows.task, learns)
        corners = rows.boxes_xyxy[:, None].expand(-1, points.shape[1], -1).unflatten(-1, (2, 2))
        trace = word_points_l1(points, rows.word_boxes.unflatten(-1, (2, 2)), traced)
        losses = {
            "loss_trace": LossTerm(trace, "traced", weights.trace),
            "loss_box": LossTerm(word_points_l1(points, corners, boxed), "boxes", weights.box),
        }
        if weights.giou:
            apart = 1 - generalized_iou(points_to_boxes(points, boxed), rows.boxes_xyxy)
            losses["loss_giou"] = LossTerm(torch.where(boxed.any(1), apart, 0.0).sum(), "boxes", weights.giou)
        if words.scores is not None:
            for name, counted, at, boxes in (
                ("loss_trace_pointer", "traced", traced, rows.word_boxes),
                ("loss_box_pointer", "boxes", boxed, rows.boxes_xyxy[:, None].expand(-1, points.shape[1], -1)),
            ):
                total = pointing_loss(words.scores[at], covered_cells(boxes[at], size, canvas))
                losses[name] = LossTerm(total, counted, weights.pointer)
        return losses

    def masks(self, found: SamMasks, rows: PromptRows, canvas: Size) -> Losses:
        """Compare the first mask of each row with its truth."""
        logits, quality = found.logits[:, 0], found.quality[:, 0]
        learns = torch.ones(len(rows), dtype=torch.bool, device=logits.device)
        sums = sam_mask_losses(logits, quality, rows.unpacked_masks(canvas), rows.sizes, learns)
        return {
            "loss_mask": LossTerm(sums.mask, "masks", self.weights.mask),
            "loss_quality": LossTerm(sums.quality, "masks", self.weights.quality),
        }

    def pictures(self, head: DenseWords, features: Tensor, targets: Sequence[PromptTargets], canvas: Size) -> Losses:
        """Compare the words predicted from every cell of a map."""
        return {"loss_words": LossTerm(head.loss(features, targets, canvas), "pictures", self.weights.words)}

    def detection(
        self, detector: Detector, maps: DetectorMaps, targets: Sequence[PromptTargets]
    ) -> tuple[Losses, list[RoiSamples]]:
        """Return a detector's losses, and the regions of each image that its second stage learned from."""
        truth = [target.boxes_xyxy if target.detects else None for target in targets]
        learns = torch.tensor([target.detects for target in targets])
        learns = learns.to(maps.proposals.heat.device, non_blocking=True)
        wanted = [centre_targets(target.boxes_xyxy, maps.levels) for target in targets]
        first = centre_losses(maps.proposals, wanted, learns)
        samples = detector.sample(maps, truth, [target.seed for target in targets])
        outputs = detector.classify(maps, [sample.xyxy for sample in samples])
        second = roi_losses(outputs, samples, truth, num_samples=detector.numbers.num_samples)
        return {
            "loss_heat": LossTerm(first.heat, "peaks", self.weights.heat),
            "loss_reach": LossTerm(first.reach, "cells", self.weights.reach),
            "loss_objects": LossTerm(second.objects, "detecting", self.weights.objects),
            "loss_deltas": LossTerm(second.boxes, "detecting", self.weights.deltas),
        }, samples
