"""A small world for detectron2 and panopticapi, and what is asked of them about it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from locap.datasets.records import Category, Record, Region, encode_mask

SIZE = (12, 16)
CATEGORIES = (Category(3, "cup", True, (1, 2, 3)), Category(7, "dog", True, (4, 5, 6)), Category(90, "sky", False))
POLYGONS = [
    [[1.0, 1.0, 9.0, 1.0, 9.0, 6.5, 1.0, 6.5]],
    [[2.5, 4.0, 12.0, 11.0, 3.0, 11.5], [13.0, 1.0, 15.5, 3.0, 13.0, 3.0]],
]
SEGMENTS = ((300, 3, (1, 6, 2, 8)), (70000, 7, (6, 11, 0, 9)), (16, 90, (0, 12, 10, 16)))  # id, category, y0 y1 x0 x1
SCORES, PREDICTED = (0.75, 0.9, 0.25), ((1, 6, 2, 8), (5, 11, 0, 9), (2, 4, 3, 5))
PIXELS = ((480, 640), (640, 480), (333, 500), (96, 96), (100, 2000))


def id_map() -> np.ndarray:
    """The true panoptic map of `SEGMENTS`, 0 elsewhere."""
    ids = np.zeros(SIZE, np.int32)
    for number, _, (y0, y1, x0, x1) in SEGMENTS:
        ids[y0:y1, x0:x1] = number
    return ids


def write_dataset(root: Path) -> None:
    """Write a COCO panoptic file of one image, and the instances file that belongs to it."""
    for folder in ("annotations", "val2017", "panoptic_val2017"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(root / "val2017" / "5.jpg")
    ids = id_map()
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(rgb).save(root / "panoptic_val2017" / "5.png")
    images = [{"id": 5, "file_name": "5.jpg", "height": SIZE[0], "width": SIZE[1]}]
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color or (0, 0, 0))}
        for c in CATEGORIES
    ]
    segments = [
        {"id": n, "category_id": c, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int((ids == n).sum())}
        for n, c, (y0, y1, x0, x1) in SEGMENTS
    ]
    annotations = [{"image_id": 5, "file_name": "5.png", "segments_info": segments}]
    panoptic = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic.json").write_text(json.dumps(panoptic))
    instances = [
        {"id": i + 1, "image_id": 5, "category_id": (7, 3)[i], "iscrowd": 0, "bbox": [1.5, 2, 3, 4.25], "area": 9.0}
        | {"segmentation": POLYGONS[i], "keypoints": [1, 2, 2, 0, 0, 0], "caption": f"object {i}"}
        for i in range(2)
    ]
    body = {"images": images, "annotations": instances, "categories": categories[:2]}
    (root / "annotations" / "instances.json").write_text(json.dumps(body))


def predicted_record() -> Record:
    """Three overlapping predictions with masks of their own."""
    regions = []
    for number, (score, (y0, y1, x0, x1)) in enumerate(zip(SCORES, PREDICTED, strict=True)):
        mask = np.zeros(SIZE, bool)
        mask[y0:y1, x0:x1] = True
        box = (float(x0), float(y0), float(x1), float(y1))
        category = (3, 7, 3)[number]
        regions.append(Region(number + 1, category, encode_mask(mask), box, captions=(f"thing {number}",), score=score))
    return Record("five", *SIZE, regions=regions)


def observe(root: Path) -> dict[str, Any]:
    """Ask the real libraries; ``root`` holds `write_dataset`'s files."""
    return {
        "masks": _masks(),
        "panoptic": _combined(),
        "catalog": _loaded(root),
        "colours": _colours(),
        "sizes": _sizes(),
        "quality": _quality(root),
    }


def _masks() -> dict[str, Any]:
    from detectron2.structures import BitMasks, PolygonMasks

    masks = BitMasks.from_polygon_masks([[np.array(p) for p in parts] for parts in POLYGONS], *SIZE)
    polygons = PolygonMasks([[np.array(p) for p in parts] for parts in POLYGONS])
    return {
        "rows": masks.tensor.int().tolist(),
        "boxes": masks.get_bounding_boxes().tensor.tolist(),
        "polygon_boxes": polygons.get_bounding_boxes().tensor.tolist(),
    }


def _combined() -> dict[str, Any]:
    from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs

    from locap.datasets.detectron2_structures import to_instances

    semantic = torch.zeros(SIZE, dtype=torch.int64)
    semantic[:, 9:] = 1
    found = to_instances(predicted_record(), CATEGORIES)
    panoptic, segments = combine_semantic_and_instance_outputs(found, semantic, 0.5, 4, 0.5)
    return {"map": panoptic.tolist(), "segments": segments}


def _loaded(root: Path) -> dict[str, Any]:
    from detectron2.data.datasets.coco import load_coco_json
    from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

    from locap.datasets.detectron2_catalog import metadata_of

    files, images = root / "annotations", str(root / "val2017")
    panoptic = load_coco_panoptic_json(
        str(files / "panoptic.json"), images, str(root / "panoptic_val2017"), metadata_of(CATEGORIES)
    )
    names = ["caption"]
    instances = load_coco_json(str(files / "instances.json"), images, "locap_recorded", extra_annotation_keys=names)
    return json.loads(json.dumps({"panoptic": panoptic, "instances": instances}).replace(str(root), "<root>"))


def _colours() -> list[list[int]]:
    from panopticapi.utils import id2rgb

    return [[int(value) for value in id2rgb(number)] for number, *_ in SEGMENTS]


def _sizes() -> list[list[int]]:
    from detectron2.data.transforms import ResizeShortestEdge

    return [list(ResizeShortestEdge.get_output_shape(*size, 800, 1333)) for size in PIXELS]


def _quality(root: Path) -> dict[str, float]:
    from panopticapi.evaluation import pq_compute

    write_prediction(root)
    files = root / "annotations"
    with contextlib.redirect_stdout(io.StringIO()):
        found = pq_compute(
            str(files / "panoptic.json"),
            str(files / "predicted.json"),
            str(root / "panoptic_val2017"),
            str(root / "predicted"),
        )
    return {f"{part}_{name}": found[part][name] for part in ("All", "Things", "Stuff") for name in ("pq", "sq", "rq")}


def write_prediction(root: Path) -> None:
    """Write the true map moved by a pixel to the right as a prediction, in COCO's form."""
    ids = np.roll(id_map(), 1, axis=1)
    (root / "predicted").mkdir(exist_ok=True)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(rgb).save(root / "predicted" / "5.png")
    segments = [{"id": number, "category_id": category} for number, category, _ in SEGMENTS]
    body = {"annotations": [{"image_id": 5, "file_name": "5.png", "segments_info": segments}]}
    (root / "annotations" / "predicted.json").write_text(json.dumps(body))
