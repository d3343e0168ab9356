"""Pix2Cap (arXiv 2501.13893): one pass gives a panoptic segmentation and a sentence per segment.

    image -> FocalNet -> pixel decoder -> masked-attention queries -> class, mask, box
                                                  |
                                                  +-> region tokens -> BERT-style captioner -> sentence

Shapes: B images, Q object queries, D width, K classes, R regions to describe, M tokens each, T words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.batches import Batch
from ..datasets.records import Category, Record, Region
from ..utils.errors import NumericError
from ..utils.tokenizers import CaptionTokenizer
from .heads.asked_regions import Likeness, choose_queries, found_regions
from .heads.dense import DenseHead
from .heads.panoptic import PanopticThresholds
from .heads.results import record_of
from .heads.seen_images import SeenImage, seen_images
from .heads.segmentation import InferenceModes, Segmentation
from .layers.frozen import rest_frozen
from .layers.gradient import scale_gradient
from .layers.images import ImageBatch
from .losses.caption import CaptionTargets, caption_losses
from .losses.criterion import Matches, SegmentTargets, SetCriterion
from .losses.points import PointSource, SeededPoints
from .losses.terms import LossTerm
from .matching.hungarian import Match, assign, best_overlap
from .pix2cap_layouts import PIX2CAP_LAYOUTS
from .region_encoders.image_queries import ImageQueries, split_images
from .region_encoders.query_decoder import DecodedQueries, QueryDecoder, QueryPrediction
from .region_encoders.region_tokens import RegionTokens
from .text_decoders.bert_captioner import BertCaptioner
from .text_decoders.captions import Caption, CaptionSearch, caption_scores, write_captions
from .text_decoders.generation import WatchRegions, watch_words
from .text_encoders.class_texts import ClassTexts
from .text_encoders.clip_text import ClipTextEncoder


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What is learnt where; a weight of zero leaves a loss out.

    Attributes:
        caption_weight: factor of the caption loss.
        caption_points: prediction points, from the last, that carry it.
        mask_points: the same for class and mask losses.
        box_points: the same for box losses.
        caption_match: which query learns a segment's caption: the one whose mask overlaps it most ("iou", published) or
            the one matched to it ("hungarian").
        caption_gradient_scale: factor of the caption loss's gradient into the regions.
        frozen_in_eval: frozen parts are in evaluation mode during training, see `rest_frozen`.
    """

    caption_weight: float
    caption_points: int
    mask_points: int
    box_points: int
    caption_match: str = "iou"
    caption_gradient_scale: float = 1 / 3
    frozen_in_eval: bool = True

    @property
    def overlap_points(self) -> int:
        """Prediction points, from the last, at which overlaps are needed."""
        return self.caption_points if self.caption_weight and self.caption_match == "iou" else 0

    @property
    def matched_points(self) -> int:
        """The same for the assignment."""
        read = self.caption_points if self.caption_weight and self.caption_match == "hungarian" else 0
        return max(self.mask_points, self.box_points, read)


class Pix2Cap(nn.Module):
    """The system: parts in, losses and predictions out.

    Args:
        categories: the K classes, in the order of the class indices.
        images, backbone, pixel_decoder, decoder, lang_encoder, captioner, region_tokens: the parts.
        region_dim: width of the tokens the captioner reads.
        class_texts: the classifier's sentences.
        tokenizer: of captions.
        criterion, options: the training objective.
        modes, thresholds: what inference returns.
        auxiliary: heads that learn from every position of the mask features, by the name of their loss.
        class_query_in_panoptic: let the class query (last row) become segments and instances, without a caption, and
            add to the semantic scores, as X-Decoder does.
        joint_padding: predict images of all sizes at once, padded to one, as published. The padding reaches what is
            seen: each image's answer then depends on the sizes of its mates.
        search: how captions are looked for.

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
        options: TrainingOptions,
        modes: InferenceModes,
        thresholds: PanopticThresholds,
        search: CaptionSearch,
        auxiliary: Mapping[str, DenseHead] | None = None,
        class_query_in_panoptic: bool = True,
        joint_padding: bool = False,
    ) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.images, self.backbone, self.pixel_decoder = images, backbone, pixel_decoder
        self.decoder, self.lang_encoder, self.captioner = decoder, lang_encoder, captioner
        self.region_tokens = region_tokens
        self.region_proj = nn.Linear(region_tokens.dim, region_dim)
        self.auxiliary = nn.ModuleDict(auxiliary or {})
        self.class_texts, self.tokenizer = class_texts, tokenizer
        self.criterion, self.options = criterion, options
        self.modes, self.thresholds, self.search = modes, thresholds, search
        self.class_query_in_panoptic, self.joint_padding = class_query_in_panoptic, joint_padding

    def train(self, mode: bool = True) -> Pix2Cap:
        """Switch modes; the class texts are encoded anew after training."""
        self.class_texts.forget()
        super().train(mode)
        if mode and self.options.frozen_in_eval:
            rest_frozen(self)
        return self

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
        for head in self.auxiliary.values():
            counts[head.counted] = head.count(batch.targets)
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
        predictions = decoded.points[::-1]
        views = [split_images(point, decoded, features["res2"], self.num_objects) for point in predictions]
        matches, overlaps = self._pair(predictions, views, targets, points)
        losses: dict[str, LossTerm] = {}
        options, maps = self.options, decoded.mask_features
        for layer, (prediction, found) in enumerate(zip(predictions, matches, strict=False)):
            if layer < options.mask_points:
                losses |= self.criterion.losses(prediction, maps, targets, found, points, layer, self.num_objects)
            if layer < options.box_points:
                losses |= self.criterion.box_terms(prediction, targets, found, layer)
        if options.caption_weight:
            queries = overlaps if options.caption_match == "iou" else matches
            readings = self._caption_targets(views, batch, queries[: options.caption_points])
            pad_id, weight = self.tokenizer.pad_id, options.caption_weight
            losses |= caption_losses(self.captioner, readings, pad_id=pad_id, weight=weight)
        for name, head in self.auxiliary.items():
            losses[f"loss_{name}"] = LossTerm(head.loss(maps, batch.targets), head.counted, head.weight)
        return losses

    @torch.no_grad()
    def _pair(
        self,
        predictions: list[QueryPrediction],
        views: list[list[ImageQueries]],
        targets: SegmentTargets,
        points: PointSource,
    ) -> tuple[list[Matches], list[Matches]]:
        """Return per prediction point and image who is matched with whom, and who overlaps each segment most.

        Every point's masks are made once for both, and the host waits for the device once for all.
        """
        costs, overlaps, options = [], [], self.options
        small = targets.shrunk(*views[0][0].mask_features.shape[-2:])
        for layer in range(min(len(views), max(options.matched_points, options.overlap_points))):
            masks = [image.masks() for image in views[layer]]
            if layer < options.matched_points:
                logits = predictions[layer].class_logits[:, : self.num_objects]
                costs += self.criterion.match_costs(logits, masks, targets, points, layer)
            if layer < options.overlap_points:
                overlaps.append([Match.of_all(best_overlap(*pair)) for pair in zip(masks, small, strict=True)])
        try:
            matches = assign(costs)
        except NumericError as err:
            raise self._bad_costs(predictions, views, targets, points) from err
        return [matches[start : start + len(small)] for start in range(0, len(costs), len(small))], overlaps

    def _bad_costs(self, predictions: list[QueryPrediction], views: list, *compared: object) -> NumericError:
        """Say which terms of the matching cost are not finite."""
        terms: set[str] = set()
        for layer in range(self.options.matched_points):
            logits, masks = predictions[layer].class_logits[:, : self.num_objects], [v.masks() for v in views[layer]]
            terms |= self.criterion.bad_terms(logits, masks, *compared, layer)
        return NumericError(f"The matching cost is not finite: {', '.join(sorted(terms))}.", allowed="finite costs")

    def _caption_targets(
        self, views: list[list[ImageQueries]], batch: Batch, pairs: list[Matches]
    ) -> list[CaptionTargets]:
        """Say which query of each image learns to say what, for every prediction point that has pairs."""
        return [
            CaptionTargets(self._read_regions(image, pair.queries), target.caption_tokens[pair.on_host], layer)
            for layer, (images, matches) in enumerate(zip(views, pairs, strict=False))
            for image, target, pair in zip(images, batch.targets, matches, strict=True)
        ]

    def _read_regions(self, image: ImageQueries, queries: Tensor) -> Tensor:
        """Return what the captioner reads about some queries of one image, (R, M, region_dim)."""
        masks, fine = None, ()
        if self.region_tokens.needs_masks:
            masks, fine = image.masks().detach(), (image.mask_features, image.fine_features)
        tokens = self.region_tokens(image.hidden, image.global_feature, queries, masks, fine)
        return scale_gradient(self.region_proj(tokens), self.options.caption_gradient_scale)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Record]:
        """Segment and describe images.

        Returns:
            A record per image at its output size. Each of the modes fills its own fields: an id map and a region per
            segment, with category, box, score (of the class) and caption; ``instances``; ``semantic``.
        """
        return self._by_size(lambda part: self.describe(self._see(part)), batch)

    @torch.no_grad()
    def see(self, batch: Batch) -> list[SeenImage]:
        """Encode images; all that is said of them later starts here: `describe`, `answer`."""
        return self._by_size(self._see, batch)

    @torch.no_grad()
    def segment(self, batch: Batch) -> list[Segmentation]:
        """Segment images without describing them: the tensors behind the records, see `Segmentation`."""
        return self._by_size(lambda part: [self._segmented(image) for image in self._see(part)], batch)

    def _see(self, batch: Batch) -> list[SeenImage]:
        images = self.images(batch.images)
        decoded, features = self.encode(images, self.class_texts.ensemble(self.lang_encoder))
        padded, fine = images.shape[-2:], features["res2"]
        return seen_images(decoded, fine, batch, padded=padded, num_objects=self.num_objects)

    def _segmented(self, image: SeenImage) -> Segmentation:
        class_query = self.class_query_in_panoptic
        return image.segmented(self.categories, self.modes, self.thresholds, class_query=class_query)

    def _by_size(self, function: Callable[[Batch], list], batch: Batch) -> list:
        """Call with the images of one padded size after the other; answers in the order of the batch."""
        if self.joint_padding:
            return function(batch)
        answers = {}
        for rows in self.images.by_size(batch.images):
            answers |= zip(rows, function(batch.select(rows)), strict=True)
        return [answers[row] for row in range(len(batch))]

    @torch.no_grad()
    def describe(self, seen: Sequence[SeenImage], watch: WatchRegions | None = None) -> list[Record]:
        """Return what `predict` does about images that are seen already; ``watch`` is shown words of ``regions``."""
        found = [self._segmented(image) for image in seen]
        regions = [[segment.query for segment in part.panoptic.segments] if part.panoptic else [] for part in found]
        captions = self._describe(seen, [part.queries for part in found], regions, watch)
        rows = zip(seen, found, captions, strict=True)
        return [record_of(i.image_id, i.frame.output, part, self.categories, texts) for i, part, texts in rows]

    @torch.no_grad()
    def answer(
        self, seen: Sequence[SeenImage], asked: Sequence[Sequence[Region]], watch: WatchRegions | None = None
    ) -> list[list[Region]]:
        """Describe the regions that are asked about, and find phrases, though nothing was learnt from prompts.

        What has a mask, box or point is what the object query sees whose mask fits best (`QueryChooser`), and is
        described, all of all images in one search. An expression is what the query sees whose class it names; where it
        names none, the query that the captioner would most readily say it of. It gets no caption.

        Args:
            seen: the images.
            asked: of each image, with a mask, a box, a point or an expression, pixels of the output.
            watch: is shown (image, place in ``asked``) and the words so far.

        Returns:
            As many regions in the same order; nothing but what was asked where no query fits.
        """
        choices = [
            choose_queries(image, regions, partial(self._likeness, image))
            for image, regions in zip(seen, asked, strict=True)
        ]
        told = [[None if choice is None else choice.described for choice in row] for row in choices]
        wanted = [list(dict.fromkeys(query for query in row if query is not None)) for row in told]
        captions = self._describe(seen, wanted, told, watch)
        rows = zip(seen, asked, choices, captions, strict=True)
        return [found_regions(image, regions, row, self.categories, texts) for image, regions, row, texts in rows]

    def _likeness(self, image: SeenImage, phrase: str) -> Likeness:
        """Return how much a phrase is like each object query: as its class, or else as what would be said about it."""
        if (name := phrase.lower()) in (names := [name.lower() for name in self.class_texts.names[:-1]]):
            logits, label = image.object_logits, names.index(name)
            return Likeness(logits[:, label], logits.softmax(-1)[:, label])
        queries = torch.arange(self.num_objects, device=image.objects.hidden.device)
        scores = caption_scores(self.captioner, self._read_regions(image.objects, queries), phrase, self.tokenizer)
        return Likeness(scores, scores.exp())

    def _describe(
        self,
        seen: Sequence[SeenImage],
        queries: Sequence[Sequence[int]],
        regions: Sequence[Sequence[int | None]],
        watch: WatchRegions | None,
    ) -> list[dict[int, Caption]]:
        """Describe these queries of each image, all in one search; the class query has nothing to say.

        ``regions`` are the queries of each image's regions, by whose places ``watch`` is shown the words.
        """
        if self.search.queries == "all":
            queries = [list(range(self.num_objects)) for _ in seen]
        wanted = [[query for query in rows if query < self.num_objects] for rows in queries]
        tokens = [
            self._read_regions(image.objects, torch.tensor(rows, dtype=torch.long, device=image.objects.hidden.device))
            for image, rows in zip(seen, wanted, strict=True)
        ]
        places = [
            [(k, number) for number, own in enumerate(regions[k]) if own == query]
            for k, rows in enumerate(wanted)
            for query in rows
        ]
        look = watch_words(watch, places, self.tokenizer.decode)
        texts = iter(write_captions(self.captioner, torch.cat(tokens), self.tokenizer, self.search, look))
        return [{query: next(texts) for query in rows} for rows in wanted]
