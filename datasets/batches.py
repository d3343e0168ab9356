"""What a loader hands to a model: images and typed targets, small enough to ship between processes.

Masks travel as one id map per image and are expanded where they are used (`RegionTargets.masks`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def __len__(self) -> int:
        return len(self.labels)

    def masks(self) -> Tensor:
        """Return bool (n, H, W)."""
        return self.id_map[None] == self.segment_ids[:, None, None]

    def to(self, device: torch.device | str) -> RegionTargets:
        """Move every tensor but ``caption_tokens``."""
        moved = _mapped(self, lambda tensor: tensor.to(device, non_blocking=True))
        return dataclasses.replace(moved, caption_tokens=self.caption_tokens)

    def pin_memory(self) -> RegionTargets:
        """Pin every tensor, so that copies to a GPU need not wait."""
        return _mapped(self, Tensor.pin_memory)


@dataclass(slots=True)
class Batch:
    """B images with their targets (empty when there are none, as at inference).

    Attributes:
        images: B tensors uint8 (3, H, W), RGB 0-255; sizes may differ.
        targets: B `RegionTargets`.
        image_ids: ids of the records.
        output_sizes: (height, width) of the original images; predictions are made at this size.
    """

    images: list[Tensor]
    targets: list[RegionTargets]
    image_ids: list[int | str]
    output_sizes: list[tuple[int, int]]

    @classmethod
    def blank(cls, size: int = 64) -> Batch:
        """Return one black image without regions, for a rank that has no sample in a step but must join it."""
        nothing = RegionTargets(
            labels=torch.zeros(0, dtype=torch.int64),
            segment_ids=torch.zeros(0, dtype=torch.int64),
            id_map=torch.zeros(size, size, dtype=torch.int32),
            boxes_xyxy=torch.zeros(0, 4),
            caption_tokens=torch.zeros(0, 2, dtype=torch.int64),
            captions=[],
        )
        return cls([torch.zeros(3, size, size, dtype=torch.uint8)], [nothing], ["blank"], [(size, size)])

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor but the captions' tokens, without waiting for the copies."""
        return dataclasses.replace(
            self,
            images=[image.to(device, non_blocking=True) for image in self.images],
            targets=[target.to(device) for target in self.targets],
        )

    def pin_memory(self) -> Batch:
        """Pin every tensor; the data loader calls this."""
        images = [image.pin_memory() for image in self.images]
        return dataclasses.replace(self, images=images, targets=[target.pin_memory() for target in self.targets])


def _mapped(targets: RegionTargets, function: Callable[[Tensor], Tensor]) -> RegionTargets:
    tensors = {
        f.name: function(value)
        for f in dataclasses.fields(targets)
        if isinstance(value := getattr(targets, f.name), Tensor)
    }
    return dataclasses.replace(targets, **tensors)
