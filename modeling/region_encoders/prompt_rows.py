"""The prompts of a batch as rows of tensors, with the texts that answer them.

A located prompt is one box or point and one text. All texts about a whole image share one prompt, so that it is read
once, however many expressions refer to it.

Shapes: R texts, Q prompts (Q <= R), T text tokens, C context tokens, P points of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...datasets.batches import PromptTargets, unpack_masks
from ..heads.detector.rois import RoiSamples
from .location_prompts import PADDING, box_prompt, whole_image_prompt

LOCATED = ("region", "detect")  # tasks that ask about boxes and points, not about the whole image


@dataclass(slots=True)
class PromptRows:
    """Rows of some images of a batch, those of the first image first.

    Attributes:
        images: positions of the images in the batch.
        counts: texts of each image, sum R.
        prompt_counts: prompts of each image, sum Q.
        points, labels: (Q, P, 2) pixels of the canvas and int64 (Q, P), see `LocationPrompts`.
        reads: int64 (R,), the prompt of each text.
        text: int64 (R, T).
        context: int64 (R, C); None: no instruction.
        boxes_xyxy: (R, 4), pixels; zeros: none.
        word_boxes: (R, T, 4), pixels; zeros: nowhere.
        sizes: (R, 2) height and width of the images without padding.
        learns: bool (R, 3), on the host; see `PromptTargets`.
        packed_masks: uint8 (R, H, ceil(W / 8)), as `PromptTargets.masks`; None when no text has one.
        task: of all of them.
        sources: rows of the targets that these are, int64 per image.
    """

    images: list[int]
    counts: list[int]
    prompt_counts: list[int]
    points: Tensor
    labels: Tensor
    reads: Tensor
    text: Tensor
    context: Tensor | None
    boxes_xyxy: Tensor
    word_boxes: Tensor
    sizes: Tensor
    learns: Tensor
    packed_masks: Tensor | None
    task: str
    sources: list[Tensor]

    def __len__(self) -> int:
        return len(self.text)

    @property
    def whole(self) -> bool:
        """Whether the prompts are whole images."""
        return self.task not in LOCATED

    @property
    def places(self) -> list[tuple[int, int]]:
        """Position of each text's image in the batch, and of the text among the image's."""
        return [(k, n) for k, count in zip(self.images, self.counts, strict=True) for n in range(count)]

    @property
    def bounds(self) -> Tensor:
        """The box around each prompt's points, (Q, 4) pixels."""
        known = (self.labels != PADDING)[..., None]
        low = torch.where(known, self.points, torch.inf).amin(1)
        return torch.cat((low, torch.where(known, self.points, -torch.inf).amax(1)), 1)

    def spoken(self, pad_id: int) -> Tensor:
        """Return which tokens are no padding behind a text, bool (R, T); T5 begins with its padding, which stays."""
        return (self.text != pad_id).flip(1).cumsum(1).flip(1) > 0

    def unpacked_masks(self, canvas: tuple[int, int]) -> Tensor:
        """Return the masks, bool (R, height, width), all zero where there are none."""
        if self.packed_masks is None:
            return torch.zeros(len(self), *canvas, dtype=torch.bool, device=self.text.device)
        return unpack_masks(self.packed_masks, canvas[1])

    def select(self, kept: Tensor) -> PromptRows:
        """Return some texts, rising int64 on the host, still with all prompts."""
        at = kept.to(self.text.device)
        ends = torch.tensor(self.counts).cumsum(0)
        counts = torch.bincount(torch.searchsorted(ends, kept, right=True), minlength=len(ends)).tolist()
        moved = {name: getattr(self, name)[at] for name in ("reads", "text", "boxes_xyxy", "word_boxes", "sizes")}
        moved["context"] = None if self.context is None else self.context[at]
        moved["packed_masks"] = None if self.packed_masks is None else self.packed_masks[at]
        rows = torch.cat(self.sources)[kept] if self.sources else kept
        return replace(self, counts=counts, learns=self.learns[kept], sources=list(rows.split(counts)), **moved)

    def asking(self, boxes: Sequence[Tensor]) -> PromptRows:
        """Return rows without texts that ask about the boxes (n_i, 4) of each image, by its first instruction."""
        counts = [len(b) for b in boxes]
        firsts = torch.tensor([0, *self.counts[:-1]]).cumsum(0)
        owner = torch.repeat_interleave(firsts, torch.tensor(counts)).to(self.text.device)
        every = torch.cat(list(boxes))
        rows = replace(self.select(torch.zeros(0, dtype=torch.int64)), counts=counts, boxes_xyxy=every)
        rows.context = None if self.context is None else self.context[owner]
        rows.sizes = self.sizes[owner]
        rows.text = self.text[owner]
        return rows._by_box(every)

    def standing_in(self, samples: Sequence[RoiSamples]) -> PromptRows:
        """Let proposals ask in place of the objects that they overlap, one each: what is detected is no perfect box.

        The published model asks once per proposal, for an object as often as it was proposed; here every sentence is
        learnt once, so that their number is known beforehand.

        Args:
            samples: of each image of the batch, see `Detector.sample`.
        """
        if self.task != "detect":
            return self
        parts = zip(self.images, self.sources, self.boxes_xyxy.split(self.counts), strict=True)
        boxes = [samples[image].stand_ins(source.to(own.device), own) for image, source, own in parts]
        return self._by_box(torch.cat(boxes))

    def _by_box(self, boxes: Tensor) -> PromptRows:
        """Return the same texts asked for by these boxes, (R, 4), one prompt each."""
        points, labels = box_prompt(boxes)
        reads = torch.arange(len(boxes), device=boxes.device)
        return replace(self, points=points, labels=labels, reads=reads, prompt_counts=list(self.counts))


def group_prompts(
    targets: Sequence[PromptTargets], *, pad_id: int, device: torch.device, all_rows: bool = False
) -> list[PromptRows]:
    """Return the rows of a batch, a group per task, so that short texts are not padded to the longest of another task.

    Args:
        targets: of the images.
        pad_id: padding of text and context.
        device: where to.
        all_rows: also those that teach nothing; else they are left out.

    Returns:
        At least one group, in the order of the first images.
    """
    tasks = list(dict.fromkeys(target.task for target in targets))
    named = [[i for i, target in enumerate(targets) if target.task == task] for task in tasks]
    return [
        _rows([targets[i] for i in images], images, pad_id=pad_id, device=device, all_rows=all_rows) for images in named
    ]


def _rows(
    targets: Sequence[PromptTargets], images: list[int], *, pad_id: int, device: torch.device, all_rows: bool
) -> PromptRows:
    kept = [_kept(target, all_rows) for target in targets]
    counts = [len(rows) for rows in kept]
    pairs = list(zip(targets, kept, strict=True))

    def join(name: str) -> Tensor:
        return torch.cat([_at(getattr(target, name), rows) for target, rows in pairs])

    located = targets[0].task in LOCATED
    contexts = _stacked([t.context[rows] for t, rows in pairs], pad_id)
    points, labels = (join("prompt_points"), join("prompt_labels")) if located else _whole(targets)
    total, host = sum(counts), torch.device("cpu")
    order = torch.arange(total) if located else torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sizes = torch.tensor([target.size for target, count in zip(targets, counts, strict=True) for _ in range(count)])
    text = _stacked([t.text[rows] for t, rows in pairs], pad_id)
    places = _stacked([t.word_boxes.to(host)[rows] for t, rows in pairs], 0.0)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return PromptRows(
        images=images,
        counts=counts,
        prompt_counts=counts if located else [1] * len(counts),
        points=move(points),
        labels=move(labels),
        reads=move(order),
        text=move(text),
        context=move(contexts) if contexts.shape[1] else None,
        boxes_xyxy=move(join("boxes_xyxy")),
        word_boxes=move(places),
        sizes=move(sizes.reshape(-1, 2).float()),
        learns=torch.cat([target.learns.to(host)[rows] for target, rows in pairs]),
        packed_masks=_joined_masks(pairs),
        sources=kept,
        task=targets[0].task,
    )


def _kept(target: PromptTargets, all_rows: bool) -> Tensor:
    """Return which rows take part, int64, on the host."""
    if all_rows:
        return torch.arange(len(target))
    return target.learns.any(1).nonzero()[:, 0].cpu()


def _at(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor if len(rows) == len(tensor) else tensor[rows.to(tensor.device)]


def _joined_masks(pairs: Sequence[tuple[PromptTargets, Tensor]]) -> Tensor | None:
    shape = next((target.masks.shape[1:] for target, _ in pairs if target.masks is not None), None)
    if shape is None:
        return None
    device = next(target.masks.device for target, _ in pairs if target.masks is not None)
    return torch.cat(
        [
            torch.zeros(len(rows), *shape, dtype=torch.uint8, device=device)
            if target.masks is None
            else _at(target.masks, rows)
            for target, rows in pairs
        ]
    )


def _whole(targets: Sequence[PromptTargets]) -> tuple[Tensor, Tensor]:
    points, labels = zip(*(whole_image_prompt(target.size) for target in targets), strict=True)
    return torch.cat(points), torch.cat(labels)


def _stacked(parts: Sequence[Tensor], value: float) -> Tensor:
    """Join (n_i, T_i, ...) to (R, T, ...), filled with ``value``."""
    length = max(part.shape[1] for part in parts)
    out = parts[0].new_full((sum(map(len, parts)), length, *parts[0].shape[2:]), value)
    start = 0
    for part in parts:
        out[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return out
