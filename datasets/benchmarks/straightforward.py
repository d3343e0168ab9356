"""The loader to compare with: dictionaries copied deeply for each sample, and a boolean mask for each segment."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...utils.tokenizers import CaptionTokenizer
from ..categories import COCO_PANOPTIC, contiguous_indices
from ..samplers import TrainSampler
from ..transforms.geometry import draw_jitter


class Straightforward(Dataset):
    """Samples as dictionaries, addressed by (epoch, index).

    Args:
        annotations, images, panoptic: as of `CocoPanopticReader`.
        tokenizer: of captions.
        crop, min_scale, max_scale: as of `PanopticCaptionMapper`, whose randomness it repeats.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        panoptic: Path,
        *,
        tokenizer: CaptionTokenizer,
        crop: int,
        min_scale: float,
        max_scale: float,
    ) -> None:
        document = json.loads(annotations.read_text(encoding="utf-8"))
        self.entries = entries_of(document, images, panoptic)
        self.labels, self.tokenizer = contiguous_indices(COCO_PANOPTIC), tokenizer
        self.jitter = {"size": crop, "min_scale": min_scale, "max_scale": max_scale}

    def __len__(self) -> int:
        return len(self.entries)

    def repeat(self, count: int) -> None:
        """Go over the entries again and again until there are ``count``."""
        self.entries = [self.entries[index % len(self.entries)] for index in range(count)]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        entry = copy.deepcopy(self.entries[index])
        generator = np.random.default_rng([0, epoch, index])
        drawn = draw_jitter(generator, entry["height"], entry["width"], **self.jitter)
        with Image.open(entry.pop("file_name")) as image:
            pixels = drawn.apply_image(np.asarray(image.convert("RGB")))
        with Image.open(entry.pop("pan_seg_file_name")) as image:
            rgb = np.asarray(image.convert("RGB")).astype(np.uint32)
        ids = drawn.apply_id_map((rgb[..., 0] + 256 * rgb[..., 1] + 65_536 * rgb[..., 2]).astype(np.int32))
        segments = [segment for segment in entry.pop("segments_info") if not segment["iscrowd"]]
        masks = [ids == segment["id"] for segment in segments]
        entry["image"] = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        entry["masks"] = (
            torch.stack([torch.from_numpy(mask) for mask in masks]) if masks else torch.zeros(0, *ids.shape)
        )
        entry["labels"] = torch.tensor([self.labels[segment["category_id"]] for segment in segments])
        entry["boxes"] = torch.tensor([_box(mask) for mask in masks]).reshape(-1, 4)
        entry["captions"] = [self.tokenizer.encode(_caption(segment)) for segment in segments]
        return entry


def straightforward_epochs(samples: Dataset, *, batch: int, workers: int) -> Iterator[Iterator[Any]]:
    """Yield the batches of epoch after epoch, in the order of `TrainLoader`; processes live over all of them."""
    sampler, plan = TrainSampler(len(samples), batch), _Plan()
    loader = DataLoader(
        samples, batch_sampler=plan, collate_fn=list, num_workers=workers, persistent_workers=workers > 0
    )
    epoch = 0
    while True:
        plan.keys = list(sampler.keys(epoch))
        yield iter(loader)
        epoch += 1


class _Plan:
    """A batch sampler whose batches are set before each epoch."""

    keys: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)


def entries_of(document: dict[str, Any], images: Path, panoptic: Path) -> list[dict[str, Any]]:
    """Join images and annotations."""
    by_id = {image["id"]: image for image in document["images"]}
    return [
        {
            "file_name": str(images / by_id[annotation["image_id"]]["file_name"]),
            "pan_seg_file_name": str(panoptic / annotation["file_name"]),
            "image_id": annotation["image_id"],
            "height": by_id[annotation["image_id"]]["height"],
            "width": by_id[annotation["image_id"]]["width"],
            "segments_info": annotation["segments_info"],
        }
        for annotation in document["annotations"]
    ]


def _box(mask: np.ndarray) -> list[float]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return [columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0] if len(columns) else [0.0] * 4


def _caption(segment: dict[str, Any]) -> str:
    description = segment.get("description") or ""
    return description if isinstance(description, str) else description[0]
