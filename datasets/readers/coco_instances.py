"""COCO-style JSON of one's own: boxes, masks, captions and expressions of regions; the smallest is

    {"images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
     "annotations": [{"id": 1, "image_id": 1, "bbox": [x, y, width, height], "caption": "a red mug on the desk"}]}

Of an annotation
    bbox or segmentation    one of them; polygons, or a run-length encoding of either kind
    caption, expression     a text or a list of interchangeable texts; an expression refers to this region alone
    category_id             one of ``categories``; a file without ``categories`` has one, "object"
    iscrowd, area, score, keypoints   as in COCO

``images[].captions`` are of the whole image, and so are annotations with a caption alone, as in COCO's caption files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError, LocapError
from ...utils.untrusted import compressed_rle, each_object, get, read_json, shown
from ..categories import things_first
from ..coco_geometry import box_fields, read_box_xywh, read_segmentation, watch_boxes
from ..records import Category, Record, Region
from .packed import OBJECT, OWN_FIX, ImageFinder, PackedReader, coco_names
from .visual_genome import size_of


class CocoInstancesReader(PackedReader):
    """Records of a COCO-style file.

    Args:
        annotations: the JSON file.
        images: folder or folders of the images.
        document: its content, when it is parsed already.

    Attributes:
        categories: those of the file, things first; `OBJECT` where it has none.
        unmasked: (image id, region id) of regions without a mask.
    """

    def __init__(
        self, annotations: str | Path, images: str | Path | Sequence[str | Path], document: Any = None
    ) -> None:
        self.annotations, self._file = Path(annotations), shown(annotations)
        document = read_json(annotations) if document is None else document
        self.categories, self._named = read_categories(document, self._file)
        self._images = ImageFinder(images, self._file, OWN_FIX)
        self.image_folders = self._images.folders
        self.unmasked: list[tuple[int | str, int]] = []
        entries = watch_boxes(self._entries(document), _boxes, self._file)
        super().__init__(entries, self._file)
        self._images.require_found()

    def _entries(self, document: Any) -> Iterator[dict[str, Any]]:
        entries = self._image_entries(document)
        known, seen = {category.id for category in self.categories}, set()
        for body, where in each_object(document, self._file, "annotations"):
            image_id = get(body, "image_id", (int, str), where)
            region_id = get(body, "id", (int,), where)
            where = f"{where} (id {region_id})"
            if image_id not in entries:
                raise DataError("An annotation belongs to no image of the file.", where=where, value=image_id)
            if region_id in seen:
                raise DataError("Two annotations have the same id.", where=where, value=region_id)
            seen.add(region_id)
            self._add(entries[image_id], body, known, where)
        yield from entries.values()

    def _image_entries(self, document: Any) -> dict[int | str, dict[str, Any]]:
        entries: dict[int | str, dict[str, Any]] = {}
        for body, where in each_object(document, self._file, "images"):
            image_id = get(body, "id", (int, str), where)
            if image_id in entries:
                raise DataError("Two images have the same id.", where=where, value=image_id)
            name = get(body, "file_name", (str,), where)
            image = find_image(self._images, name, where)
            captions = texts_of(body, "captions", where)
            entries[image_id] = {
                "id": image_id,
                "size": size_of(body, where),
                "image": image,
                "captions": captions,
                "regions": [],
            }
        return entries

    def _add(self, entry: dict[str, Any], body: dict[str, Any], known: set[int], where: str) -> None:
        captions = texts_of(body, "caption", where)
        box, segmentation = body.get("bbox"), body.get("segmentation")
        if box is None and not segmentation:
            if not captions:
                allowed = '"bbox", "segmentation", or a "caption" of the whole image'
                raise DataError("An annotation has neither place nor caption.", where=where, allowed=allowed)
            entry["captions"] += captions
            return
        region = {"id": body["id"], "captions": captions, "expressions": texts_of(body, "expression", where)}
        if box is not None:
            read_box_xywh(box, where)
            if min(box[2:]) <= 0 and not segmentation:
                raise DataError("A box has no area.", where=where, value=box, allowed="[x, y, width, height], both > 0")
            region["box"] = box
        if segmentation:
            region["mask"] = checked_segmentation(segmentation, *entry["size"], where)
        elif not body.get("iscrowd"):
            self.unmasked.append((entry["id"], body["id"]))
        region["category"] = self._category(body, known, where)
        region |= {key: body[key] for key in ("area", "score") if _number(body, key, where)}
        region["crowd"] = bool(get(body, "iscrowd", (int, bool), where)) if "iscrowd" in body else False
        region["keypoints"] = _keypoints(body, where)
        entry["regions"].append({key: value for key, value in region.items() if value is not False and value != []})

    def _category(self, body: Mapping[str, Any], known: set[int], where: str) -> int | None:
        if not self._named and body.get("category_id") in (None, OBJECT.id):
            return OBJECT.id
        if body.get("category_id") is None:
            return None
        category = get(body, "category_id", (int,), where)
        if category not in known:
            allowed = ", ".join(map(str, sorted(known)[:20])) if self._named else 'one of a list "categories"'
            raise DataError("An annotation has an unknown category.", where=where, value=category, allowed=allowed)
        return category

    def _record(self, entry: dict[str, Any]) -> Record:
        image, captions = self._images.path(entry["image"]), tuple(entry["captions"])
        regions = [_region(region, entry["size"]) for region in entry["regions"]]
        return Record(entry["id"], *entry["size"], image, regions, captions=captions)


def read_categories(document: Any, file: str) -> tuple[tuple[Category, ...], bool]:
    """Return the categories of a COCO-style document, things first, and whether it names any; else `OBJECT`."""
    found: dict[int, Category] = {}
    for body, where in each_object(document, file, "categories") if document.get("categories") else ():
        number, name = get(body, "id", (int,), where), get(body, "name", (str,), where)
        if number in found:
            raise DataError("Two categories have the same id.", where=where, value=number)
        color = tuple(body["color"]) if isinstance(body.get("color"), list) else None
        found[number] = Category(number, name, bool(body.get("isthing", 1)), color)
    return (things_first(list(found.values())), True) if found else ((OBJECT,), False)


def find_image(images: ImageFinder, name: str, where: str) -> str:
    """Find an image of a file as `ImageFinder` does; a name that leaves its folder is told with its place."""
    try:
        return images.find(coco_names(name))
    except DataError as err:
        raise DataError(err.what, where=where, value=name, allowed="a path relative to the folder of images") from None


def checked_segmentation(value: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Return polygons as they are, or a run-length encoding in its text form; both are checked.

    Raises:
        DataError: it is neither, is malformed, or has another size than its image.
    """
    if not isinstance(value, dict):
        read_segmentation(value, height, width, where)
        return {"polygons": value}
    try:
        mask = compressed_rle(value)
    except LocapError as err:
        raise DataError(err.what, where=where, value=err.value, allowed=err.allowed) from None
    if mask["size"] != [height, width]:
        raise DataError(
            "A mask has another size than its image.", where=where, value=mask["size"], allowed=f"[{height}, {width}]"
        )
    return mask


def texts_of(body: Mapping[str, Any], key: str, where: str) -> list[str]:
    """Return a text or a list of texts as a list, blank ones left out."""
    value = body.get(key)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        allowed = "a text or a list of texts"
        raise DataError(f'"{key}" is of the wrong type.', where=where, value=value, allowed=allowed)
    return [text for text in texts if text.strip()]


def _number(body: Mapping[str, Any], key: str, where: str) -> bool:
    return body.get(key) is not None and get(body, key, (int, float), where) is not None


def _keypoints(body: Mapping[str, Any], where: str) -> list[float]:
    values = get(body, "keypoints", (list,), where) if body.get("keypoints") else []
    if len(values) % 3 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise DataError("Keypoints are not numbers.", where=where, value=values, allowed="[x, y, visibility, x, …]")
    return values if any(values) else []


def _boxes(entry: Mapping[str, Any]) -> list[Sequence[float]]:
    return [region["box"] for region in entry["regions"] if "box" in region]


def _region(body: Mapping[str, Any], size: tuple[int, int]) -> Region:
    mask = body.get("mask")
    if mask is not None and "polygons" in mask:
        mask = read_segmentation(mask["polygons"], *size, "")
    return Region(
        id=body["id"],
        category_id=body["category"],
        mask=mask,
        keypoints=tuple(_triples(body.get("keypoints", ()))),
        captions=tuple(body.get("captions", ())),
        expressions=tuple(body.get("expressions", ())),
        is_crowd=body.get("crowd", False),
        area=body.get("area"),
        score=body.get("score"),
        **(box_fields(*body["box"]) if "box" in body else {}),
    )


def _triples(values: Sequence[Any]) -> Iterable[tuple[Any, Any, Any]]:
    return zip(values[::3], values[1::3], values[2::3], strict=True)
