"""PixelLLM (arXiv 2312.09237): a location for every word, text from any prompt, boxes and masks from any text.

    image -> encoders -> map --+-> prompt features -> language model -> words
                               |        ^                  |
      box, point, whole image -+-> location prompts        +-> a place for every word -> box -> mask
                               |        ^
                               +-> detector (boxes as prompts)

Shapes: B images, R texts, Q prompts, M visual tokens each, T text tokens, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..datasets.batches import Batch
from ..datasets.records import Record
from ..utils.tokenizers import LanguageTokenizer
from .backbones.fused import FusedEncoder
from .heads.answers import Answers, answer_records
from .heads.dense_words import DenseWords
from .heads.detector.detector import Detector
from .heads.detector.proposals import Boxes
from .heads.sam_masks import MaskAdapter, SamMaskDecoder, SamMasks
from .heads.word_locations import Located, WordLocations, points_to_boxes
from .heads.word_pointer import WordPointer
from .layers.frozen import rest_frozen
from .llm.adapter import LanguageModel, write_texts
from .losses.prompt_criterion import PromptCriterion
from .losses.terms import LossTerm, add_terms
from .pixelllm_layouts import PIXELLLM_LAYOUTS
from .region_encoders.grid_features import GridFeatures
from .region_encoders.location_prompts import LocationPrompts, box_prompt
from .region_encoders.prompt_features import PromptFeatures
from .region_encoders.prompt_rows import PromptRows, group_prompts
from .text_decoders.generation import GeneratedText, Search, WatchRegions, watch_words

Maps = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """What inference returns.

    Attributes:
        search: of texts.
        given_words: place the words of the given narrative, piece by piece, as PixelLLM's evaluator reads them; else
            those of the model's own.
        caption_in_score: a detection's score is the root of its own times the likelihood of its caption.
    """

    search: Search
    given_words: bool = False
    caption_in_score: bool = False


class PixelLLM(nn.Module):
    """The system: parts in, losses and predictions out.

    Args:
        canvas: (height, width) that images are padded to, pixels.
        encoder: the image encoders.
        text_map, mask_map: which of its maps prompts and masks are read from.
        location_prompts, prompt_features, language, places: the parts; what prompts read of a map is what the language
            model sees.
        detector, masks, mask_adapter: None: without.
        tokenizer: of the language model.
        criterion: the training objective.
        prediction: see there.
        frozen_in_eval: frozen parts are in evaluation mode during training, see `rest_frozen`.
        published_prompts: encode boxes as published, see `LocationPrompts.published`.
        grid_features: what the language model sees beside the prompt features; not published.
        dense_words: an auxiliary head on the map; not published.
        pointer: lets words choose cells of the map; not published.

    Attributes:
        layouts: what weights of other code bases load into it.
        equal_calls: number of calls -> that of the rank with the most: of a language model that ranks share, all of
            them call the layers equally often.
    """

    layouts = PIXELLLM_LAYOUTS
    equal_calls: Callable[[int], int] = staticmethod(int)

    def __init__(
        self,
        *,
        canvas: tuple[int, int],
        encoder: FusedEncoder,
        text_map: str,
        mask_map: str,
        location_prompts: LocationPrompts,
        prompt_features: PromptFeatures,
        language: LanguageModel,
        places: WordLocations,
        detector: Detector | None,
        masks: SamMaskDecoder | None,
        mask_adapter: MaskAdapter | None,
        tokenizer: LanguageTokenizer,
        criterion: PromptCriterion,
        prediction: PredictionOptions,
        frozen_in_eval: bool = True,
        published_prompts: bool = False,
        grid_features: GridFeatures | None = None,
        dense_words: DenseWords | None = None,
        pointer: WordPointer | None = None,
    ) -> None:
        super().__init__()
        self.canvas, self.text_map, self.mask_map = canvas, text_map, mask_map
        self.encoder, self.location_prompts, self.prompt_features = encoder, location_prompts, prompt_features
        self.language, self.places, self.detector = language, places, detector
        self.masks, self.mask_adapter = masks, mask_adapter
        self.tokenizer, self.criterion, self.prediction = tokenizer, criterion, prediction
        self.frozen_in_eval, self.published_prompts = frozen_in_eval, published_prompts
        self.grid_features, self.dense_words, self.pointer = grid_features, dense_words, pointer

    def train(self, mode: bool = True) -> PixelLLM:
        """Switch modes; frozen parts rest."""
        super().train(mode)
        if mode and self.frozen_in_eval:
            rest_frozen(self)
        return self

    def encode(self, images: Sequence[Tensor]) -> Maps:
        """Encode images, uint8 (3, H_i, W_i) each; all that is asked of them later starts here."""
        return self.encoder(images, canvas=self.canvas)

    def look(self, maps: Maps, rows: PromptRows) -> Tensor:
        """Read the images at their prompts: (R, M, visual width)."""
        image, prompts = maps[self.text_map][rows.images], self.location_prompts
        if self.published_prompts:
            asked = prompts.published(rows.points.flatten(1), canvas=self.canvas)
        else:
            asked = prompts(rows.points, rows.labels, canvas=self.canvas)
        grid = prompts.grid(*image.shape[-2:])
        visual = self.prompt_features(image, grid, asked, prompts.no_mask.weight, counts=rows.prompt_counts)
        if self.grid_features is not None:
            place = {"counts": rows.prompt_counts, "canvas": self.canvas, "whole": rows.whole}
            visual = torch.cat((visual, self.grid_features(image, rows.bounds, prompts, **place)), 1)
        return visual[rows.reads]

    def locate(self, maps: Maps, rows: PromptRows, states: Tensor) -> Located:
        """Turn the states of words, (R, T, D), into places."""
        if self.pointer is None:
            return Located(states, self.places(states, rows.sizes))
        image = maps[self.text_map]
        grid = self.location_prompts.grid(*image.shape[-2:])
        scores, read = self.pointer(states, image[rows.images], grid, counts=rows.counts)
        return Located(states + read, self.places(states + read, rows.sizes), scores)

    def segment(self, maps: Maps, rows: PromptRows, boxes: Tensor, visual: Tensor, states: Tensor) -> SamMasks:
        """Turn boxes (R, 4), which pass no gradient, and what was read into masks."""
        image, prompts = maps[self.mask_map][rows.images], self.location_prompts
        corners = prompts(*box_prompt(boxes.detach()), canvas=self.canvas).tokens[:, :2]
        return self.masks(
            image,
            prompts.grid(*image.shape[-2:]),
            corners + self.mask_adapter(visual, states, rows.spoken(self.tokenizer.pad_id)),
            counts=rows.counts,
            dense_prompt=prompts.no_mask.weight,
        )

    def forward(self, batch: Batch, step_seed: int = 0) -> dict[str, LossTerm]:
        """Return the losses of a batch, tasks mixed as they come; the detector's from images whose boxes are complete.

        Args:
            batch: images and `PromptTargets`.
            step_seed: not needed; what is random here depends on the images' own seeds.
        """
        maps = self.encode(batch.images)
        losses, samples = {}, None
        if self.detector is not None:
            found = self.detector(maps[self.text_map], self.canvas)
            losses, samples = self.criterion.detection(self.detector, found, batch.targets)
        if self.dense_words is not None:
            losses |= self.criterion.pictures(self.dense_words, maps[self.text_map], batch.targets, self.canvas)
        groups = group_prompts(batch.targets, pad_id=self.tokenizer.pad_id, device=batch.images[0].device)
        if missing := self.equal_calls(len(groups)) - len(groups):
            groups += [groups[0].select(torch.zeros(0, dtype=torch.int64))] * missing
        for rows in groups:
            rows = rows if samples is None else rows.standing_in(samples)
            visual = self.look(maps, rows)
            states = self.language.states(visual, rows.context, rows.text)
            words = self.locate(maps, rows, states)
            add_terms(losses, self.criterion.texts(self.language, states, rows))
            add_terms(losses, self.criterion.places(words, rows, self._map_size, self.canvas))
            if self.masks is not None:
                add_terms(losses, self._mask_losses(maps, rows, words, visual))
        return losses

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return what the losses of a batch are sums over, see `LossTerm`."""
        counts = self.criterion.counts(batch.targets)
        if self.detector is None:
            return counts
        levels = self.detector.levels(self._map_size, self.canvas)
        return counts | self.criterion.detector_counts(levels, batch.targets)

    @property
    def _map_size(self) -> tuple[int, int]:
        return self.encoder.map_size(self.canvas, self.text_map)

    def _mask_losses(self, maps: Maps, rows: PromptRows, words: Located, visual: Tensor) -> dict[str, LossTerm]:
        """Only rows with a mask go through the mask decoder."""
        learning = rows.learns[:, 2].nonzero()[:, 0]
        at, rows = learning.to(visual.device), rows.select(learning)
        boxes = points_to_boxes(words.points[at], self.criterion.last_pieces(rows))
        return self.criterion.masks(self.segment(maps, rows, boxes, visual[at], words.states[at]), rows, self.canvas)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Record]:
        """Answer the prompts of each image by its task; see `answer_records` for where the answers stand."""
        return self.answer(self.encode(batch.images), batch)

    @torch.no_grad()
    def answer(self, maps: Maps, batch: Batch, watch: WatchRegions | None = None) -> list[Record]:
        """Answer prompts about images that are encoded already; ``watch`` is shown the words so far of each prompt."""
        records = [Record(i, *size) for i, size in zip(batch.image_ids, batch.output_sizes, strict=True)]
        groups = group_prompts(
            batch.targets, pad_id=self.tokenizer.pad_id, device=batch.images[0].device, all_rows=True
        )
        ways = {"detect": self._describe_found, "refer": self._find}
        for rows in groups:
            answers = ways.get(rows.task, self._describe)(maps, rows, watch)
            for index, given in zip(rows.images, answers.split(), strict=True):
                answer_records(records[index], batch.targets[index], given, canvas=self.canvas)
        return records

    def _describe(self, maps: Maps, rows: PromptRows, watch: WatchRegions | None) -> Answers:
        visual, points = self.look(maps, rows), None
        if rows.task == "trace" and self.prediction.given_words:
            states = self.language.states(visual, rows.context, rows.text)
            found = GeneratedText(rows.text, states.new_zeros(len(rows)), states)
        else:
            search = replace(self.prediction.search, keep_states=rows.task == "trace")
            look = watch_words(watch, [[place] for place in rows.places], self.tokenizer.decode)
            found = write_texts(self.language, visual, rows.context, search, look)
        if found.states is not None:
            points = self.locate(maps, rows, found.states).points
        return Answers.of_texts(found, rows.counts, self.tokenizer, points, by_piece=self.prediction.given_words)

    def _describe_found(self, maps: Maps, rows: PromptRows, watch: WatchRegions | None) -> Answers:
        """Detect, then describe all boxes of all images in one search."""
        found = self.detect(maps, rows.images)
        rows = rows.asking([boxes.xyxy for boxes in found])
        answers = self._describe(maps, rows, watch)
        answers.boxes, answers.scores = rows.boxes_xyxy, torch.cat([boxes.scores for boxes in found])
        if self.prediction.caption_in_score:
            answers.scores = (answers.scores * torch.tensor(answers.text_scores).to(answers.scores).exp()).sqrt()
        return answers

    def detect(self, maps: Maps, images: Sequence[int]) -> list[Boxes]:
        """Return the objects of these images of the batch, best first, pixels of the canvas."""
        features = maps[self.text_map][list(images)]
        return self.detector.detect(self.detector(features, self.canvas))

    def _find(self, maps: Maps, rows: PromptRows, watch: WatchRegions | None) -> Answers:
        visual = self.look(maps, rows)
        words = self.locate(maps, rows, self.language.states(visual, rows.context, rows.text))
        answers = Answers(rows.counts, boxes=points_to_boxes(words.points, self.criterion.last_pieces(rows)))
        if self.masks is not None:
            found = self.segment(maps, rows, answers.boxes, visual, words.states)
            answers.masks, answers.scores = found.logits[:, 0], found.quality[:, 0]
        return answers
