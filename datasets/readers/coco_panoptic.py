"""COCO panoptic: one JSON of segments, one RGB PNG of ids per image."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError, nearest
from ...utils.id_maps import PADDING_ID
from ...utils.untrusted import read_json, resolve_under, shown
from ..categories import things_first
from ..records import Category, Record, Region
from .packed import FIX, PackedReader

logger = logging.getLogger(__name__)


class CocoPanopticReader(PackedReader):
    """Records of a COCO panoptic file, read lazily.

    The JSON is checked once, completely, when the reader is made; an image and its PNG are read when a sample is.

    Args:
        annotations: the JSON file.
        images: folder of the JPEGs, ``images[].file_name`` lies in it.
        panoptic: folder of the PNGs, id = R + 256 G + 65536 B.
        categories: classes in the order of contiguous indices; None takes those of the file, things first.

    Attributes:
        categories: classes in the order of contiguous indices.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        panoptic: str | Path,
        *,
        categories: Sequence[Category] | None = None,
    ) -> None:
        self.annotations, self.images, self.panoptic = Path(annotations), Path(images), Path(panoptic)
        document = _parse(self.annotations)
        self.categories = tuple(categories) if categories is not None else _categories(document, self.annotations)
        entries = list(self._select(self._entries(document)))
        self._require_files(self.images, [entry["image_file"] for entry in entries], "images")
        self._require_files(self.panoptic, [entry["panoptic_file"] for entry in entries], "panoptic segmentations")
        super().__init__(entries, shown(self.annotations))

    def _record(self, entry: dict[str, Any]) -> Record:
        return Record(
            image_id=entry["image_id"],
            height=entry["height"],
            width=entry["width"],
            image=str(resolve_under(self.images, entry["image_file"])),
            id_map=str(resolve_under(self.panoptic, entry["panoptic_file"])),
            regions=[self._region(segment) for segment in entry["segments_info"]],
        )

    def _region(self, segment: Mapping[str, Any]) -> Region:
        return Region(
            id=segment["id"],
            category_id=segment["category_id"],
            box_xyxy=_box(segment.get("bbox")),
            is_crowd=bool(segment.get("iscrowd", 0)),
            area=segment.get("area"),
        )

    def _select(self, entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Choose the images to keep; subclasses filter here."""
        return entries

    def _entries(self, document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Check every annotation against the rest of the file."""
        file, known = shown(self.annotations), {category.id: category.name for category in self.categories}
        images = _images(document, file)
        seen: set[int] = set()
        for i, annotation in enumerate(document["annotations"]):
            where = f"{file}: annotations[{i}]"
            image_id = _field(annotation, "image_id", int, where)
            if image_id in seen:
                raise DataError("Two annotations have the same image.", where=where, value=image_id)
            if image_id not in images:
                raise DataError("An annotation belongs to no image of the file.", where=where, value=image_id)
            seen.add(image_id)
            yield _entry(annotation, images[image_id], known, where)
        if len(seen) < len(images):
            logger.warning(
                "%s: %d of %d images have no annotation and are not read", file, len(images) - len(seen), len(images)
            )

    def _require_files(self, folder: Path, names: Sequence[str], what: str) -> None:
        """Compare the names with a listing of the folder, which is far cheaper than asking for each file."""
        if not folder.is_dir():
            raise DataError(f"The folder of the {what} does not exist.", where=shown(folder.absolute()), fix=FIX)
        present = set(os.listdir(folder))
        missing = [name for name in names if name not in present and not resolve_under(folder, name).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(names)} {what} named by the JSON are not there.",
                where=f"{shown(folder)} (from {shown(self.annotations)})",
                value=", ".join(missing[:3]) + (", …" if len(missing) > 3 else ""),
                fix=FIX,
            )


def _parse(path: Path) -> dict[str, Any]:
    document = read_json(path)
    lists = ("images", "annotations")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in lists):
        raise DataError(
            "Not a COCO panoptic file.", where=shown(path), allowed='an object with lists "images", "annotations"'
        )
    return document


def _images(document: Mapping[str, Any], file: str) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for i, image in enumerate(document["images"]):
        where = f"{file}: images[{i}]"
        image_id = _field(image, "id", int, where)
        if image_id in images:
            raise DataError("Two images have the same id.", where=where, value=image_id)
        images[image_id] = image
    return images


def _categories(document: Mapping[str, Any], path: Path) -> tuple[Category, ...]:
    found = []
    for i, body in enumerate(document.get("categories") or []):
        where = f"{shown(path)}: categories[{i}]"
        color = tuple(body["color"]) if isinstance(body, dict) and body.get("color") else None
        thing = bool(_field(body, "isthing", int, where))
        found.append(Category(_field(body, "id", int, where), _field(body, "name", str, where), thing, color))
    if not found or len({category.id for category in found}) < len(found):
        raise DataError("The file needs categories with distinct ids.", where=shown(path), value=len(found))
    return things_first(found)


def _field(body: Any, key: str, kind: type, where: str) -> Any:
    """Return ``body[key]``, which must be there and of a kind."""
    if not isinstance(body, dict):
        raise DataError("This is not an object.", where=where, value=body)
    if key not in body:
        close = nearest(key, body)
        fix = f"is {close!r} meant?" if close else None
        raise DataError(f"The field {key!r} is missing.", where=where, allowed=kind.__name__, fix=fix)
    value = body[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise DataError(f"The field {key!r} has the wrong type.", where=where, value=value, allowed=kind.__name__)
    return value


def _entry(annotation: dict[str, Any], image: dict[str, Any], known: Mapping[int, str], where: str) -> dict[str, Any]:
    """Return what a record needs of one annotation, checked."""
    panoptic_file = _field(annotation, "file_name", str, where)
    segments = _field(annotation, "segments_info", list, where)
    of_image = f"{where} (its image)"
    height, width = _field(image, "height", int, of_image), _field(image, "width", int, of_image)
    if height <= 0 or width <= 0:
        raise DataError("An image has no size.", where=of_image, value=f"{width} x {height}")
    seen: set[int] = set()
    for k, segment in enumerate(segments):
        _check_segment(segment, seen, known, f"{where}.segments_info[{k}] (image {image['id']})")
    return {
        "image_id": image["id"],
        "height": height,
        "width": width,
        "image_file": _field(image, "file_name", str, of_image),
        "panoptic_file": panoptic_file,
        "segments_info": segments,
    }


def _check_segment(segment: Any, seen: set[int], known: Mapping[int, str], where: str) -> None:
    segment_id = _field(segment, "id", int, where)
    category = _field(segment, "category_id", int, where)
    if not 0 < segment_id < PADDING_ID:
        allowed = f"1 to {PADDING_ID - 1}; 0 is void, {PADDING_ID} is padding"
        raise DataError("A segment has an impossible id.", where=where, value=segment_id, allowed=allowed)
    if segment_id in seen:
        raise DataError("Two segments of one image have the same id.", where=where, value=segment_id)
    if category not in known:
        allowed = f"one of the {len(known)} category ids, {min(known)} to {max(known)} with gaps"
        raise DataError("A segment has an unknown category.", where=where, value=category, allowed=allowed)
    if segment.get("area") is not None and _field(segment, "area", int, where) <= 0:
        raise DataError(
            "A segment has zero area.",
            where=where,
            value=f"segment {segment_id}, area {segment['area']}",
            allowed="1 pixel or more",
            fix="remove the segment from the JSON",
        )
    seen.add(segment_id)


def _box(box: Any) -> tuple[float, float, float, float] | None:
    """Turn COCO's (x, y, width, height) into corners; an unusable box is no box, since the mask has the truth."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
        return None
    x, y, width, height = map(float, box)
    return (x, y, x + width, y + height)
