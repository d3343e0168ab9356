"""LabelMe: a folder with a JSON per image, whose shapes are regions.

A shape's ``label`` is the category, its ``description`` the caption, its number the region's id. Shapes of one label
and one ``group_id`` are one region. Polygons, circles and masks become masks, rectangles boxes, points points.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import DataError, LocapError
from ...utils.untrusted import decode_png_mask, each_object, get, read_json, shown
from ..coco_geometry import read_segmentation
from ..records import Category, Record, Region, Rle, decode_mask, encode_mask
from .coco_instances import find_image
from .packed import OWN_FIX, ImageFinder, PackedReader

logger = logging.getLogger(__name__)
NOT_REGIONS = ("line", "linestrip")  # of LabelMe's shapes
_CORNERS = {"rectangle": 2, "circle": 2, "mask": 2, "point": 1}  # how many points each kind has; others any number


class LabelMeReader(PackedReader):
    """Records of LabelMe's files; the image id is the name of the file without ``.json``.

    Args:
        annotations: the folder, or one file.
        images: folder or folders that ``imagePath`` is relative to.

    Attributes:
        categories: the labels in alphabetical order, ids from 1.
        unmasked: (image id, region id) of regions without a mask.
        skipped: numbers of shapes that are no regions, by kind.
    """

    def __init__(self, annotations: str | Path, images: str | Path | Sequence[str | Path]) -> None:
        self.annotations, self._file = Path(annotations), shown(annotations)
        self._images = ImageFinder(images, self._file, OWN_FIX)
        self.image_folders = self._images.folders
        self.unmasked: list[tuple[str, int]] = []
        self.skipped: dict[str, int] = {}
        entries = list(self._entries(label_files(self.annotations)))
        labels = sorted({region["label"] for entry in entries for region in entry["regions"]})
        self.categories = tuple(Category(number, label) for number, label in enumerate(labels, start=1))
        super().__init__(entries, self._file)
        self._images.require_found()
        self._ids = {category.name: category.id for category in self.categories}
        if self.skipped:
            logger.warning("%s: left out are shapes that are no regions: %s", self._file, self.skipped)

    def _entries(self, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
        for file in files:
            body, where = read_json(file), shown(file)
            # paths that climb to a folder beside this one are usual; the folders that are looked in have it below them
            name = re.sub(r"^(\.\./)+", "", get(body, "imagePath", (str,), where).replace("\\", "/"))
            size = get(body, "imageHeight", (int,), where), get(body, "imageWidth", (int,), where)
            if min(size) <= 0:
                raise DataError("An image has no size.", where=where, value=f"{size[1]} x {size[0]}")
            image = find_image(self._images, name, where)
            regions = self._regions(body, size, where)
            self.unmasked += [(file.stem, region["id"]) for region in regions if "mask" not in region]
            yield {"id": file.stem, "size": size, "image": image, "regions": regions}

    def _regions(self, body: Any, size: tuple[int, int], where: str) -> list[dict[str, Any]]:
        regions: list[dict[str, Any]] = []
        groups: dict[tuple[str, Any], dict[str, Any]] = {}
        for shape, place in each_object(body, where, "shapes"):
            kind = get(shape, "shape_type", (str,), place) if shape.get("shape_type") else "polygon"
            if kind in NOT_REGIONS:
                self.skipped[kind] = self.skipped.get(kind, 0) + 1
                continue
            region = {"id": len(regions) + 1, "label": get(shape, "label", (str,), place)}
            region |= _geometry(shape, kind, size, place)
            text = get(shape, "description", (str,), place) if shape.get("description") else ""
            region |= {"caption": text} if text.strip() else {}
            group = shape.get("group_id")
            known = groups.setdefault((region["label"], group), region) if group is not None else region
            if known is region:
                regions.append(region)
            else:
                _join(known, region)
        return regions

    def _record(self, entry: dict[str, Any]) -> Record:
        regions = [
            Region(
                id=body["id"],
                category_id=self._ids[body["label"]],
                mask=body.get("mask"),
                box_xyxy=tuple(body["box"]) if "box" in body else None,
                points=tuple(tuple(point) for point in body.get("points", ())),
                captions=(body["caption"],) if "caption" in body else (),
            )
            for body in entry["regions"]
        ]
        return Record(entry["id"], *entry["size"], self._images.path(entry["image"]), regions)


def label_files(path: Path) -> list[Path]:
    """Return LabelMe's files of a folder, or the one file.

    Raises:
        DataError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    if not files:
        raise DataError("The folder has no LabelMe files.", where=shown(path.absolute()), allowed="a .json per image")
    return files


def is_labelme(document: Any) -> bool:
    """Return whether a document is one of LabelMe's."""
    return isinstance(document, dict) and {"shapes", "imagePath"} <= document.keys()


def _geometry(shape: Mapping[str, Any], kind: str, size: tuple[int, int], where: str) -> dict[str, Any]:
    points = _points(shape, kind, where)
    if kind == "point":
        return {"points": points}
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        box = [float(side) for side in (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))]
        if box[0] == box[2] or box[1] == box[3]:
            raise DataError("A rectangle has no area.", where=where, value=points)
        return {"box": box}
    if kind == "circle":
        (x, y), edge = points
        radius = math.hypot(edge[0] - x, edge[1] - y)
        rows, columns = np.ogrid[: size[0], : size[1]]
        return {"mask": encode_mask((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2)}
    if kind == "mask":
        return {"mask": _pasted(shape, points, size, where)}
    if kind == "polygon":
        return {"mask": read_segmentation([[v for point in points for v in point]], *size, where)}
    allowed = "polygon, rectangle, circle, mask, point"
    raise DataError("Unknown kind of shape.", where=where, value=kind, allowed=allowed)


def _points(shape: Mapping[str, Any], kind: str, where: str) -> list[list[float]]:
    points = get(shape, "points", (list,), where)
    if not all(isinstance(p, list) and len(p) == 2 and all(_is_number(v) for v in p) for p in points):
        raise DataError('"points" are not pairs of numbers.', where=where, value=points, allowed="[[x, y], …]")
    if kind == "rectangle" and len(points) == 4:  # as newer versions store turned ones: the corners
        xs, ys = zip(*points, strict=True)
        return [[min(xs), min(ys)], [max(xs), max(ys)]]
    if len(points) != _CORNERS.get(kind, len(points)):
        raise DataError(
            f"A {kind} has another number of points.", where=where, value=points, allowed=f"{_CORNERS[kind]}"
        )
    return points


def _pasted(shape: Mapping[str, Any], points: list[list[float]], size: tuple[int, int], where: str) -> Rle:
    """Return a mask shape on the image: a PNG of its box, whose corners are both inside."""
    try:
        data = base64.b64decode(get(shape, "mask", (str,), where), validate=True)
        part = decode_png_mask(data, where)
    except (binascii.Error, LocapError) as err:
        raise DataError("A mask is no base64 PNG.", where=where, value=str(err).splitlines()[0]) from None
    (x0, y0), (x1, y1) = ([int(v) for v in point] for point in points)
    inside = min(x0, y0) >= 0 and x1 < size[1] and y1 < size[0]
    if part.shape != (y1 - y0 + 1, x1 - x0 + 1) or not inside:
        value = f"{part.shape[1]} x {part.shape[0]} in the box {points}"
        raise DataError("A mask does not fit its box, or its box the image.", where=where, value=value)
    mask = np.zeros(size, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = part
    return encode_mask(mask)


def _join(region: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Add a shape to the region whose group it shares: masks and points are united, the first text stays."""
    if "mask" in region and "mask" in other:
        region["mask"] = encode_mask(decode_mask(region["mask"]) | decode_mask(other["mask"]))
    elif "points" in region and "points" in other:
        region["points"] = region["points"] + other["points"]
    for key in ("mask", "box", "points", "caption"):
        if key in other:
            region.setdefault(key, other[key])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
