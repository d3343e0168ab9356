"""The embedded data set as files, so that formats and commands can be tried without a download."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.files import write_json
from ..records import Record, write_records
from ..shapes import CATEGORIES, Shapes
from .catalogue import TOY_SPLITS

IMAGE_SIZE = 128


def write_toy(root: Path) -> Path:
    """Write ``<root>/toy``: images, COCO panoptic with descriptions (as Pix2Cap), and record files; nothing if there.

    Ids of images count from 1.
    """
    folder = root / "toy"
    if folder.exists():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".toy.", ignore_cleanup_errors=True) as temporary:
        made = Path(temporary) / "toy"
        for split, count in TOY_SPLITS.items():
            _write_split(made, split, Shapes(count, split=split, image_size=IMAGE_SIZE))
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    return folder


def _write_split(folder: Path, split: str, scenes: Shapes) -> None:
    images, panoptic = folder / "images" / split, folder / f"panoptic_{split}"
    for path in (images, panoptic):
        path.mkdir(parents=True)
    document: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": _categories()}
    records = []
    for i in range(len(scenes)):
        record = dataclasses.replace(scenes[i], image_id=i + 1)
        stem = f"{record.image_id:012d}"
        Image.fromarray(record.read_image()).save(images / f"{stem}.png")
        Image.fromarray(_colours(record.read_id_map())).save(panoptic / f"{stem}.png")
        document["images"].append(
            {"id": record.image_id, "file_name": f"{stem}.png", "height": record.height, "width": record.width}
        )
        document["annotations"].append(_annotation(record, f"{stem}.png"))
        paths = {"image": f"images/{split}/{stem}.png", "id_map": f"panoptic_{split}/{stem}.png"}
        records.append(dataclasses.replace(record, **paths))
    write_json(folder / "annotations" / f"pix2cap_{split}.json", document)
    write_records(folder / f"records_{split}.json", records, CATEGORIES, {"drawn": True})


def _annotation(record: Record, file_name: str) -> dict[str, Any]:
    segments = []
    for region in record.regions:
        x0, y0, x1, y1 = region.box_xyxy
        segments.append(
            {
                "id": region.id,
                "category_id": region.category_id,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(region.area),
                "description": region.captions[0] if region.captions else "",
            }
        )
    return {"image_id": record.image_id, "file_name": file_name, "segments_info": segments}


def _categories() -> list[dict[str, Any]]:
    return [{"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)} for c in CATEGORIES]


def _colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)
