"""The published code's training step: the same losses as `Pix2Cap.forward`, by its slow paths.

Every step it tokenizes and encodes a sentence per class at the full context length. At each of its prediction points it
runs the captioner, maps all its states to the vocabulary, compares them with dense smoothed targets, finds each
segment's query by itself and waits for the device, and solves each image's assignment by itself.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.batches import Batch
from ..losses.criterion import Matches, SegmentTargets
from ..losses.points import SeededPoints, sample_points
from ..losses.terms import LossTerm
from ..matching.hungarian import assign
from ..pix2cap import Pix2Cap
from ..region_encoders.image_queries import ImageQueries, split_images
from ..region_encoders.query_decoder import DecodedQueries, QueryPrediction


class OriginalStep:
    """Computes a system's losses the slow way.

    Args:
        system: whose parts do the work.
    """

    def __init__(self, system: Pix2Cap) -> None:
        self.system = system

    def __call__(self, batch: Batch, step_seed: int = 0) -> dict[str, LossTerm]:
        """See `Pix2Cap.forward`."""
        system = self.system
        images = system.images(batch.images)
        targets = SegmentTargets.from_regions(batch.targets, *images.shape[-2:])
        points = SeededPoints([target.seed for target in batch.targets], images.device)
        decoded, features = system.encode(images, self._class_texts(step_seed))
        losses: dict[str, LossTerm] = {}
        for layer, prediction in enumerate(reversed(decoded.points)):
            matches = self._match(prediction, decoded, targets, points, layer)
            maps, objects = decoded.mask_features, system.num_objects
            losses |= system.criterion.losses(prediction, maps, targets, matches, points, layer, objects)
            views = split_images(prediction, decoded, features["res2"], objects)
            caption = self._caption_loss(views, batch, targets)
            if layer < system.options.caption_points:
                losses[f"loss_densecaption_{layer}"] = LossTerm(caption, "words", system.options.caption_weight)
        return losses

    def _class_texts(self, step_seed: int) -> Tensor:
        texts, encoder = self.system.class_texts, self.system.lang_encoder
        drawn = np.random.default_rng(step_seed).integers(len(texts.templates), size=len(texts.names))
        sentences = [texts.templates[i].format(name) for i, name in zip(drawn, texts.training_names, strict=True)]
        tokens = torch.cat([texts.tokenizer([sentence]) for sentence in sentences])
        return encoder(tokens.to(encoder.projection.device), texts.tokenizer.end_id)

    @torch.no_grad()
    def _match(
        self,
        prediction: QueryPrediction,
        decoded: DecodedQueries,
        targets: SegmentTargets,
        points: SeededPoints,
        layer: int,
    ) -> Matches:
        criterion, count = self.system.criterion, self.system.num_objects
        matches = []
        for image, (labels, masks) in enumerate(zip(targets.labels, targets.masks, strict=True)):
            at = points.shared(layer, image, criterion.num_points)[None]
            logits = torch.einsum("qc,chw->qhw", prediction.mask_embed[image, :count], decoded.mask_features[image])
            sampled = sample_points(logits[:, None], at.expand(len(logits), -1, -1))[:, 0]
            truth = sample_points(masks[:, None], at.expand(len(masks), -1, -1))[:, 0]
            cost = criterion.costs(prediction.class_logits[image, :count], sampled, labels, truth)
            matches += assign([cost])
        return matches

    def _caption_loss(self, images: list[ImageQueries], batch: Batch, targets: SegmentTargets) -> Tensor:
        """Return the summed loss of one prediction point."""
        system = self.system
        tokens = []
        for image, masks in zip(images, targets.masks, strict=True):
            queries = best_overlap_one_by_one(image.masks().detach(), masks)
            tokens.append(system._read_regions(image, queries))
        words = torch.cat([target.caption_tokens for target in batch.targets]).to(tokens[0].device)
        logits = system.captioner.logits(system.captioner(torch.cat(tokens), words[:, :-1]))
        spoken = words[:, 1:] != system.tokenizer.pad_id
        return dense_caption_loss(logits[spoken], words[:, 1:][spoken])


def best_overlap_one_by_one(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Find each segment's query in a loop; see `locap.modeling.matching.hungarian.best_overlap`."""
    found, queries = mask_logits > 0, []
    for mask in masks:
        small = F.interpolate(mask[None, None], size=found.shape[-2:], mode="bilinear", align_corners=False)[0, 0] > 0
        wanted = small.expand(len(found), -1, -1)
        overlap = (found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2))
        queries.append(int(overlap.nan_to_num(nan=2.0).argmax().item()))
    return torch.tensor(queries, dtype=torch.long, device=mask_logits.device)


def dense_caption_loss(logits: Tensor, words: Tensor, smoothing: float = 0.1) -> Tensor:
    """Sum the divergence from dense targets; see `locap.modeling.losses.caption.smoothed_caption_loss`."""
    target = torch.full_like(logits, smoothing / (logits.shape[-1] - 1))
    target.scatter_(1, words[:, None], 1 - smoothing)
    return F.kl_div(F.log_softmax(logits.float(), -1), target, reduction="sum")
