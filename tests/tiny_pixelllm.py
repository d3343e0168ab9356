"""A tiny PixelLLM with every part, and batches of drawn scenes to feed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from locap.datasets.batches import Batch
from locap.datasets.collate import collate
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.records import Record
from locap.datasets.shapes import CATEGORIES, Shapes
from locap.datasets.transforms.prompt_mapper import PromptEvalMapper, PromptMapper
from locap.modeling.build_pixelllm import build_language_tokenizer, build_pixelllm
from locap.modeling.pixelllm import PixelLLM
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config
from locap.utils.tokenizers import LanguageTokenizer

SIDE = 64  # of the canvas, pixels
SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "pixelllm" / "pixelllm_shapes.yaml"
TINY = f"""
COCO.INPUT.IMAGE_SIZE {SIDE} MODEL.MASKS true MODEL.BACKBONE.MAP_DIM 32 MODEL.BACKBONE.FOCAL.EMBED_DIM 8
MODEL.PROMPT_FEATURES.PROMPT_DIM 32 MODEL.PROMPT_FEATURES.QUERIES 3 MODEL.PROMPT_FEATURES.DIM 32
MODEL.PROMPT_FEATURES.FFN_DIM 32 MODEL.PROMPT_FEATURES.OUTPUT_DIM 24 MODEL.PROMPT_FEATURES.DEPTH 1
MODEL.TEXT_DECODER.MAX_STEPS 64 MODEL.TEXT_DECODER.HIDDEN_SIZE 32 MODEL.TEXT_DECODER.FEEDFORWARD_SIZE 48
MODEL.PLACES.DIM 32 MODEL.PLACES.DEPTH 2 MODEL.MASK_HEAD.FFN_DIM 32 MODEL.MASK_HEAD.QUALITY_DIM 16
MODEL.MASK_HEAD.INITIAL_GATE 1.0
MODEL.DETECTOR.ENABLED true MODEL.DETECTOR.DIM 32 MODEL.DETECTOR.DECONV_DIM 16 MODEL.DETECTOR.CONVS 1
MODEL.DETECTOR.HIDDEN_DIM 32 MODEL.DETECTOR.POOLED 3 MODEL.DETECTOR.SAMPLES 32 MODEL.DETECTOR.TRAIN_CANDIDATES 100
MODEL.DETECTOR.TRAIN_PROPOSALS 50 MODEL.DETECTOR.DETECTIONS 4 MODEL.DETECTOR.MIN_SCORE 0
MODEL.PROMPT_FEATURES.GRID 0 MODEL.PROMPT_FEATURES.WHOLE_GRID 0 MODEL.PLACES.POINTER_DIM 0
MODEL.LOSS.WORDS 0 MODEL.LOSS.GIOU 0 MODEL.LOSS.POINTER 1 MODEL.LOSS.BOX 0.1 MODEL.LOSS.MASK 1
""".split()
AIDS = (
    *("MODEL.PROMPT_FEATURES.GRID", "2", "MODEL.PROMPT_FEATURES.WHOLE_GRID", "3"),
    *("MODEL.LOSS.WORDS", "0.5", "MODEL.LOSS.GIOU", "1", "MODEL.PLACES.POINTER_DIM", "16"),
)


def build(*overrides: str, aids: bool = False, seed: int = 0) -> PixelLLM:
    """Build a tiny PixelLLM with every published part, or with the optional aids as well."""
    cfg = load_config([SHIPPED], [*TINY, *(AIDS if aids else []), *overrides], model_schemas=MODEL_SCHEMAS)
    torch.manual_seed(seed)
    return build_pixelllm(cfg, CATEGORIES, build_language_tokenizer(cfg))


class Drawn:
    """Scenes as batches, a task per image; of an empty task the image has no prompts.

    Args:
        words: the model's vocabulary.
        size: (height, width) of the scenes, pixels.
        seed: of the scenes.
    """

    def __init__(
        self, words: LanguageTokenizer | None = None, *, size: tuple[int, int] = (48, 64), seed: int = 0
    ) -> None:
        self.words = words or LanguageTokenizer.from_pretrained(FOLDER, 64)
        self.size, self.seed = size, seed

    def lessons(self, *tasks: str, **options) -> Batch:
        """Return what the images teach; options of `PromptMapper`."""
        return self._batch(tasks, lambda task: PromptMapper({task: 1.0}, self.words, image_size=SIDE, **options))

    def questions(self, *tasks: str) -> Batch:
        """Return what is asked about the images at evaluation."""
        return self._batch(tasks, lambda task: PromptEvalMapper(task, self.words, image_size=SIDE))

    def _batch(self, tasks: Sequence[str], mapper_of: Callable[[str], Any]) -> Batch:
        scenes = Shapes(len(tasks), seed=self.seed, image_size=self.size)
        empty = Record("nothing", *self.size, np.full((*self.size, 3), 90, np.uint8))
        mapped = [(mapper_of(task or "region"), scenes[k] if task else empty) for k, task in enumerate(tasks)]
        return collate([mapper(record, 0, k) for k, (mapper, record) in enumerate(mapped)])


def split(batch: Batch) -> list[Batch]:
    """Return a batch per image."""
    parts = zip(batch.images, batch.targets, batch.image_ids, batch.output_sizes, strict=True)
    return [Batch([image], [target], [name], [size]) for image, target, name, size in parts]
