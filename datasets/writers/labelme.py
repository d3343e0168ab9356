"""LabelMe: a folder with a JSON per image (`locap.datasets.readers.labelme` describes what becomes of shapes)."""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.errors import DataError
from ...utils.files import write_json
from ..records import Category, Record, Region, Rle, box_of_mask, decode_mask
from .holds import Holds
from .naming import Naming

HOLDS = Holds(
    record=frozenset(),
    region=frozenset({"mask", "box_xyxy", "points", "captions"}),
    needs=(("mask", "box_xyxy", "points"),),
    most_captions=1,
    crowds=False,
    areas=False,
)
VERSION = "5.5.0"  # of LabelMe: the first whose files may hold all of this


def write(path: Path, records: Iterable[Record], categories: Sequence[Category], naming: Naming) -> Path:
    """Write the folder, which appears whole or not at all."""
    names = {category.id: category.name for category in categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        for record in records:
            file = folder / (re.sub(r"[^\w.-]+", "_", str(record.image_id)) + ".json")
            if file.exists():
                raise DataError("Two images would have the same file.", where=file.name, value=record.image_id)
            write_json(file, _document(record, names, naming), indent=2)
        os.replace(folder, path)
    return path


def _document(record: Record, names: dict[int, str], naming: Naming) -> dict[str, Any]:
    shapes = [
        {"label": names.get(region.category_id, "object"), "group_id": group, "flags": {}, **_said(region), **shape}
        for number, region in enumerate(record.regions, start=1)
        for shapes in [_shapes(region)]
        for shape in shapes
        for group in [number if len(shapes) > 1 else None]
    ]
    size = {"imageHeight": record.height, "imageWidth": record.width}
    image = {"imagePath": naming.image(record), "imageData": None}
    return {"version": VERSION, "flags": {}, "shapes": shapes, **image, **size}


def _said(region: Region) -> dict[str, str]:
    return {"description": region.captions[0] if region.captions else ""}


def _shapes(region: Region) -> list[dict[str, Any]]:
    shapes = [{"shape_type": "mask", **_mask(region.mask)}] if region.mask is not None else []
    if region.box_xyxy is not None:
        x0, y0, x1, y1 = region.box_xyxy
        shapes.append({"shape_type": "rectangle", "points": [[x0, y0], [x1, y1]]})
    return shapes + [{"shape_type": "point", "points": [list(point)]} for point in region.points]


def _mask(rle: Rle) -> dict[str, Any]:
    mask = decode_mask(rle)
    x0, y0, x1, y1 = map(int, box_of_mask(mask))
    buffer = io.BytesIO()
    Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8)).save(buffer, "PNG")
    return {"points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": base64.b64encode(buffer.getvalue()).decode("ascii")}
