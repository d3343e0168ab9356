"""Images a second, bytes a batch and memory of loader processes, with decoding and augmentation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.tokenizers import CaptionTokenizer
from ..batches import Batch
from ..categories import COCO_PANOPTIC
from ..loader import TrainLoader
from ..prepare.shapes_vocabulary import FOLDER
from ..reader import Reader
from ..readers.pix2cap import Pix2CapReader
from ..records import Record
from ..transforms.mapper import Mapper, PanopticCaptionMapper
from .measuring import Way, measure_in_turn
from .report import Report
from .straightforward import Straightforward, straightforward_epochs

_SCALES = ("min_scale", "max_scale")
OURS, EXPANDED, OTHER = "ours", "ours, masks expanded after arrival", "straightforward"


@dataclass(frozen=True, slots=True)
class Files:
    """A data set on disk: the JSON and two folders."""

    annotations: Path
    images: Path
    panoptic: Path


class Repeated:
    """The records of a reader over and over, so that a small data set makes a long epoch."""

    def __init__(self, reader: Reader, count: int) -> None:
        self.reader, self.count, self.categories = reader, count, reader.categories

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.reader[index % len(self.reader)]


class _RepeatedStraightforward(Straightforward):
    def repeat(self, count: int) -> _RepeatedStraightforward:
        self.entries = [self.entries[index % len(self.entries)] for index in range(count)]
        return self


def loading(
    files: Files,
    *,
    crop: int,
    scales: tuple[float, float] = (0.1, 2.0),
    images: int = 64,
    batch: int = 4,
    workers: int = 2,
    epochs: int = 4,
) -> Report:
    """Measure both loaders, epoch by epoch in turns.

    Args:
        files: what is read.
        crop: side of the crop, pixels.
        scales: of the augmentation; (1, 1) takes images whose longer side is ``crop`` as they are stored.
        images: samples of an epoch.
        batch: images in a batch.
        workers: processes of each loader.
        epochs: one to warm up, and those that are measured.
    """
    tokenizer = CaptionTokenizer.from_pretrained(FOLDER)
    paths, augmentation = (files.annotations, files.images, files.panoptic), dict(zip(_SCALES, scales, strict=True))
    reader = Repeated(Pix2CapReader(*paths, categories=COCO_PANOPTIC), images)
    mapper = PanopticCaptionMapper(COCO_PANOPTIC, tokenizer, image_size=crop, **augmentation)
    other = Straightforward(*paths, tokenizer=tokenizer, crop=crop, **augmentation)
    other.repeat(images)
    sizes = {"batch": batch, "workers": workers}
    ways = [
        Way(OTHER, straightforward_epochs(other, **sizes)),
        Way(OURS, our_epochs(reader, mapper, **sizes)),
        Way(EXPANDED, our_epochs(reader, mapper, **sizes), _expand),
    ]
    measurements = measure_in_turn(ways, images=images, batch=batch, epochs=epochs)
    same = _same(our_epochs(reader, mapper, batch=1, workers=0), straightforward_epochs(other, batch=1, workers=0))
    return Report(
        f"loading, crop {crop}",
        {"images": images, "crop": crop, **sizes},
        measurements,
        {"same images and masks": same},
    )


def our_epochs(reader: Reader, mapper: Mapper, *, batch: int, workers: int) -> Iterator[Iterator[Batch]]:
    """Yield the batches of epoch after epoch."""
    loader, epoch = TrainLoader(reader, mapper, batch_size_total=batch, num_workers=workers), 0
    while True:
        yield loader.batches(epoch)
        epoch += 1


def _expand(batch: Batch) -> list[Tensor]:
    return [targets.masks() for targets in batch.targets]


def _same(ours: Iterator[Iterator[Batch]], other: Iterator[Iterator[list[dict[str, Any]]]], count: int = 8) -> bool:
    """Return whether the first images and masks of an epoch are equal."""
    pairs = itertools.islice(zip(next(ours), next(other), strict=True), count)
    return all(
        torch.equal(mine.images[0], theirs["image"]) and torch.equal(mine.targets[0].masks(), theirs["masks"])
        for mine, (theirs,) in pairs
    )
