"""Readers turn the files of a data set into records; `DATASETS` and `TEXT_DATASETS` know where the files of named data
sets lie.

A reader has ``categories`` (a tuple of `Category` in the order of contiguous indices), ``len()`` and ``[index]``, which
returns a `Record`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.errors import UsageError, nearest
from ..categories import COCO_PANOPTIC
from ..expressions import PerExpression
from ..reader import Reader
from ..records import Category
from ..shapes import CATEGORIES as SHAPES_CATEGORIES
from ..shapes import Shapes
from .coco_captions import CocoCaptionsReader, KarpathyReader
from .coco_panoptic import CocoPanopticReader
from .detectron2 import PREFIX as DETECTRON2
from .detectron2 import CatalogReader, catalog_categories
from .llava import LlavaReader
from .localized_narratives import LocalizedNarrativesReader
from .own_files import OwnReader, names_file, open_file
from .packed import PackedReader
from .pix2cap import Pix2CapReader
from .refcoco import MdetrReferReader, ReferReader, UninextReferReader
from .shards import ShardReader, find_shards, names_shards
from .text_datasets import TEXT_DATASETS, TextSource
from .visual_genome import GritReader, VisualGenomeReader
from .whereabouts import locate

READERS = {
    "coco_panoptic": CocoPanopticReader,
    "pix2cap": Pix2CapReader,
    "shapes": Shapes,
    "visual_genome": VisualGenomeReader,
    "grit": GritReader,
    "localized_narratives": LocalizedNarrativesReader,
    "refer": ReferReader,
    "mdetr": MdetrReferReader,
    "uninext": UninextReferReader,
    "llava": LlavaReader,
    "coco_captions": CocoCaptionsReader,
    "karpathy": KarpathyReader,
}
REFERRING = (ReferReader, MdetrReferReader, UninextReferReader)
SHAPES_SPLITS = {"shapes_train": "train", "shapes_val": "val", "shapes_test": "test"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a named data set lies: paths relative to ``<root>/coco`` or ``<root>``."""

    reader: str
    annotations: str
    images: str
    panoptic: str
    min_description: int = 0


DATASETS: Mapping[str, Source] = {
    "pix2cap_coco_train_with_sem_seg": Source(
        "pix2cap", "annotations/pix2cap_coco_train.json", "train2017", "panoptic_train2017", min_description=3
    ),
    "pix2cap_coco_val_with_sem_seg": Source(
        "pix2cap", "annotations/pix2cap_coco_val.json", "val2017", "panoptic_val2017"
    ),
    "coco_2017_train_panoptic": Source(
        "coco_panoptic", "annotations/panoptic_train2017.json", "train2017", "panoptic_train2017"
    ),
    "coco_2017_val_panoptic": Source(
        "coco_panoptic", "annotations/panoptic_val2017.json", "val2017", "panoptic_val2017"
    ),
}


def categories_of(names: Sequence[str], root: str | Path | None = None) -> tuple[Category, ...]:
    """Return the categories of named data sets, without their files; of shards and of own files what they tell.

    Raises:
        UsageError: unknown name.
        DataError: shards or files are not there, or wrong.
    """
    for name in names:
        if name in SHAPES_SPLITS:
            return SHAPES_CATEGORIES
        if name in TEXT_DATASETS:
            return PackedReader.categories
        if names_file(name, root):
            return tuple(open_file(name, root).categories)
        if names_shards(name):
            return find_shards(name, root).categories or PackedReader.categories
        if name.startswith(DETECTRON2):
            return catalog_categories(name)
        source(name)
    return COCO_PANOPTIC


def source(name: str) -> Source:
    """Return where a named data set of files lies.

    Raises:
        UsageError: unknown name.
    """
    if name not in DATASETS:
        known = [*DATASETS, *TEXT_DATASETS, *SHAPES_SPLITS]
        close = nearest(name, known)
        fix = f"did you mean {close}?" if close else None
        allowed = f"{', '.join(known)}, or the path of shards or of a .json or .jsonl file"
        raise UsageError("Unknown data set.", value=name, allowed=allowed, fix=fix)
    return DATASETS[name]


def open_dataset(name: str, root: str | Path | None = None, **options: Any) -> OwnReader | ShardReader:
    """Open a data set of `DATASETS` or `TEXT_DATASETS` by name, or files of one's own and shards by where they lie.

    Args:
        name: as in ``DATASETS.TRAIN`` of a configuration; ``detectron2.NAME`` is one of detectron2's catalog.
        root: folder of the data sets; None takes ``$DETECTRON2_DATASETS``, then ``$DATASETS``.
        options: further ones of the reader, such as ``per_expression`` of those of referring expressions.

    Raises:
        UsageError: unknown name.
        DataError: no root, or its files are missing or inconsistent.
    """
    if name in TEXT_DATASETS:
        return _open_text(name, TEXT_DATASETS[name], root, options)
    if names_file(name, root):
        return open_file(name, root, **options)
    if names_shards(name):
        return ShardReader(name, root, **options)
    if name.startswith(DETECTRON2):
        return CatalogReader(name)
    described = source(name)
    options["categories"] = COCO_PANOPTIC
    if described.reader == "pix2cap":
        options["min_description"] = described.min_description
    _, base, _ = locate(name, root, ((described.annotations,),))
    paths = (base / described.annotations, base / described.images, base / described.panoptic)
    return READERS[described.reader](*paths, **options)


def open_expressions(name: str, root: str | Path | None = None) -> Reader:
    """Open a data set as `open_dataset`, with a region for each expression, whose id is that of the expression."""
    if name in TEXT_DATASETS and READERS[TEXT_DATASETS[name].reader] in REFERRING:
        return open_dataset(name, root, per_expression=True)
    return PerExpression(open_dataset(name, root))


def _open_text(name: str, described: TextSource, root: str | Path | None, options: Mapping[str, Any]) -> PackedReader:
    root, _, files = locate(name, root, described.files)
    beside = {key: files[0].with_name(file) for key, file in described.beside.items()}
    images = [root / folder for folder in described.images]
    annotations = files if len(files) > 1 else files[0]
    return READERS[described.reader](annotations, images=images, **beside, **{**described.options, **options})
