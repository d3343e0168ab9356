"""Pix2Cap (arXiv 2501.13893): one pass gives a panoptic segmentation and a sentence per segment.

    image -> FocalNet -> pixel decoder -> masked-attention queries -> class, mask, box
                                                  |
                                                  +-> region tokens -> BERT-style captioner -> sentence

Shapes: B images, Q object queries, D width, K classes, R regions to describe, M tokens each, T words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.batches import Batch
from ..datasets.records import Category, Record, Region, box_of_mask
from ..utils.tokenizers import CaptionTokenizer
from .heads.panoptic import PanopticMap, PanopticThresholds, keep_queries, panoptic_map, resize_masks
from .heads.semantic import SemanticHead
from .layers.gradient import scale_gradient
from .layers.images import ImageBatch
from .losses.caption import smoothed_caption_loss
from .losses.criterion import Matches, SegmentTargets, SetCriterion
from .losses.points import PointSource, SeededPoints
from .losses.terms import LossTerm
from .matching.hungarian import best_overlap
from .pix2cap_layouts import PIX2CAP_LAYOUTS
from .region_encoders.query_decoder import DecodedQueries, QueryDecoder, QueryPrediction
from .region_encoders.region_tokens import RegionTokens
from .text_decoders.bert_captioner import BertCaptioner
from .text_decoders.generation import generate
from .text_encoders.class_texts import ClassTexts
from .text_encoders.clip_text import ClipTextEncoder


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Factors of the losses; those of boxes and the dense semantic map may be zero, which leaves them out."""

    mask_ce: float
    mask_bce: float
    mask_dice: float
    caption: float
    caption_points: int  # prediction points, from the last, that carry the caption loss
    mask_points: int  # the same for class, mask and box losses
    box_l1: float = 0.0
    box_giou: float = 0.0
    semantic: float = 0.0


@dataclass(slots=True)
class ImageQueries:
    """The object queries of one image at one prediction point, and the maps they refer to.

    Attributes:
        hidden: (Q, D).
        mask_embed: (Q, C).
        mask_features: (C, h, w).
        fine_features: the backbone's finest map (C', h, w).
        global_feature: (D,).
    """

    hidden: Tensor
    mask_embed: Tensor
    mask_features: Tensor
    fine_features: Tensor
    global_feature: Tensor

    def masks(self, queries: Tensor | slice = slice(None)) -> Tensor:
        """Return mask logits, (R, h, w)."""
        return torch.einsum("qc,chw->qhw", self.mask_embed[queries], self.mask_features)


class Pix2Cap(nn.Module):
    """The system: parts in, losses and predictions out.

    Args:
        categories: the K classes, in the order of the class indices.
        images, backbone, pixel_decoder, decoder, lang_encoder, captioner, region_tokens: the parts.
        region_dim: width of the tokens the captioner reads.
        class_texts: the classifier's sentences.
        tokenizer: of captions.
        criterion, weights: the training objective.
        thresholds: of panoptic inference.
        caption_match: which query learns a segment's caption: the one whose mask overlaps it most ("iou", published) or
            the one matched to it ("hungarian").
        caption_gradient_scale: factor of the caption loss's gradient into the regions.
        semantic_head: dense auxiliary classifier, or None.
        class_query_in_panoptic: let the class query (last row) claim pixels, without a caption, as X-Decoder does.
        beam_size, max_words: of the caption search.

    Attributes:
        layouts: what weights of other code bases load into it.
    """

    layouts = PIX2CAP_LAYOUTS

    def __init__(
        self,
        *,
        categories: Sequence[Category],
        images: ImageBatch,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        decoder: QueryDecoder,
        lang_encoder: ClipTextEncoder,
        captioner: BertCaptioner,
        region_tokens: RegionTokens,
        region_dim: int,
        class_texts: ClassTexts,
        tokenizer: CaptionTokenizer,
        criterion: SetCriterion,
        weights: LossWeights,
        thresholds: PanopticThresholds,
        caption_match: str = "iou",
        caption_gradient_scale: float = 1 / 3,
        semantic_head: SemanticHead | None = None,
        class_query_in_panoptic: bool = True,
        beam_size: int = 1,
        max_words: int = 40,
    ) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.images, self.backbone, self.pixel_decoder = images, backbone, pixel_decoder
        self.decoder, self.lang_encoder, self.captioner = decoder, lang_encoder, captioner
        self.region_tokens = region_tokens
        self.region_proj = nn.Linear(region_tokens.dim, region_dim)
        self.semantic_head = semantic_head
        self.class_texts, self.tokenizer = class_texts, tokenizer
        self.criterion, self.weights, self.thresholds = criterion, weights, thresholds
        self.caption_match, self.caption_gradient_scale = caption_match, caption_gradient_scale
        self.class_query_in_panoptic = class_query_in_panoptic
        self.beam_size, self.max_words = beam_size, max_words

    def train(self, mode: bool = True) -> Pix2Cap:
        """Switch modes; the class texts are encoded anew after training."""
        self.class_texts.forget()
        return super().train(mode)

    def load_state_dict(self, *args, **kwargs):
        """Load weights; the class texts are encoded anew."""
        self.class_texts.forget()
        return super().load_state_dict(*args, **kwargs)

    @property
    def num_objects(self) -> int:
        """Queries that stand for objects."""
        return self.decoder.query_feat.num_embeddings - int(self.decoder.class_query)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return what the losses of a batch are sums over, see `LossTerm`."""
        words = sum(int((target.caption_tokens[:, 1:] != self.tokenizer.pad_id).sum()) for target in batch.targets)
        counts = {
            "class_weights": self.criterion.class_weight_count(batch.targets, self.num_objects),
            "segments": sum(map(len, batch.targets)),
            "words": words,
        }
        if self.semantic_head is not None:
            counts["positions"] = self.semantic_head.count(batch.targets)
        return counts

    def encode(self, images: Tensor, class_texts: Tensor) -> tuple[DecodedQueries, dict[str, Tensor]]:
        """Padded images (B, 3, H, W) and class texts (K + 1, P) -> queries at every prediction point, backbone maps."""
        features = self.backbone(images)
        pixels = self.pixel_decoder(features)
        decoded = self.decoder(pixels.multi_scale, pixels.mask_features, class_texts, self.lang_encoder.logit_scale)
        return decoded, features

    def forward(self, batch: Batch, step_seed: int = 0, points: PointSource | None = None) -> dict[str, LossTerm]:
        """Return the losses of a batch, named ``loss_<part>_<prediction point>``, the last point being 0.

        Args:
            batch: images and targets.
            step_seed: the same on all ranks; draws the class sentences of this step.
            points: where masks are compared; by default drawn from each image's own seed.
        """
        images = self.images(batch.images)
        targets = SegmentTargets.from_regions(batch.targets, *images.shape[-2:])
        points = points or SeededPoints([target.seed for target in batch.targets], images.device)
        class_texts = self.class_texts.sampled(self.lang_encoder, np.random.default_rng(step_seed))
        decoded, features = self.encode(images, class_texts)
        losses: dict[str, LossTerm] = {}
        matched = []
        for layer, prediction in enumerate(reversed(decoded.points)):
            matches = self.criterion.match(prediction, decoded.mask_features, targets, points, layer, self.num_objects)
            if layer < self.weights.mask_points:
                losses |= self._segment_losses(prediction, decoded.mask_features, targets, matches, points, layer)
            matched.append(matches)
        if self.weights.caption:
            losses |= self._caption_losses(batch, decoded, features, targets, matched[: self.weights.caption_points])
        if self.semantic_head is not None:
            total = self.semantic_head.loss(decoded.mask_features, batch.targets)
            losses["loss_semantic"] = LossTerm(total, "positions", self.weights.semantic)
        return losses

    def _segment_losses(
        self,
        prediction: QueryPrediction,
        mask_features: Tensor,
        targets: SegmentTargets,
        matches: Matches,
        points: PointSource,
        layer: int,
    ) -> dict[str, LossTerm]:
        weights, criterion = self.weights, self.criterion
        ce = criterion.class_loss(prediction.class_logits[:, : self.num_objects], targets, matches)
        bce, dice = criterion.mask_losses(prediction, mask_features, targets, matches, points, layer)
        losses = {
            f"loss_mask_ce_{layer}": LossTerm(ce, "class_weights", weights.mask_ce),
            f"loss_mask_bce_{layer}": LossTerm(bce, "segments", weights.mask_bce),
            f"loss_mask_dice_{layer}": LossTerm(dice, "segments", weights.mask_dice),
        }
        if weights.box_l1 or weights.box_giou:
            l1, giou = criterion.box_losses(prediction.boxes_cxcywh, targets, matches)
            losses[f"loss_bbox_box_{layer}"] = LossTerm(l1, "segments", weights.box_l1)
            losses[f"loss_bbox_giou_{layer}"] = LossTerm(giou, "segments", weights.box_giou)
        return losses

    def _caption_losses(
        self,
        batch: Batch,
        decoded: DecodedQueries,
        features: dict[str, Tensor],
        targets: SegmentTargets,
        matched: list[Matches],
    ) -> dict[str, LossTerm]:
        """Describe every segment at the last prediction points, all in one call of the captioner."""
        tokens, words, layers = [], [], []
        for layer, matches in enumerate(matched):
            images = self._per_image(decoded.points[-1 - layer], decoded, features)
            for image, (view, target) in enumerate(zip(images, batch.targets, strict=True)):
                queries, segments = matches[image]
                if self.caption_match == "iou":
                    queries, segments = best_overlap(view.masks(), targets.masks[image]), torch.arange(len(target))
                tokens.append(self._read_regions(view, queries))
                words.append(target.caption_tokens[segments])
                layers.append(torch.full_like(queries, layer))
        words, layers, tokens = _stack_words(words, self.tokenizer.pad_id), torch.cat(layers), torch.cat(tokens)
        states = self.captioner(tokens, words[:, :-1])
        spoken = words[:, 1:] != self.tokenizer.pad_id  # R T-1
        logits, following = self.captioner.logits(states[spoken]), words[:, 1:][spoken]
        layer_of_word = layers[:, None].expand_as(spoken)[spoken]
        losses = {}
        for layer in range(len(matched)):
            here = layer_of_word == layer
            total = smoothed_caption_loss(logits[here], following[here])
            losses[f"loss_densecaption_{layer}"] = LossTerm(total, "words", self.weights.caption)
        return losses

    def _per_image(
        self, prediction: QueryPrediction, decoded: DecodedQueries, features: dict[str, Tensor]
    ) -> list[ImageQueries]:
        rows = (
            prediction.hidden[:, : self.num_objects],
            prediction.mask_embed[:, : self.num_objects],
            decoded.mask_features,
            features["res2"],
            decoded.global_feature,
        )
        return [ImageQueries(*image) for image in zip(*(row.unbind() for row in rows), strict=True)]

    def _read_regions(self, image: ImageQueries, queries: Tensor) -> Tensor:
        """Return what the captioner reads about some queries of one image, (R, M, region_dim)."""
        masks, fine = None, ()
        if self.region_tokens.needs_masks:
            masks, fine = image.masks().detach(), (image.mask_features, image.fine_features)
        tokens = self.region_tokens(image.hidden, image.global_feature, queries, masks, fine)
        return scale_gradient(self.region_proj(tokens), self.caption_gradient_scale)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Record]:
        """Segment and describe images.

        Returns:
            A record per image at its output size: an id map, and a region per segment with category, box, score (of the
            class) and caption.
        """
        images = self.images(batch.images)
        decoded, features = self.encode(images, self.class_texts.ensemble(self.lang_encoder))
        padded = tuple(images.shape[-2:])
        maps, tokens = [], []
        views = self._per_image(decoded.points[-1], decoded, features)
        for image, output_size in enumerate(batch.output_sizes):
            size = tuple(batch.images[image].shape[-2:])
            maps.append(self._segment(decoded, image, padded, size, output_size))
            queries = [segment.query for segment in maps[-1].segments if segment.query < self.num_objects]
            queries = torch.tensor(queries, dtype=torch.long, device=images.device)
            tokens.append(self._read_regions(views[image], queries))
        captions = iter(self._describe(torch.cat(tokens)))
        return [
            self._record(image_id, panoptic, captions) for image_id, panoptic in zip(batch.image_ids, maps, strict=True)
        ]

    def _segment(
        self,
        decoded: DecodedQueries,
        image: int,
        padded: tuple[int, int],
        size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> PanopticMap:
        prediction = decoded.points[-1]
        rows = None if self.class_query_in_panoptic else self.num_objects
        kept, scores, labels = keep_queries(prediction.class_logits[image, :rows], self.thresholds.score)
        masks = torch.einsum("qc,chw->qhw", prediction.mask_embed[image, kept], decoded.mask_features[image])
        masks = resize_masks(masks, padded, size, output_size)
        is_thing = [category.is_thing for category in self.categories]
        return panoptic_map(masks, kept, scores, labels, is_thing, self.thresholds.overlap)

    def _describe(self, region_tokens: Tensor) -> list[tuple[str, float]]:
        """Return a caption and its score per region; region_tokens: (R, M, region_dim)."""
        tokenizer = self.tokenizer
        text = generate(
            self.captioner,
            region_tokens,
            start_id=tokenizer.start_id,
            end_id=tokenizer.end_id,
            max_length=self.max_words,
            beam_size=self.beam_size,
        )
        return [
            (tokenizer.decode(row[1:]), score)
            for row, score in zip(text.tokens.tolist(), text.scores.tolist(), strict=True)
        ]

    def _record(self, image_id: int | str, panoptic: PanopticMap, captions) -> Record:
        ids = panoptic.ids.cpu().numpy()
        regions = []
        for segment in panoptic.segments:
            mask = ids == segment.id
            caption, caption_score = next(captions) if segment.query < self.num_objects else (None, None)
            regions.append(
                Region(
                    id=segment.id,
                    category_id=self.categories[segment.label].id,
                    box_xyxy=box_of_mask(mask),
                    area=int(mask.sum()),
                    captions=(caption,) if caption is not None else (),
                    score=segment.score,
                    caption_score=caption_score,
                )
            )
        return Record(image_id, *ids.shape, regions=regions, id_map=ids)


def _stack_words(rows: list[Tensor], pad_id: int) -> Tensor:
    """Pad (n_i, T_i) word matrices to one (R, T); T is at least 2, so that something can be predicted."""
    length = max(2, *(words.shape[1] for words in rows), 2)
    return torch.cat([nn.functional.pad(words, (0, length - words.shape[1]), value=pad_id) for words in rows])
