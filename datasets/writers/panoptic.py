"""COCO panoptic and Pix2Cap's extension of it: a JSON, and beside it a folder of its name with the PNGs."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.files import write_json
from ...utils.id_maps import measure_segments
from ..records import Category, Record, Region
from .coco import category_entry, image_entry
from .holds import Holds
from .naming import Naming

_NEEDS = {"needs": (("mask",),), "category": "must", "id_maps": True}
PANOPTIC = Holds(record=frozenset(), region=frozenset({"mask", "box_xyxy"}), **_NEEDS)
PIX2CAP = Holds(record=frozenset(), region=frozenset({"mask", "box_xyxy", "captions"}), **_NEEDS)


def write_with(
    path: Path, records: Iterable[Record], categories: Sequence[Category], naming: Naming, *, described: bool
) -> Path:
    """Write the JSON and the PNGs; the JSON, without which the PNGs are nothing, comes last.

    Args:
        path: of the JSON; the PNGs go to a folder beside it, called as it is without ``.json``.
        records: with id maps.
        categories, naming: of the data set.
        described: segments have a ``description``: Pix2Cap's form.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as temporary:
        folder = Path(temporary) / path.stem
        folder.mkdir()
        for record in records:
            images.append(image_entry(record, naming))
            name = _unused(Path(images[-1]["file_name"]).with_suffix("").as_posix().replace("/", "_"), folder)
            ids = record.read_id_map()
            write_ids(ids, folder / name)
            annotation = {"image_id": images[-1]["id"], "file_name": name, "segments_info": _segments(record, ids)}
            annotations.append(annotation)
            for segment, region in zip(annotation["segments_info"], record.regions, strict=True):
                segment |= {"description": _description(region)} if described else {}
        os.replace(folder, path.with_suffix(""))
    listed = [category_entry(category) for category in categories]
    return write_json(path, {"images": images, "annotations": annotations, "categories": listed})


def _unused(stem: str, folder: Path) -> str:
    """Return the name of a PNG that is not there yet: a.jpg and a.png may be two images."""
    names = itertools.chain([f"{stem}.png"], (f"{stem}-{number}.png" for number in itertools.count(2)))
    return next(name for name in names if not (folder / name).exists())


write_panoptic = partial(write_with, described=False)
write_pix2cap = partial(write_with, described=True)


def write_ids(ids: np.ndarray, path: Path) -> None:
    """Write an id map as panoptic PNG, id = R + 256 G + 65536 B."""
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path, "PNG")


def _segments(record: Record, ids: np.ndarray) -> list[dict[str, Any]]:
    found = measure_segments(ids)
    rows = {number: row for row, number in enumerate(found.ids.tolist())}
    segments = []
    for region in record.regions:
        x0, y0, x1, y1 = found.boxes_xyxy[rows[region.id]].tolist()
        body = {"id": region.id, "category_id": region.category_id, "iscrowd": int(region.is_crowd)}
        area = int(found.areas[rows[region.id]])
        segments.append(body | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area})
    return segments


def _description(region: Region) -> str | list[str]:
    return list(region.captions) if len(region.captions) > 1 else "".join(region.captions)
