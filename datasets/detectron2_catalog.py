"""Our named data sets in detectron2's DatasetCatalog and MetadataCatalog, under the names they have upstream."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .detectron2_classes import LABEL_DIVISOR, Classes, library
from .readers import DATASETS, TEXT_DATASETS, categories_of, open_dataset
from .readers.detectron2 import XYXY_ABS
from .readers.whereabouts import ROOT_VARIABLES
from .records import Category, Record, Region

IGNORED = 255  # in maps of classes
OF_REGIONS = ("visual_genome", "grit", "refer", "mdetr", "uninext")  # readers; others know nothing of regions


def register_datasets(root: str | Path | None = None) -> list[str]:
    """Publish our data sets of regions; their files are read when a data set is asked for.

    Names that the catalog has already, such as ``coco_2017_val_panoptic``, keep what detectron2 registered.

    Args:
        root: folder of the data sets; None takes ``$DETECTRON2_DATASETS``, then ``$DATASETS``, when they are read.

    Returns:
        The names that are new in the catalog.

    Raises:
        MissingDependencyError: detectron2 is not installed.
    """
    data = library("data")
    texts = [name for name, source in TEXT_DATASETS.items() if source.reader in OF_REGIONS]
    new = [name for name in (*DATASETS, *texts) if name not in data.DatasetCatalog]
    for name in new:
        data.DatasetCatalog.register(name, catalog_function(name, root))
        facts = metadata_of(categories_of([name]))
        data.MetadataCatalog.get(name).set(**facts, **_places(name, root))
    return new


def catalog_function(name: str, root: str | Path | None = None) -> Callable[[], list[dict[str, Any]]]:
    """Return what DatasetCatalog calls for one of our data sets."""

    def load() -> list[dict[str, Any]]:
        reader = open_dataset(name, root)
        classes = Classes.of(reader.categories)
        return [to_catalog(reader[index], classes) for index in range(len(reader))]

    return load


def metadata_of(categories: Sequence[Category]) -> dict[str, Any]:
    """Return the metadata of classes that are numbered in their order, things and stuff together.

    As in detectron2's "standard" panoptic data, both lists of names hold all classes, and the ids tell them apart.
    """
    classes = Classes.of(categories)
    names, colors = [c.name for c in categories], [list(c.color or (128, 128, 128)) for c in categories]
    facts: dict[str, Any] = {}
    for kind, numbers in (("thing", classes.things), ("stuff", classes.stuff)):
        if numbers:
            facts |= {f"{kind}_classes": names, f"{kind}_colors": colors}
            facts[f"{kind}_dataset_id_to_contiguous_id"] = {i: number for number, i in numbers.items()}
    return facts


def _places(name: str, root: str | Path | None) -> dict[str, Any]:
    """Return what detectron2's evaluator of panoptic data needs, where the folder of the data sets is known."""
    given = root or next((os.environ[v] for v in ROOT_VARIABLES if os.environ.get(v)), None)
    if name not in DATASETS or given is None:
        return {}
    source, base = DATASETS[name], Path(given).expanduser()
    base = base / "coco" if (base / "coco").is_dir() else base
    return {
        "image_root": str(base / source.images),
        "panoptic_root": str(base / source.panoptic),
        "panoptic_json": str(base / source.annotations),
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": IGNORED,
        "label_divisor": LABEL_DIVISOR,
    }


def to_catalog(record: Record, categories: Sequence[Category] | Classes) -> dict[str, Any]:
    """Return a record whose image is a file in detectron2's form of a data set.

    A record with an id map in a file has ``pan_seg_file_name`` and ``segments_info``, any other ``annotations``; both
    carry ``captions`` where a region has sentences.

    Raises:
        DataError: a category is unknown.
    """
    classes = Classes.of(categories)
    item: dict[str, Any] = {
        "file_name": record.image,
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
    }
    if record.captions:
        item["captions"] = list(record.captions)
    where = f"image {record.image_id}, region "
    if isinstance(record.id_map, str):
        item["pan_seg_file_name"] = record.id_map
        item["segments_info"] = [_segment(r, classes, f"{where}{r.id}") for r in record.regions]
    else:
        item["annotations"] = [
            _annotation(r, classes, f"{where}{r.id}") for r in record.regions if r.box_xyxy is not None
        ]
    return item


def _segment(region: Region, classes: Classes, where: str) -> dict[str, Any]:
    number, is_thing = classes.number_of(region.category_id, where)
    segment = {"id": region.id, "category_id": number, "iscrowd": int(region.is_crowd), "isthing": is_thing}
    if region.box_xyxy is not None:
        x0, y0, x1, y1 = region.box_xyxy
        segment["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    if region.area is not None:
        segment["area"] = region.area
    return segment | _texts(region)


def _annotation(region: Region, classes: Classes, where: str) -> dict[str, Any]:
    annotation = {
        "bbox": list(region.box_xyxy),
        "bbox_mode": library("structures").BoxMode(XYXY_ABS),
        "category_id": classes.number_of(region.category_id, where)[0],
        "iscrowd": int(region.is_crowd),
    }
    if region.mask is not None:
        annotation["segmentation"] = dict(region.mask)
    if region.keypoints:
        annotation["keypoints"] = [value for point in region.keypoints for value in point]
    return annotation | _texts(region)


def _texts(region: Region) -> dict[str, list[str]]:
    texts = region.captions or region.phrases or region.expressions
    return {"captions": list(texts)} if texts else {}
