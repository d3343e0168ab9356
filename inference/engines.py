"""The engines of `Captioner`: one for systems with prompts, and one for systems that describe what they find."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from omegaconf import read_write
from torch import Tensor, nn

from ..datasets.batches import Batch, PromptTargets
from ..datasets.collate import collate
from ..datasets.records import Category, Record, Region
from ..datasets.tasks import Prompt
from ..datasets.transforms.mapper import EvalMapper
from ..datasets.transforms.prompt_mapper import PromptEvalMapper
from ..modeling.systems import build_trained, find_system
from ..utils.errors import UsageError
from .asks import Ask
from .model_folder import categories_for
from .prompt_mappers import evaluation_mapper

TASKS = ("region", "refer", "trace", "detect")  # that `PromptEngine` asks for
NARRATIVE = -1  # in place of a region's number: words about the whole image
Watch = Callable[[list[tuple[tuple[int, int], str]]], None]
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What `Captioner` needs of a family of systems.

    Attributes:
        model: in evaluation mode, on its device.
        categories: its classes.
        takes: which questions it answers, see `locap.modeling.systems.QUESTIONS`.
    """

    model: nn.Module
    categories: tuple[Category, ...]
    takes: frozenset[str]

    def encode(self, records: Sequence[Record]) -> Any:
        """Encode images together; all that is asked of them later starts here."""

    def answer(
        self, encoded: Any, records: Sequence[Record], asks: Sequence[Sequence[Ask]], watch: Watch | None = None
    ) -> list[Record]:
        """Answer the questions about images that were encoded together.

        Args:
            encoded: by `encode`.
            records: the images.
            asks: of each image; without any, everything is described.
            watch: called while texts are written, with ((image, region), text so far) of each, regions from 0 in the
                order of the result, `NARRATIVE` for words about the whole image. What it raises ends the writing.

        Returns:
            A record per image, with a region per question, ids from 1, in their order; or with all that was found.
        """


class SegmentEngine:
    """Systems that learnt without prompts, such as Pix2Cap.

    Args:
        model: with ``see(batch)``, ``describe(seen, watch)`` and ``answer(seen, regions, watch)``, see `Pix2Cap`.
        categories: its classes.
        mapper: brings an image to the model's test size.
        takes: which questions it answers.
    """

    def __init__(
        self, model: nn.Module, categories: Sequence[Category], mapper: EvalMapper, takes: frozenset[str]
    ) -> None:
        self.model, self.categories, self.mapper, self.takes = model.eval(), tuple(categories), mapper, takes

    def encode(self, records: Sequence[Record]) -> list[Any]:
        """See `Engine`."""
        return self.model.see(collate([self.mapper(record) for record in records]).to(device_of(self.model)))

    def answer(
        self, encoded: list[Any], records: Sequence[Record], asks: Sequence[Sequence[Ask]], watch: Watch | None = None
    ) -> list[Record]:
        """See `Engine`."""
        answers: dict[int, Record] = {}
        if free := [k for k, given in enumerate(asks) if not given]:
            answers |= zip(free, self.model.describe([encoded[k] for k in free], _of(free, watch)), strict=True)
        if asked := [k for k, given in enumerate(asks) if given]:
            questions = [[ask.to_region(number) for number, ask in enumerate(asks[k], 1)] for k in asked]
            found = self.model.answer([encoded[k] for k in asked], questions, _of(asked, watch))
            for k, regions in zip(asked, found, strict=True):
                answers[k] = _record_like(records[k])
                pairs = enumerate(zip(asks[k], regions, strict=True), 1)
                answers[k].regions = [ask.answer(number, region) for number, (ask, region) in pairs]
        for k, record in enumerate(records):
            answers[k].image = record.image
        return [answers[k] for k in range(len(records))]


class WholeEngine:
    """Systems that only describe all they find: a model with ``predict(batch)``, which does everything in one go.

    Args:
        model, categories, mapper: as of `SegmentEngine`.
    """

    takes: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, categories: Sequence[Category], mapper: EvalMapper) -> None:
        self.model, self.categories, self.mapper = model.eval(), tuple(categories), mapper

    def encode(self, records: Sequence[Record]) -> Batch:
        """See `Engine`."""
        return collate([self.mapper(record) for record in records]).to(device_of(self.model))

    def answer(
        self, encoded: Batch, records: Sequence[Record], asks: Sequence[Sequence[Ask]], watch: Watch | None = None
    ) -> list[Record]:
        """See `Engine`; nothing can be watched."""
        answers = self.model.predict(encoded)
        for answer, record in zip(answers, records, strict=True):
            answer.image = record.image
        return answers


@dataclass(slots=True)
class Canvases:
    """Images on their canvases, uint8 (3, side, side) each, and the maps made of them, (B, ...) each."""

    images: list[Tensor]
    maps: dict[str, Tensor]

    def select(self, rows: Sequence[int]) -> Canvases:
        """Return some of the images."""
        if list(rows) == list(range(len(self.images))):
            return self
        at = torch.tensor(rows, device=self.images[0].device)
        return Canvases([self.images[row] for row in rows], {name: maps[at] for name, maps in self.maps.items()})


class PromptEngine:
    """Prompted systems, such as PixelLLM.

    Without questions, the image is narrated and, given a detector, what it shows is found.

    Args:
        model: ``encode(images)`` gives maps that ``answer(maps, batch, watch)`` reads, see `PixelLLM`. Without a
            ``detector`` (None) it finds nothing by itself.
        categories: its classes.
        mappers: one for each of `TASKS`, with the same canvas.
        takes: which questions it answers.
    """

    def __init__(
        self,
        model: nn.Module,
        categories: Sequence[Category],
        mappers: Mapping[str, PromptEvalMapper],
        takes: frozenset[str],
    ) -> None:
        self.model, self.categories, self.mappers, self.takes = model.eval(), tuple(categories), mappers, takes

    def encode(self, records: Sequence[Record]) -> Canvases:
        """See `Engine`."""
        device, mapper = device_of(self.model), self.mappers["region"]
        images = [mapper.image(record).to(device, non_blocking=True) for record in records]
        return Canvases(images, self.model.encode(images))

    def answer(
        self, encoded: Canvases, records: Sequence[Record], asks: Sequence[Sequence[Ask]], watch: Watch | None = None
    ) -> list[Record]:
        """See `Engine`."""
        answers = [_record_like(record) for record in records]
        prompts = [self._prompts(given) if given else self._open_prompts() for given in asks]
        for task in dict.fromkeys(task for own in prompts for task in own):
            rows = [k for k, own in enumerate(prompts) if task in own]
            asked = [prompts[k][task] for k in rows]
            found = self._answer(encoded.select(rows), [records[k] for k in rows], task, asked, _of(rows, watch, asked))
            for k, record in zip(rows, found, strict=True):
                answers[k].narratives += record.narratives
                answers[k].regions += record.regions
        for record, given in zip(answers, asks, strict=True):
            if given:
                record.regions = _in_order(given, record.regions)
        return answers

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
            _log.warning("only %s are read (MODEL.PROMPTS.MAX_CONTEXT): %s", read, prompt.text or prompt.context)

    def _answer(
        self,
        encoded: Canvases,
        records: Sequence[Record],
        task: str,
        prompts: Sequence[Sequence[Prompt]],
        watch: Watch | None,
    ) -> list[Record]:
        """Ask about images, all prompts of one task at once."""
        targets = []
        for record, own in zip(records, prompts, strict=True):
            points = {row: p.region.points[0] for row, p in enumerate(own) if p.region and p.region.points}
            targets.append(self.mappers[task].targets(record, own, points))
        sizes = [(record.height, record.width) for record in records]
        batch = Batch(encoded.images, targets, [record.image_id for record in records], sizes)
        return self.model.answer(encoded.maps, batch.to(device_of(self.model)), watch)


def _of(images: Sequence[int], watch: Watch | None, prompts: Sequence[Sequence[Prompt]] | None = None) -> Watch | None:
    """Return what shows ``watch`` the texts of some of the images, under the places they have among all.

    Args:
        images: which these are.
        watch: who looks.
        prompts: of each; their regions' ids say which regions the texts are about. None: the texts are in order.
    """
    if watch is None:
        return None

    def number(image: int, row: int) -> int:
        if prompts is None or prompts[image][0].task == "detect":
            return row
        region = prompts[image][row].region
        return NARRATIVE if region is None else region.id - 1

    return lambda texts: watch([((images[image], number(image, row)), text) for (image, row), text in texts])


def _record_like(record: Record) -> Record:
    return Record(record.image_id, record.height, record.width, record.image)


def _in_order(asks: Sequence[Ask], regions: Sequence[Region]) -> list[Region]:
    found = {region.id: region for region in regions}
    for number, ask in enumerate(asks, 1):
        if number not in found:
            raise UsageError(f"The {ask.kind} is too small to be seen.", where=ask.kind, value=str(ask))
    return [ask.answer(number, found[number]) for number, ask in enumerate(asks, 1)]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first weight."""
    return next(model.parameters()).device


def make_engine(cfg: Any, device: torch.device | str = "cpu") -> Engine:
    """Build the configured system with the weights of RESUME_FROM.

    Raises:
        UsageError: RESUME_FROM is empty.
        CheckpointError: the weights are missing or don't fit.
    """
    cfg = _with_own_words(cfg)
    categories = categories_for(cfg)
    tokenizer = find_system(cfg.MODEL.NAME).tokenizer(cfg)
    return engine_of(build_trained(cfg, categories, tokenizer, device), cfg, categories, tokenizer)


def engine_of(model: nn.Module, cfg: Any, categories: Sequence[Category], tokenizer: Any = None) -> Engine:
    """Return the engine of a model in memory, which it puts into evaluation mode.

    Args:
        model: of the configured system.
        cfg: the resolved configuration.
        categories: its classes.
        tokenizer: the system's; None: it is loaded.
    """
    system = find_system(cfg.MODEL.NAME)
    if system.targets is not PromptTargets:
        inputs = cfg.COCO.INPUT
        mapper = EvalMapper(shortest=inputs.MIN_SIZE_TEST, longest=inputs.MAX_SIZE_TEST)
        takes = system.takes(cfg)
        return SegmentEngine(model, categories, mapper, takes) if takes else WholeEngine(model, categories, mapper)
    tokenizer = tokenizer or system.tokenizer(cfg)
    mappers = {task: evaluation_mapper(task, tokenizer, cfg) for task in TASKS}
    return PromptEngine(model, categories, mappers, system.takes(cfg))


def _with_own_words(cfg: Any) -> Any:
    """Return the configuration with MODEL.TRACE_WORDS "own": there is no given narrative to place."""
    changed = copy.deepcopy(cfg)
    if "TRACE_WORDS" in changed.MODEL:
        with read_write(changed):
            changed.MODEL.TRACE_WORDS = "own"
    return changed
