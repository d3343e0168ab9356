"""What a loader hands to a model: images and typed targets, small enough to ship between processes.

Masks of regions travel as one id map per image, masks of prompts, which may overlap, as packed bits; both are expanded
where they are used (`RegionTargets.masks`, `PromptTargets.unpacked_masks`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .bad_samples import BadSample


@dataclass(slots=True)
class RegionTargets:
    """The regions of one image, after augmentation. n regions, T caption tokens, H x W pixels.

    Attributes:
        labels: int64 (n,), contiguous class index.
        segment_ids: int64 (n,), the regions' values in ``id_map``.
        id_map: int32 (H, W); other values (void, padding, crowd) belong to no region.
        boxes_xyxy: float32 (n, 4), absolute pixels of the augmented image; zeros when the crop removed the region.
        caption_tokens: int64 (n, T), start token, word pieces, end token, zero padding; always on the host, where a
            model picks, counts and pads them before it moves them, so that it need not wait for a GPU to learn lengths.
        captions: n strings, the caption drawn for this epoch.
        seed: f(seed, epoch, sample index); randomness in a loss that must not depend on the batch starts here.
    """

    labels: Tensor
    segment_ids: Tensor
    id_map: Tensor
    boxes_xyxy: Tensor
    caption_tokens: Tensor
    captions: list[str]
    seed: int = 0

    @classmethod
    def blank(cls, size: int) -> RegionTargets:
        """Return the targets of a (size, size) image without regions."""
        return cls(
            labels=torch.zeros(0, dtype=torch.int64),
            segment_ids=torch.zeros(0, dtype=torch.int64),
            id_map=torch.zeros(size, size, dtype=torch.int32),
            boxes_xyxy=torch.zeros(0, 4),
            caption_tokens=torch.zeros(0, 2, dtype=torch.int64),
            captions=[],
        )

    def __len__(self) -> int:
        return len(self.labels)

    def masks(self) -> Tensor:
        """Return bool (n, H, W)."""
        return self.id_map[None] == self.segment_ids.to(self.id_map.dtype)[:, None, None]  # one type: compared faster

    def to(self, device: torch.device | str) -> RegionTargets:
        """Move every tensor but ``caption_tokens``."""
        moved = _mapped(self, lambda tensor: tensor.to(device, non_blocking=True))
        return dataclasses.replace(moved, caption_tokens=self.caption_tokens)

    def pin_memory(self) -> RegionTargets:
        """Pin every tensor, so that copies to a GPU need not wait."""
        return _mapped(self, Tensor.pin_memory)


IMAGE_POINT, BOX_START, BOX_END, NO_POINT = 1, 2, 3, -1  # `PromptTargets.prompt_labels`


@dataclass(slots=True)
class PromptTargets:
    """The prompts of one image with what each should bring forth, after augmentation.

    N prompts, T text tokens, C context tokens, P prompt points, H x W pixels. Coordinates are absolute pixels (x, y) of
    the augmented image.

    Attributes:
        text: int64 (N, T), begin, word pieces, end, padding; on the host, as ``RegionTargets.caption_tokens``.
        context: int64 (N, C), the instruction's word pieces, end, padding; on the host.
        prompt_points: float32 (N, P, 2), where the prompt points at.
        prompt_labels: int64 (N, P): 1 a point, 2 and 3 the upper left and lower right corner of a box, -1 padding.
        boxes_xyxy: float32 (N, 4), the box a prompt is about; zeros: none.
        word_boxes: float32 (N, T, 4), (x0, y0, x1, y1) of the place of each token; zeros: nowhere; on the host, since
            it is cut along with ``text``.
        learns: bool (N, 3): whether the row teaches its text, its place, its mask. A row that teaches nothing counts
            only for a detector. On the host, where rows are chosen.
        size: (height, width) of the valid pixels; what lies below and to the right of them is padding.
        masks: uint8 (N, H, ceil(W / 8)), eight pixels a byte, leftmost in the highest bit; None when no row has one.
        detects: ``boxes_xyxy`` are all objects of the image, so that a detector may learn from them.
        contexts, texts: N strings each, what ``context`` and ``text`` were made from.
        region_ids: N ids of the regions of the record; -1 for the whole image.
        task: the task that was drawn.
        seed: f(seed, epoch, sample index), as ``RegionTargets.seed``.
        boxes_on_host: ``boxes_xyxy`` where they were before they were moved, for what is counted of them.
    """

    text: Tensor
    context: Tensor
    prompt_points: Tensor
    prompt_labels: Tensor
    boxes_xyxy: Tensor
    word_boxes: Tensor
    learns: Tensor
    size: tuple[int, int]
    masks: Tensor | None = None
    detects: bool = False
    contexts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    region_ids: list[int] = field(default_factory=list)
    task: str = ""
    seed: int = 0
    boxes_on_host: Tensor | None = None

    @classmethod
    def blank(cls, size: int) -> PromptTargets:
        """Return the targets of a (size, size) image without prompts."""
        return cls(
            text=torch.zeros(0, 2, dtype=torch.int64),
            context=torch.zeros(0, 1, dtype=torch.int64),
            prompt_points=torch.zeros(0, 2, 2),
            prompt_labels=torch.zeros(0, 2, dtype=torch.int64),
            boxes_xyxy=torch.zeros(0, 4),
            word_boxes=torch.zeros(0, 2, 4),
            learns=torch.zeros(0, 3, dtype=torch.bool),
            size=(size, size),
        )

    def __len__(self) -> int:
        return len(self.text)

    def unpacked_masks(self, width: int) -> Tensor:
        """Return bool (N, H, width); ``width`` is that of the augmented image.

        Raises:
            ValueError: no row has a mask.
        """
        if self.masks is None:
            raise ValueError("no prompt of this image has a mask")
        return unpack_masks(self.masks, width)

    def to(self, device: torch.device | str) -> PromptTargets:
        """Move every tensor but ``text``, ``context``, ``learns`` and ``word_boxes``; the boxes are kept as well."""
        moved = _mapped(self, lambda tensor: tensor.to(device, non_blocking=True))
        kept = {name: getattr(self, name) for name in ("text", "context", "learns", "word_boxes")}
        boxes = self.boxes_xyxy if self.boxes_on_host is None else self.boxes_on_host
        return dataclasses.replace(moved, **kept, boxes_on_host=boxes)

    def pin_memory(self) -> PromptTargets:
        """Pin every tensor, so that copies to a GPU need not wait."""
        return _mapped(self, Tensor.pin_memory)


Targets = RegionTargets | PromptTargets


@dataclass(slots=True)
class Batch:
    """B images with their targets (empty when there are none, as at inference).

    Attributes:
        images: B tensors uint8 (3, H, W), RGB 0-255; sizes may differ.
        targets: B `RegionTargets` or B `PromptTargets`, as the system learns from.
        image_ids: ids of the records.
        output_sizes: (height, width) of the original images; predictions are made at this size.
        bad: training samples that were left out, since they could not be used.
    """

    images: list[Tensor]
    targets: list[RegionTargets] | list[PromptTargets]
    image_ids: list[int | str]
    output_sizes: list[tuple[int, int]]
    bad: list[BadSample] = field(default_factory=list)

    @classmethod
    def blank(cls, size: int = 64, kind: type[Targets] = RegionTargets) -> Batch:
        """Return one black image without targets, for a rank that has no sample in a step but must join it."""
        return cls([torch.zeros(3, size, size, dtype=torch.uint8)], [kind.blank(size)], ["blank"], [(size, size)])

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Sequence[int]) -> Batch:
        """Return some of the images, with their targets if there are any."""
        parts = (self.images, self.targets, self.image_ids, self.output_sizes)
        return Batch(*([part[row] for row in rows] if part else [] for part in parts))

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor but those of the targets that stay on the host, without waiting for the copies."""
        return dataclasses.replace(
            self,
            images=[image.to(device, non_blocking=True) for image in self.images],
            targets=[target.to(device) for target in self.targets],
        )

    def pin_memory(self) -> Batch:
        """Pin every tensor; the data loader calls this."""
        images = [image.pin_memory() for image in self.images]
        return dataclasses.replace(self, images=images, targets=[target.pin_memory() for target in self.targets])


def unpack_masks(packed: Tensor, width: int) -> Tensor:
    """Undo ``numpy.packbits`` along the rows: uint8 (R, H, ceil(width / 8)) -> bool (R, H, width)."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :width].bool()


def _mapped(targets: Targets, function: Callable[[Tensor], Tensor]) -> Targets:
    tensors = {
        f.name: function(value)
        for f in dataclasses.fields(targets)
        if isinstance(value := getattr(targets, f.name), Tensor)
    }
    return dataclasses.replace(targets, **tensors)
