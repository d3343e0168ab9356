"""Readers turn the files of a data set into records; `DATASETS` knows where the files of named data sets lie.

A reader has ``categories`` (a tuple of `Category` in the order of contiguous indices), ``len()`` and ``[index]``, which
returns a `Record`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.errors import DataError, UsageError, nearest
from ...utils.untrusted import shown
from ..categories import COCO_PANOPTIC
from ..records import Category
from ..shapes import CATEGORIES as SHAPES_CATEGORIES
from ..shapes import Shapes
from .coco_panoptic import CocoPanopticReader
from .pix2cap import Pix2CapReader

READERS = {"coco_panoptic": CocoPanopticReader, "pix2cap": Pix2CapReader, "shapes": Shapes}
SHAPES_SPLITS = {"shapes_train": "train", "shapes_val": "val", "shapes_test": "test"}
ROOT_VARIABLES = ("DETECTRON2_DATASETS", "DATASETS")


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


def categories_of(names: Sequence[str]) -> tuple[Category, ...]:
    """Return the categories of named data sets, without their files.

    Raises:
        UsageError: unknown name.
    """
    for name in names:
        if name in SHAPES_SPLITS:
            return SHAPES_CATEGORIES
        source(name)
    return COCO_PANOPTIC


def source(name: str) -> Source:
    """Return where a named data set of files lies.

    Raises:
        UsageError: unknown name.
    """
    if name not in DATASETS:
        known = [*DATASETS, *SHAPES_SPLITS]
        close = nearest(name, known)
        fix = f"did you mean {close}?" if close else None
        raise UsageError("Unknown data set.", value=name, allowed=", ".join(known), fix=fix)
    return DATASETS[name]


def open_dataset(name: str, root: str | Path | None = None) -> CocoPanopticReader:
    """Open a data set of `DATASETS` by name.

    Args:
        name: as in ``DATASETS.TRAIN`` of a configuration.
        root: folder of the data sets; None takes ``$DETECTRON2_DATASETS``, then ``$DATASETS``.

    Raises:
        UsageError: unknown name.
        DataError: no root, or its files are missing or inconsistent.
    """
    described = source(name)
    base = _base(name, root)
    options: dict[str, Any] = {"categories": COCO_PANOPTIC}
    if described.reader == "pix2cap":
        options["min_description"] = described.min_description
    paths = (base / described.annotations, base / described.images, base / described.panoptic)
    return READERS[described.reader](*paths, **options)


def _base(name: str, root: str | Path | None) -> Path:
    """Return ``<root>/coco`` or ``<root>``, whichever holds the annotations."""
    annotations = DATASETS[name].annotations
    given = root if root is not None else next((os.environ[v] for v in ROOT_VARIABLES if os.environ.get(v)), None)
    if given is None:
        raise DataError(
            f"The data set {name} needs a folder to be read from, and none is given.",
            fix=f"export {ROOT_VARIABLES[0]}=<folder that holds coco/{annotations}>",
        )
    root = Path(given).expanduser()
    bases = (root / "coco", root)
    for base in bases:
        if (base / annotations).is_file():
            return base
    tried = " and ".join(shown((base / annotations).absolute()) for base in bases)
    raise DataError(
        f"The annotations of {name} are not there.",
        where=f"tried {tried}",
        fix=f"set {ROOT_VARIABLES[0]} to the folder that holds coco/{annotations}"
        + ("" if root.is_dir() else f"; {shown(root.absolute())} does not exist"),
    )
