"""Questions about an image in, a record with the answers out."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf, read_write
from torch import nn

from ..datasets.batches import Batch
from ..datasets.collate import collate
from ..datasets.records import Category, Record, Region
from ..datasets.tasks import Prompt
from ..datasets.transforms.prompt_mapper import PromptEvalMapper
from ..modeling.systems import build_trained, find_system
from ..utils.errors import UsageError
from .asks import Ask, check_inside
from .model_folder import categories_for
from .prompt_mappers import evaluation_mapper

_log = logging.getLogger(__name__)
TASKS = ("region", "refer", "trace", "detect")  # that `PromptedPredictor` asks for


class PromptedPredictor:
    """A prompted system ready for images and questions.

    Args:
        model: in evaluation mode, on the device it is to run on; ``encode(images)`` gives what ``answer(that, batch)``
            reads, so that an image is encoded once. Without a ``detector`` (None) it finds nothing by itself.
        categories: its classes.
        mappers: one for each of `TASKS`.
    """

    def __init__(
        self, model: nn.Module, categories: Sequence[Category], mappers: Mapping[str, PromptEvalMapper]
    ) -> None:
        self.model, self.categories, self.mappers = model.eval(), tuple(categories), mappers

    @classmethod
    def from_config(cls, cfg: Any, device: torch.device | str = "cpu") -> PromptedPredictor:
        """Build the configured system and load the weights of RESUME_FROM.

        Raises:
            UsageError: RESUME_FROM is empty.
            CheckpointError: the weights are missing or don't fit.
        """
        cfg = _with_own_words(cfg)
        categories = categories_for(cfg)
        tokenizer = find_system(cfg.MODEL.NAME).tokenizer(cfg)
        model = build_trained(cfg, categories, tokenizer, device)
        return cls(model, categories, {task: evaluation_mapper(task, tokenizer, cfg) for task in TASKS})

    def predict(self, record: Record, asks: Sequence[Ask] = ()) -> Record:
        """Answer questions about an image, all of a task at once.

        Args:
            record: the image.
            asks: see there. Without any, the image is narrated and, given a detector, what it shows is found.

        Returns:
            A record with a region per question, ids from 1, in their order; or with a narrative and the regions found.

        Raises:
            UsageError: a box or a point lies outside the image, or a box is too small to be seen.
        """
        check_inside(asks, record.height, record.width, str(record.image_id))
        by_task = self._prompts(asks) if asks else self._open_prompts()
        answers = self._answer(record, by_task)
        merged = Record(record.image_id, record.height, record.width, record.image)
        merged.narratives = tuple(told for answer in answers for told in answer.narratives)
        merged.regions = [region for answer in answers for region in answer.regions]
        if asks:
            merged.regions = _in_order(asks, merged.regions)
        return merged

    def _prompts(self, asks: Sequence[Ask]) -> dict[str, list[Prompt]]:
        by_task: dict[str, list[Prompt]] = {}
        for number, ask in enumerate(asks, 1):
            prompt = ask.to_prompt(number, self._instruction(ask.task))
            self._warn_of_length(prompt)
            by_task.setdefault(ask.task, []).append(prompt)
        return by_task

    def _open_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts about the whole image."""
        tasks = ["trace"] if self.model.detector is None else ["trace", "detect"]
        return {task: [Prompt(task, self._instruction(task), "", learns=(False, False, False))] for task in tasks}

    def _instruction(self, task: str) -> str:
        return self.mappers[task].instructions[task][0]

    def _warn_of_length(self, prompt: Prompt) -> None:
        writer = self.mappers[prompt.task].writer
        if (length := len(writer.tokenizer.encode_context(prompt.context, sys.maxsize))) > writer.max_context:
            read = f"the first {writer.max_context} of {length} tokens"
            _log.warning("only %s are read (MODEL.PROMPTS.MAX_CONTEXT): %s", read, prompt.text)

    @torch.no_grad()
    def _answer(self, record: Record, by_task: Mapping[str, list[Prompt]]) -> list[Record]:
        """Ask the model task by task; the image is on the same canvas for all."""
        device = next(self.model.parameters()).device
        encoded, answers = None, []
        for task, prompts in by_task.items():
            points = {row: p.region.points[0] for row, p in enumerate(prompts) if p.region and p.region.points}
            batch: Batch = collate([self.mappers[task].sample(record, prompts, points)]).to(device)
            encoded = self.model.encode(batch.images) if encoded is None else encoded
            answers += self.model.answer(encoded, batch)
        return answers


def _in_order(asks: Sequence[Ask], regions: Sequence[Region]) -> list[Region]:
    found = {region.id: region for region in regions}
    for number, ask in enumerate(asks, 1):
        if number not in found:
            raise UsageError("The box is too small to be seen.", where=f"--{ask.kind}", value=ask.value)
    return [ask.answer(number, found[number]) for number, ask in enumerate(asks, 1)]


def _with_own_words(cfg: Any) -> Any:
    """Return the configuration with MODEL.TRACE_WORDS "own": there is no given narrative to place."""
    changed = copy.deepcopy(cfg)
    if "TRACE_WORDS" in changed.MODEL:
        with read_write(changed):
            changed.MODEL.TRACE_WORDS = "own"
    return changed


def check_answerable(cfg: Any, asks: Sequence[Ask]) -> None:
    """Raise UsageError when the configured system, which is prompted, cannot answer a question."""
    boxes_only = OmegaConf.select(cfg, "MODEL.PROMPT_FEATURES.PUBLISHED_PROMPTS", default=False)
    for ask in asks:
        if boxes_only and ask.kind == "point":
            raise UsageError(
                "This system takes boxes and no points.",
                where="--point",
                value=ask.value,
                allowed="--box X0 Y0 X1 Y1, since MODEL.PROMPT_FEATURES.PUBLISHED_PROMPTS is true",
            )
