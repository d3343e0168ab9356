"""Visual Genome's captioned boxes: the published files, and GRiT's COCO-style ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted import each_object, get, read_json, shown
from ..coco_geometry import box_fields, read_box_xywh, watch_boxes
from ..records import Record, Region
from .packed import OBJECT, ImageFinder, PackedReader, coco_names

logger = logging.getLogger(__name__)
Folders = str | Path | Sequence[str | Path]
IMAGE_FOLDERS = ("VG_100K", "VG_100K_2")


class _CaptionedBoxes(PackedReader):
    """Records whose regions have a box and one caption; boxes keep what reaches over the image's border.

    Attributes:
        skipped: (image id, region id, why) of each region left out: its box has no area, or its caption is blank.
    """

    def __init__(self, file: Path, images: Folders, entries: Iterator[dict[str, Any]]) -> None:
        self.skipped: list[tuple[int | str, int, str]] = []
        self._images = ImageFinder(images, shown(file))
        watched = watch_boxes(entries, lambda entry: [region[1] for region in entry["regions"]], shown(file))
        super().__init__(watched, shown(file))
        self._images.require_found()
        if self.skipped:
            message = "%s: %d regions are left out (first: image %s, region %s, %s)"
            logger.warning(message, shown(file), len(self.skipped), *self.skipped[0])

    def _usable(self, image_id: int | str, region_id: int, box: Sequence[float], caption: str) -> bool:
        why = "its box has no area" if min(box[2:]) <= 0 else None if caption.strip() else "its caption is blank"
        if why:
            self.skipped.append((image_id, region_id, why))
        return why is None

    def _record(self, entry: dict[str, Any]) -> Record:
        regions = [
            Region(i, OBJECT.id, captions=(caption,), is_crowd=bool(crowd), **box_fields(*box))
            for i, box, caption, crowd in entry["regions"]
        ]
        return Record(entry["id"], *entry["size"], self._images.path(entry["image"]), regions)


class VisualGenomeReader(_CaptionedBoxes):
    """Records of ``region_descriptions.json``; a region's caption is its phrase. Images without a region stay.

    Args:
        annotations: ``region_descriptions.json``, of version 1.0 or 1.2.
        image_data: ``image_data.json``, which has sizes and file names.
        images: folder or folders with ``VG_100K`` and ``VG_100K_2``, or with all images in one place.
        splits: a JSON of lists of image ids by split, such as ``densecap_splits.json``.
        split: which one to read; an image of none is in no split. None reads every image.
    """

    def __init__(
        self,
        annotations: str | Path,
        image_data: str | Path,
        images: Folders,
        *,
        splits: str | Path | None = None,
        split: str | None = None,
    ) -> None:
        self.annotations = Path(annotations)
        chosen = None if split is None else _read_split(Path(splits or "densecap_splits.json"), split)
        super().__init__(self.annotations, images, self._entries(_read_image_data(Path(image_data)), chosen))

    def _entries(self, images: Mapping[int, tuple[Any, ...]], chosen: set[int] | None) -> Iterator[dict[str, Any]]:
        for body, where in each_object(read_json(self.annotations), shown(self.annotations)):
            regions = get(body, "regions", (list,), where)
            if "id" not in body and not regions:
                continue  # nothing says which image this is
            image_id = get(*((body, "id") if "id" in body else (regions[0], "image_id")), (int,), where)
            if chosen is not None and image_id not in chosen:
                continue
            if image_id not in images:
                raise DataError("The size of an image is not known.", where=where, value=image_id)
            url, size = images[image_id]
            found = [self._region(image_id, item, place) for item, place in each_object(body, where, "regions")]
            image = self._images.find(_raw_names(url))
            yield {"id": image_id, "size": size, "image": image, "regions": [item for item in found if item]}

    def _region(self, image_id: int, body: Any, where: str) -> list[Any] | None:
        box = [get(body, key, (int, float), where) for key in ("x", "y", "width", "height")]
        region_id = get(body, "region_id" if "region_id" in body else "id", (int,), where)
        caption = get(body, "phrase", (str,), where)
        return [region_id, box, caption, 0] if self._usable(image_id, region_id, box, caption) else None


class GritReader(_CaptionedBoxes):
    """Records of GRiT's ``train.json`` and ``test.json``: COCO's layout with a ``caption`` in every annotation.

    Args:
        annotations: the JSON file.
        images: folder or folders of the images, which may also be in ``VG_100K`` and ``VG_100K_2`` below.
    """

    def __init__(self, annotations: str | Path, images: Folders) -> None:
        self.annotations = Path(annotations)
        super().__init__(self.annotations, images, self._entries())

    def _entries(self) -> Iterator[dict[str, Any]]:
        file = shown(self.annotations)
        document = read_json(self.annotations)
        entries: dict[int | str, dict[str, Any]] = {}
        for body, where in each_object(document, file, "images"):
            image_id = get(body, "id", (int, str), where)
            if image_id in entries:
                raise DataError("An image is listed twice.", where=where, value=image_id)
            name = get(body, "file_name", (str,), where)
            image = self._images.find((*coco_names(name), *(f"{folder}/{name}" for folder in IMAGE_FOLDERS)))
            entries[image_id] = {"id": image_id, "size": size_of(body, where), "image": image, "regions": []}
        for body, where in each_object(document, file, "annotations"):
            image_id = get(body, "image_id", (int, str), where)
            if image_id not in entries:
                raise DataError("An annotation belongs to no image of the file.", where=where, value=image_id)
            region_id, caption = get(body, "id", (int,), where), get(body, "caption", (str,), where)
            read_box_xywh(body.get("bbox"), where)
            if self._usable(image_id, region_id, body["bbox"], caption):
                region = [region_id, body["bbox"], caption, int(bool(body.get("iscrowd", 0)))]
                entries[image_id]["regions"].append(region)
        del document
        yield from entries.values()


def size_of(body: Any, where: str) -> tuple[int, int]:
    """Return (height, width) of an image's entry; raises `DataError` unless both are positive."""
    height, width = get(body, "height", (int,), where), get(body, "width", (int,), where)
    if height <= 0 or width <= 0:
        raise DataError("An image has no size.", where=where, value=f"{width} x {height}")
    return height, width


def _read_image_data(path: Path) -> dict[int, tuple[str, tuple[int, int]]]:
    """Return (url, (height, width)) by image id."""
    images = {}
    for body, where in each_object(read_json(path), shown(path)):
        image_id = get(body, "image_id" if "image_id" in body else "id", (int,), where)
        images[image_id] = (get(body, "url", (str,), where), size_of(body, where))
    return images


def _read_split(path: Path, split: str) -> set[int]:
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get(split), list):
        allowed = ", ".join(document) if isinstance(document, dict) else "an object of lists of image ids"
        raise DataError("There is no such split.", where=shown(path), value=split, allowed=allowed)
    return set(document[split])


def _raw_names(url: str) -> tuple[str, ...]:
    """Return the paths an image may have: the last two parts of its address, or the last alone."""
    parts = url.split("/")
    return ("/".join(parts[-2:]), parts[-1], f"images/{parts[-1]}")
