"""From the configuration's data set names to readers, mappers and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..datasets.loader import EvalLoader, TrainLoader
from ..datasets.reader import Reader
from ..datasets.readers import SHAPES_SPLITS, open_dataset
from ..datasets.records import Record
from ..datasets.shapes import Shapes
from ..datasets.transforms.mapper import EvalMapper, PanopticCaptionMapper
from ..utils.errors import UsageError
from ..utils.tokenizers import CaptionTokenizer
from .distributed import World


class Concatenated:
    """Several data sets of the same categories, one after the other."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        first, *others = readers
        for other in others:
            if [c.id for c in other.categories] != [c.id for c in first.categories]:
                raise UsageError("Data sets with different categories cannot be joined.", where="DATASETS")
        self.readers, self.categories = list(readers), tuple(first.categories)

    def __len__(self) -> int:
        return sum(map(len, self.readers))

    def __getitem__(self, index: int) -> Record:
        for reader in self.readers:
            if index < len(reader):
                return reader[index]
            index -= len(reader)
        raise IndexError(index)


class First:
    """The first records of a data set."""

    def __init__(self, reader: Reader, length: int) -> None:
        self.reader, self.length, self.categories = reader, min(length, len(reader)), tuple(reader.categories)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.reader[index]


def open_reader(names: Sequence[str], cfg: Any) -> Reader:
    """Open the data sets of DATASETS.TRAIN or DATASETS.TEST as one.

    Raises:
        UsageError: no name is given, or they don't fit together.
        DataError: files are missing or inconsistent.
    """
    if not names:
        raise UsageError("No data set is given.", where="DATASETS", allowed="one or more names")
    readers = [_open(name, cfg) for name in names]
    return readers[0] if len(readers) == 1 else Concatenated(readers)


def _open(name: str, cfg: Any) -> Reader:
    if name in SHAPES_SPLITS:
        shapes = cfg.SHAPES
        count = shapes.NUM_TRAIN if name == "shapes_train" else shapes.NUM_TEST
        return Shapes(count, seed=shapes.SEED, split=SHAPES_SPLITS[name], image_size=shapes.IMAGE_SIZE)
    return open_dataset(name, cfg.DATASETS.ROOT or None)


def is_shapes(names: Sequence[str]) -> bool:
    """Return whether all data sets are drawn, so that the truth about every attribute is known."""
    return all(name in SHAPES_SPLITS for name in names)


def train_loader(reader: Reader, tokenizer: CaptionTokenizer, cfg: Any, world: World) -> TrainLoader:
    """Return the training batches of this rank."""
    inputs = cfg.COCO.INPUT
    mapper = PanopticCaptionMapper(
        reader.categories,
        tokenizer,
        image_size=inputs.IMAGE_SIZE,
        min_scale=inputs.MIN_SCALE,
        max_scale=inputs.MAX_SCALE,
        random_flip=inputs.RANDOM_FLIP,
        seed=cfg.SEED,
    )
    return TrainLoader(
        reader,
        mapper,
        batch_size_total=cfg.COCO.TRAIN.BATCH_SIZE_TOTAL,
        rank=world.rank,
        world_size=world.size,
        num_workers=cfg.COCO.DATALOADER.NUM_WORKERS,
        seed=cfg.SEED,
    )


def test_loader(reader: Reader, cfg: Any, world: World) -> EvalLoader:
    """Return the evaluation batches of this rank; which images share a batch does not depend on the number of ranks."""
    inputs = cfg.COCO.INPUT
    return EvalLoader(
        reader,
        EvalMapper(shortest=inputs.MIN_SIZE_TEST, longest=inputs.MAX_SIZE_TEST),
        batch_size=cfg.COCO.TEST.IMAGES_PER_FORWARD,
        rank=world.rank,
        world_size=world.size,
        num_workers=cfg.COCO.DATALOADER.NUM_WORKERS,
    )
