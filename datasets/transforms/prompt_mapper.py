"""From a record to a canvas with prompts: the mappers of systems that are prompted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import UsageError
from ..batches import BOX_END, BOX_START, IMAGE_POINT, NO_POINT, PromptTargets
from ..checks import read_checked_id_map, read_checked_image
from ..records import Record, Region, decode_mask
from ..tasks import EVAL_INSTRUCTIONS, INSTRUCTIONS, Prompt, check_tasks, prompts_of
from .canvas import Canvas, draw_canvas, fit_canvas
from .mapper import Sample
from .word_places import WordCounter, check_alignment, word_boxes

Masks = dict[int, np.ndarray]  # bool (height, width) by Python's id of the region: ids in files may repeat


class Tokenizer(Protocol):
    """What the mappers ask of a language model's tokenizer."""

    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Return [begin] + word pieces + [end]."""
        ...

    def encode_context(self, text: str, max_tokens: int) -> list[int]:
        """Return word pieces + [end], at most ``max_tokens``; nothing for an empty text."""
        ...


class PromptMapper:
    """Training mapper: one task a sample, its prompts on a randomly scaled and cropped canvas.

    Everything random is a function of (seed, epoch, index). A prompt goes as a whole: where the crop removes its box,
    its context, its text and its mask go too.

    Args:
        tasks: task -> weight; a sample draws one of the tasks that its record has prompts for. A record without any
            gives a sample without prompts.
        tokenizer: of the language model; limits the length of texts.
        image_size: side of the canvas, pixels.
        min_scale, max_scale: the longest side becomes ``image_size`` times a number between them.
        flip: how often the image is mirrored.
        max_prompts: how many prompts of an image teach words, places and masks; where there are more, they are drawn.
            ``detect`` keeps the boxes of all, without which a detector would learn that they are background.
        max_context: the longest context in tokens, end token included.
        box_rate: how often a located prompt is a box rather than a point in it.
        with_masks: read the masks of expressions.
        alignment: of narratives, see `word_boxes`.
        instructions: sentences per task.
        seed: of the run.
        published: round sizes and leave "left" and "right" in texts as PixelLLM's data pipeline did.
    """

    def __init__(
        self,
        tasks: Mapping[str, float],
        tokenizer: Tokenizer,
        *,
        image_size: int = 384,
        min_scale: float = 1.0,
        max_scale: float = 1.0,
        flip: float = 0.0,
        max_prompts: int = 16,
        max_context: int = 32,
        box_rate: float = 1.0,
        with_masks: bool = True,
        alignment: str = "aligned",
        instructions: Mapping[str, Sequence[str]] = INSTRUCTIONS,
        seed: int = 0,
        published: bool = False,
    ) -> None:
        check_tasks(tuple(tasks))
        check_alignment(alignment)
        if not tasks or not all(weight > 0 for weight in tasks.values()):
            raise UsageError("Tasks need weights.", where="tasks", value=dict(tasks), allowed="more than 0 each")
        if not 0 < min_scale <= max_scale:
            value = f"{min_scale} to {max_scale}"
            raise UsageError("Impossible scales.", where="min_scale", value=value, allowed="0 < min <= max")
        self.tasks, self.instructions, self.published = dict(tasks), instructions, published
        self.image_size, self.min_scale, self.max_scale, self.flip = image_size, min_scale, max_scale, flip
        self.max_prompts, self.box_rate, self.with_masks, self.seed = max_prompts, box_rate, with_masks, seed
        self.writer = PromptWriter(tokenizer, max_context=max_context, alignment=alignment)

    def __call__(self, record: Record, epoch: int, index: int) -> Sample:
        """Map one record.

        Raises:
            DataError: its files are unreadable or disagree with it.
        """
        generator = np.random.default_rng([self.seed, epoch, index])
        canvas = draw_canvas(
            generator,
            record.height,
            record.width,
            side=self.image_size,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            flip=self.flip,
            published=self.published,
        )
        task, prompts = self._draw_task(record, generator)
        prompts = self._choose(visible_prompts(prompts, canvas), task, generator)
        if canvas.flipped and not self.published:
            prompts = [prompt.mirrored() for prompt in prompts]
        asked = [k for k, prompt in enumerate(prompts) if prompt.located and generator.random() >= self.box_rate]
        masks = read_masks(
            record, [prompts[k] for k in asked] + [p for p in prompts if self.with_masks and p.learns[2]]
        )
        points = {k: point_in(prompts[k], masks, generator) for k in asked}
        targets = self.writer(prompts, canvas, masks if self.with_masks else {}, points)
        targets.task, targets.seed = task, int(generator.integers(2**63))
        pixels = canvas.apply_image(read_checked_image(record))
        return Sample(pixels, record.image_id, (record.height, record.width), targets)

    def _draw_task(self, record: Record, generator: np.random.Generator) -> tuple[str, list[Prompt]]:
        offered = {task: prompts_of(record, task, generator, instructions=self.instructions) for task in self.tasks}
        offered = {task: prompts for task, prompts in offered.items() if prompts}
        if not offered:
            return "", []
        weights = np.array([self.tasks[task] for task in offered], float)
        task = list(offered)[int(generator.choice(len(offered), p=weights / weights.sum()))]
        return task, offered[task]

    def _choose(self, prompts: list[Prompt], task: str, generator: np.random.Generator) -> list[Prompt]:
        if len(prompts) <= self.max_prompts:
            return prompts
        chosen = set(generator.choice(len(prompts), self.max_prompts, replace=False).tolist())
        if task == "detect":
            return [prompt if k in chosen else prompt.silent() for k, prompt in enumerate(prompts)]
        return [prompt for k, prompt in enumerate(prompts) if k in chosen]


class PromptEvalMapper:
    """Evaluation mapper: the image fitted to the canvas, every prompt of one task in the record's order.

    An image with several captions is asked for one.

    For ``detect`` there is one prompt, the whole image, whatever the record knows.
    ``Sample.output_size`` is the size of the original image, ``PromptTargets.size`` what of the canvas is valid; a box
    on the canvas times output size over valid size, per axis, is a box on the original (`Canvas.undo_boxes`).

    Args:
        task: one of the tasks.
        tokenizer, image_size, max_context, with_masks, alignment, published: as `PromptMapper`.
        instructions: the first sentence of the task is used.
    """

    def __init__(
        self,
        task: str,
        tokenizer: Tokenizer,
        *,
        image_size: int = 384,
        max_context: int = 32,
        with_masks: bool = False,
        alignment: str = "aligned",
        instructions: Mapping[str, Sequence[str]] = EVAL_INSTRUCTIONS,
        published: bool = False,
    ) -> None:
        check_tasks([task])
        check_alignment(alignment)
        self.task, self.image_size, self.with_masks, self.published = task, image_size, with_masks, published
        self.instructions = instructions
        self.writer = PromptWriter(tokenizer, max_context=max_context, alignment=alignment)

    def __call__(self, record: Record, epoch: int = 0, index: int = 0) -> Sample:
        """Map one record; raises DataError as `PromptMapper`."""
        if self.task == "detect":
            return self.sample(record, [Prompt("detect", self.instructions["detect"][0], "", learns=(False,) * 3)])
        prompts = prompts_of(record, self.task, instructions=self.instructions)
        return self.sample(record, prompts[:1] if self.task == "caption" else prompts)

    def sample(
        self, record: Record, prompts: Sequence[Prompt], points: Mapping[int, tuple[float, float]] | None = None
    ) -> Sample:
        """Map a record with given prompts.

        Args:
            record: whose image it is.
            prompts: of this mapper's task; those whose box lies outside the image are left out.
            points: prompt -> the point (x, y), pixels of the original image, that takes the place of its box.

        Raises:
            DataError: as `PromptMapper`.
        """
        targets = self.targets(record, prompts, points)
        return Sample(self.image(record), record.image_id, (record.height, record.width), targets)

    def image(self, record: Record) -> Tensor:
        """Return the image on its canvas, uint8 (3, side, side); the same for every task. Raises as `sample`."""
        return self._canvas(record).apply_image(read_checked_image(record))

    def targets(
        self, record: Record, prompts: Sequence[Prompt], points: Mapping[int, tuple[float, float]] | None = None
    ) -> PromptTargets:
        """Return given prompts on the canvas; arguments as `sample`. The image is not read."""
        canvas = self._canvas(record)
        shown = visible_prompts(prompts, canvas)
        rows = {id(prompt): row for row, prompt in enumerate(shown)}
        pointed = {rows[id(prompts[k])]: point for k, point in (points or {}).items() if id(prompts[k]) in rows}
        masks = read_masks(record, [prompt for prompt in shown if self.with_masks and prompt.learns[2]])
        targets = self.writer(shown, canvas, masks, pointed)
        targets.task = self.task
        return targets

    def _canvas(self, record: Record) -> Canvas:
        return fit_canvas(record.height, record.width, side=self.image_size, published=self.published)


class PromptWriter:
    """Prompts on a canvas as tensors.

    Args:
        tokenizer: of the language model.
        max_context: the longest context in tokens; a longer one loses its last words, the end token stays.
        alignment: of narratives, see `word_boxes`.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_context: int, alignment: str) -> None:
        self.tokenizer, self.max_context, self.alignment = tokenizer, max_context, alignment
        self._counter = WordCounter(self._count_pieces)

    def _count_pieces(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) - 2

    def __call__(
        self,
        prompts: Sequence[Prompt],
        canvas: Canvas,
        masks: Masks,
        points: Mapping[int, tuple[float, float]] | None = None,
    ) -> PromptTargets:
        """Write prompts.

        Args:
            prompts: in pixels of the original image, with boxes that the canvas shows.
            canvas: where they go.
            masks: of the original image, see `read_masks`.
            points: row -> the point, in pixels of the original image, that takes the place of the box; it is kept in
                the box, or in the picture where the prompt has none.
        """
        texts = [self.tokenizer.encode(" ".join(prompt.text.split())) for prompt in prompts]
        contexts = [self.tokenizer.encode_context(prompt.context, self.max_context) for prompt in prompts]
        text = _padded(texts, 2, self.tokenizer.pad_id)
        boxes = np.array([prompt.box_xyxy or (0.0,) * 4 for prompt in prompts], float).reshape(-1, 4)
        about = np.array([prompt.box_xyxy is not None for prompt in prompts], bool)
        boxes = np.where(about[:, None], canvas.clip(canvas.move_boxes(boxes)), 0.0)
        prompt_points, labels = self._pointing(prompts, boxes, canvas, points or {})
        word_places = np.zeros((*text.shape, 4))
        for row, prompt, ids in zip(word_places, prompts, texts, strict=True):
            if prompt.narrative is not None:
                row[1 : len(ids) - 1] = self._word_boxes(prompt, len(ids) - 2, canvas)
        learns = [(*prompt.learns[:2], prompt.learns[2] and id(prompt.region) in masks) for prompt in prompts]
        return PromptTargets(
            text=text,
            context=_padded(contexts, 1, self.tokenizer.pad_id),
            prompt_points=torch.from_numpy(prompt_points).float(),
            prompt_labels=torch.from_numpy(labels),
            boxes_xyxy=torch.from_numpy(boxes).float(),
            word_boxes=torch.from_numpy(word_places).float(),
            learns=torch.tensor(learns, dtype=torch.bool).reshape(-1, 3),
            size=canvas.size,
            masks=_packed(prompts, learns, canvas, masks),
            detects=any(prompt.task == "detect" and prompt.box_xyxy is not None for prompt in prompts),
            contexts=[prompt.context for prompt in prompts],
            texts=[prompt.text for prompt in prompts],
            region_ids=[-1 if prompt.region is None else prompt.region.id for prompt in prompts],
        )

    def _word_boxes(self, prompt: Prompt, num_tokens: int, canvas: Canvas) -> np.ndarray:
        height, width = canvas.original
        token_words = self._counter.words_of_tokens(prompt.text)
        boxes = word_boxes(
            prompt.narrative,
            height=height,
            width=width,
            num_tokens=num_tokens,
            token_words=token_words,
            alignment=self.alignment,
        )
        moved = canvas.move_boxes(boxes)
        valid_height, valid_width = canvas.size
        seen = (moved[:, 2:] >= 0).all(-1) & (moved[:, 0] <= valid_width) & (moved[:, 1] <= valid_height)
        return np.where((boxes.any(-1) & seen)[:, None], canvas.clip(moved), 0.0)

    def _pointing(
        self, prompts: Sequence[Prompt], boxes: np.ndarray, canvas: Canvas, points: Mapping[int, tuple[float, float]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return points (N, 2, 2) and labels (N, 2): the prompt's box, a point and padding, or the whole image."""
        height, width = canvas.size
        whole = np.array((0.0, 0.0, width, height))
        bounds = np.array([whole if p.box_xyxy is None else box for p, box in zip(prompts, boxes, strict=True)])
        bounds = bounds.reshape(-1, 4)
        located = np.array([prompt.located for prompt in prompts], bool)[:, None]
        corners = np.where(located, bounds, whole).reshape(-1, 2, 2)
        labels = np.tile(np.array([BOX_START, BOX_END]), (len(prompts), 1))
        for row, point in points.items():
            moved = canvas.move_points(np.array(point))
            corners[row] = (moved.clip(bounds[row, :2], bounds[row, 2:]), (0.0, 0.0))
            labels[row] = IMAGE_POINT, NO_POINT
        return corners, labels


def visible_prompts(prompts: Sequence[Prompt], canvas: Canvas) -> list[Prompt]:
    """Return the prompts about the whole image and those whose box the canvas shows some of."""
    boxes = np.array([prompt.box_xyxy or (0.0,) * 4 for prompt in prompts], float).reshape(-1, 4)
    shown = canvas.clip(canvas.move_boxes(boxes)).astype(np.float32)
    areas = (shown[:, 2:] - shown[:, :2]).prod(-1)
    return [prompt for prompt, area in zip(prompts, areas, strict=True) if prompt.box_xyxy is None or area > 0]


def read_masks(record: Record, prompts: Sequence[Prompt]) -> Masks:
    """Return the masks of the prompts' regions; the record's id map is read at most once."""
    regions = {id(prompt.region): prompt.region for prompt in prompts if prompt.region is not None}
    unmasked = any(region.mask is None for region in regions.values())
    ids = read_checked_id_map(record) if unmasked and record.id_map is not None else None
    return {k: mask for k, region in regions.items() if (mask := _mask(region, ids)) is not None}


def _mask(region: Region, ids: np.ndarray | None) -> np.ndarray | None:
    if region.mask is not None:
        return decode_mask(region.mask)
    return None if ids is None else ids == region.id


def point_in(prompt: Prompt, masks: Masks, generator: np.random.Generator) -> tuple[float, float]:
    """Draw a point (x, y) of a prompt's region: the centre of a pixel of its mask, or anywhere in its box."""
    mask = masks.get(id(prompt.region))
    if mask is not None and mask.any():
        ys, xs = np.nonzero(mask)
        k = int(generator.integers(len(xs)))
        return float(xs[k]) + 0.5, float(ys[k]) + 0.5
    x0, y0, x1, y1 = prompt.box_xyxy
    return float(generator.uniform(x0, x1)), float(generator.uniform(y0, y1))


def _packed(prompts: Sequence[Prompt], learns: Sequence[tuple], canvas: Canvas, masks: Masks) -> Tensor | None:
    """Return packed masks (N, side, ceil(side / 8)), zeros in rows without one; None when no row has one."""
    if not any(learned[2] for learned in learns):
        return None
    keys = {row: id(prompts[row].region) for row, learned in enumerate(learns) if learned[2]}
    needed = list(dict.fromkeys(keys.values()))  # several expressions may share a mask
    moved = canvas.apply_masks(np.stack([masks[key] for key in needed]))
    packed = np.zeros((len(prompts), *moved.shape[1:]), np.uint8)
    for row, key in keys.items():
        packed[row] = moved[needed.index(key)]
    return torch.from_numpy(packed)


def _padded(rows: Sequence[Sequence[int]], least: int, pad_id: int) -> Tensor:
    tokens = torch.full((len(rows), max([least, *map(len, rows)])), pad_id, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens
