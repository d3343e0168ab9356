"""A drawn panoptic data set on disk, in COCO's format and with captions as Pix2Cap has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.files import write_json
from ..categories import COCO_PANOPTIC
from ..readers.pix2cap import Pix2CapReader

_WORDS = ("a", "small", "large", "red", "blue", "circle", "square", "star", "left", "of", "the", "above", "and", "near")
ANNOTATIONS, IMAGES, PANOPTIC = "pix2cap.json", "images", "panoptic"


def draw_data_set(
    folder: Path, count: int, *, height: int = 480, width: int = 640, segments: int = 14, seed: int = 0
) -> Path:
    """Write ``count`` scenes as JPEG and panoptic PNG; returns the JSON file.

    Where the highest of some smooth random fields changes, a segment ends, as stuff and things of photographs do.
    """
    for name in (IMAGES, PANOPTIC):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        rng = np.random.default_rng([seed, number])
        ids = _draw_ids(rng, height, width, segments)
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / PANOPTIC / f"{number}.png")
        Image.fromarray(_paint(rng, ids)).save(folder / IMAGES / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        segments_info = [_describe(rng, ids, int(i)) for i in np.unique(ids)]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments_info})
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in COCO_PANOPTIC]
    body = {"images": images, "annotations": annotations, "categories": categories}
    return write_json(folder / ANNOTATIONS, body)


def multiply(annotations: Path, count: int) -> Path:
    """Write a JSON of ``count`` images beside another, which refer to the same files over and over."""
    document = json.loads(annotations.read_text(encoding="utf-8"))
    for name, key in (("images", "id"), ("annotations", "image_id")):
        items = document[name]
        document[name] = [{**items[index % len(items)], key: index + 1} for index in range(count)]
    return write_json(annotations.with_name(f"{count}_{annotations.name}"), document)


def open_data_set(folder: Path, annotations: str = ANNOTATIONS) -> Pix2CapReader:
    """Open what `draw_data_set` or `multiply` wrote."""
    return Pix2CapReader(folder / annotations, folder / IMAGES, folder / PANOPTIC, categories=COCO_PANOPTIC)


def _draw_ids(rng: np.random.Generator, height: int, width: int, segments: int) -> np.ndarray:
    fields = np.stack([_smooth(rng, (5, 6), height, width) for _ in range(segments)])
    ids = rng.choice(256**3 - 2, segments, replace=False).astype(np.int32) + 1
    return ids[fields.argmax(0)]


def _paint(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Give each segment a colour, with shades and grain so that the JPEG is as large as a photograph's."""
    colors = np.stack([ids * 37 % 256, ids * 101 % 256, ids * 59 % 256], -1)
    shade = 30 * _smooth(rng, (24, 32), *ids.shape)[..., None]
    return np.clip(colors + shade + rng.normal(0, 8, colors.shape), 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, cells: tuple[int, int], height: int, width: int) -> np.ndarray:
    noise = Image.fromarray(rng.normal(size=cells).astype(np.float32))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def _describe(rng: np.random.Generator, ids: np.ndarray, segment: int) -> dict[str, Any]:
    rows, columns = np.nonzero(ids == segment)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    category = COCO_PANOPTIC[int(rng.integers(len(COCO_PANOPTIC)))].id
    text = " ".join(rng.choice(_WORDS, 20))
    return {
        "id": segment,
        "category_id": category,
        "iscrowd": 0,
        "bbox": box,
        "area": len(rows),
        "description": text,
    }
