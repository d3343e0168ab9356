"""The published code's training step: the same losses as `Pix2Cap.forward`, by its slow paths.

Every step it tokenizes and encodes a sentence per class at the full context length. The pixel decoder leaves mixed
precision, the query decoder takes its own slow way (`original_decoder`). At each prediction point the captioner runs,
all its states are mapped to the vocabulary, wanted or not, and compared with dense smoothed targets; what
it reads is put together region by region; targets become numbers at full size, three times; each segment's query is
found by itself and waits for the device twice; each image's assignment is solved by itself, with the GPU's unused
memory given back before; coordinates are repeated for every mask. In the end every loss is read on the host.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batches import Batch, RegionTargets
from ..layers.gradient import scale_gradient
from ..losses.criterion import Matches, SegmentTargets
from ..losses.mask import mask_bce, mask_dice
from ..losses.points import SeededPoints, sample_points, uncertain_points
from ..losses.terms import LossTerm
from ..matching.hungarian import MatchingCosts, assign
from ..pix2cap import Pix2Cap
from ..region_encoders.image_queries import ImageQueries, split_images
from ..region_encoders.query_decoder import DecodedQueries, QueryPrediction
from .original_decoder import original_decoder

Size = tuple[int, int]


class OriginalStep:
    """Computes a system's losses the slow way.

    Args:
        system: whose parts do the work.
    """

    def __init__(self, system: Pix2Cap) -> None:
        if system.region_tokens.needs_masks:
            raise ValueError("the published captioner reads a query and the global feature, no masks")
        self.system = system

    def __call__(self, batch: Batch, step_seed: int = 0) -> dict[str, LossTerm]:
        """See `Pix2Cap.forward`."""
        system = self.system
        images = system.images(batch.images)
        canvas = tuple(images.shape[-2:])
        targets = SegmentTargets.from_regions(batch.targets, *canvas)
        truth = [padded_masks(target, canvas) for target in batch.targets]  # the published loader ships these
        points = SeededPoints([target.seed for target in batch.targets], images.device)
        decoded, features, masks = self._decode(images, self._class_texts(step_seed))
        losses: dict[str, LossTerm] = {}
        for layer, (prediction, maps) in enumerate(zip(reversed(decoded.points), reversed(masks), strict=True)):
            matches = self._match(prediction, maps, targets, truth, points, layer)
            losses |= self._mask_losses(prediction, maps, targets, truth, matches, points, layer)
            losses |= system.criterion.box_terms(prediction, targets, matches, layer)
            views = split_images(prediction, decoded, features["res2"], system.num_objects)
            caption = self._caption_loss(views, maps, batch, truth)
            if layer < system.options.caption_points:
                losses[f"loss_densecaption_{layer}"] = LossTerm(caption, "words", system.options.caption_weight)
        for term in losses.values():
            term.total.item()  # into the published code's running means
        return losses

    def _decode(self, images: Tensor, class_texts: Tensor) -> tuple[DecodedQueries, dict[str, Tensor], list[Tensor]]:
        """Return also the masks (B, Q, h, w) of every prediction point, first those of the initial queries."""
        system = self.system
        features = system.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            pixels = system.pixel_decoder({name: x.float() for name, x in features.items()})
        if images.is_cuda:
            torch.cuda.empty_cache()
        scale = system.lang_encoder.logit_scale
        with original_decoder(system.decoder) as masks:
            decoded = system.decoder(pixels.multi_scale, pixels.mask_features, class_texts, scale)
        masks.append(torch.einsum("bqc,bchw->bqhw", decoded.points[-1].mask_embed, decoded.mask_features))
        return decoded, features, masks

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
        maps: Tensor,
        targets: SegmentTargets,
        truth: list[Tensor],
        points: SeededPoints,
        layer: int,
    ) -> Matches:
        criterion, count = self.system.criterion, self.system.num_objects
        matches = []
        for image, (labels, masks) in enumerate(zip(targets.labels, truth, strict=True)):
            if maps.is_cuda:
                torch.cuda.empty_cache()
            at = points.shared(layer, image, criterion.num_points)[None]
            logits, masks = maps[image, :count].float(), masks.float()
            sampled = sample_points(logits[:, None], at.expand(len(logits), -1, -1))[:, 0]
            wanted = sample_points(masks[:, None], at.expand(len(masks), -1, -1))[:, 0]
            logits = prediction.class_logits[image, :count]
            matches += assign([original_costs(criterion.costs, logits, sampled, labels, wanted)])
        return matches

    def _mask_losses(
        self,
        prediction: QueryPrediction,
        maps: Tensor,
        targets: SegmentTargets,
        truth: list[Tensor],
        matches: Matches,
        points: SeededPoints,
        layer: int,
    ) -> dict[str, LossTerm]:
        """Return the class and mask losses, from all queries' masks and targets at full size."""
        system, criterion, weights = self.system, self.system.criterion, self.system.criterion.weights
        ce = criterion.class_loss(prediction.class_logits[:, : system.num_objects], targets, matches)
        torch.tensor(float(sum(targets.counts)), device=maps.device).item()  # over ranks, in the published code
        logits = torch.cat([image[match.queries] for image, match in zip(maps, matches, strict=True)]).float()
        masks = torch.cat([masks.float() for masks in truth])
        first = itertools.accumulate(targets.counts[:-1], initial=0)
        masks = masks[torch.cat([match.segments + start for match, start in zip(matches, first, strict=True)])]
        counts = [len(match.queries) for match in matches]
        at = uncertain_points(logits, counts, points, layer, num_points=criterion.num_points, **criterion.sampling)
        sampled, wanted = sample_points(logits[:, None], at)[:, 0], sample_points(masks[:, None], at)[:, 0]
        return {
            f"loss_mask_ce_{layer}": LossTerm(ce, "class_weights", weights.mask_ce),
            f"loss_mask_bce_{layer}": LossTerm(mask_bce(sampled, wanted), "segments", weights.mask_bce),
            f"loss_mask_dice_{layer}": LossTerm(mask_dice(sampled, wanted), "segments", weights.mask_dice),
        }

    def _caption_loss(self, images: list[ImageQueries], maps: Tensor, batch: Batch, truth: list[Tensor]) -> Tensor:
        """Return the summed loss of one prediction point."""
        system, count = self.system, self.system.num_objects
        tokens = images[0].hidden.new_zeros(0, len(system.region_tokens.kinds), system.region_tokens.dim)
        for image, logits, masks in zip(images, maps, truth, strict=True):
            for query in best_overlap_one_by_one(logits[:count].detach(), masks.float()):
                region = system.region_tokens(image.hidden, image.global_feature, query[None], None)
                tokens = torch.cat((tokens, region))
        tokens = scale_gradient(system.region_proj(tokens), system.options.caption_gradient_scale)
        words = torch.cat([target.caption_tokens for target in batch.targets]).to(tokens.device)
        logits = system.captioner.logits(system.captioner(tokens, words[:, :-1]))
        spoken = words[:, 1:] != system.tokenizer.pad_id
        return dense_caption_loss(logits[spoken], words[:, 1:][spoken])


def padded_masks(target: RegionTargets, canvas: Size) -> Tensor:
    """Return bool (n, H, W) masks, padded right and below to the canvas (height, width)."""
    height, width = target.id_map.shape
    return F.pad(target.masks(), (0, canvas[1] - width, 0, canvas[0] - height))


def original_costs(costs: MatchingCosts, class_logits: Tensor, x: Tensor, labels: Tensor, y: Tensor) -> Tensor:
    """Return the costs by two products, of what is inside and what is outside; see `MatchingCosts`."""
    inside = F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
    outside = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
    mask_cost = (torch.einsum("qp,np->qn", inside, y) + torch.einsum("qp,np->qn", outside, 1 - y)) / x.shape[1]
    p = x.sigmoid()
    dice = 1 - (2 * torch.einsum("qp,np->qn", p, y) + 1) / (p.sum(-1)[:, None] + y.sum(-1)[None] + 1)
    class_cost = -class_logits.float().softmax(-1)[:, labels]
    return costs.mask_weight * mask_cost + costs.class_weight * class_cost + costs.dice_weight * dice


def best_overlap_one_by_one(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Find each segment's query in a loop; see `locap.modeling.matching.hungarian.best_overlap`."""
    found, queries = mask_logits > 0, []
    for mask in masks:
        small = F.interpolate(mask[None, None], size=found.shape[-2:], mode="bilinear", align_corners=False)[0, 0] > 0
        wanted = small.expand(len(found), -1, -1)
        overlap = (found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2))
        best = overlap.nan_to_num(nan=2.0).max(0)
        best.values.item()
        queries.append(int(best.indices.item()))
    return torch.tensor(queries, dtype=torch.long, device=mask_logits.device)


def dense_caption_loss(logits: Tensor, words: Tensor, smoothing: float = 0.1) -> Tensor:
    """Sum the divergence from dense targets; see `locap.modeling.losses.vocabulary.projected_caption_loss`."""
    target = torch.full_like(logits, smoothing / (logits.shape[-1] - 1))
    target.scatter_(1, words[:, None], 1 - smoothing)
    return F.kl_div(F.log_softmax(logits.float(), -1), target, reduction="sum")


class OriginalOptimizer:
    """AdamW with a group for every parameter, after clipping them all by their norm, in PyTorch's default ways.

    Args:
        model: whose trained parameters move.
        lr, weight_decay, clip_norm: of all of them.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_norm: float) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": [parameter], "lr": lr, "weight_decay": weight_decay} for parameter in trained]
        self.optimizer, self.clip_norm = torch.optim.AdamW(groups, lr=lr), clip_norm

    def step(self) -> None:
        """Clip and step."""
        parameters = itertools.chain(*[group["params"] for group in self.optimizer.param_groups])
        torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
