"""RefCOCO, RefCOCO+ and RefCOCOg in REFER's, MDETR's and UNINEXT's layout: one record per image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError, LocapError
from ...utils.untrusted import compressed_rle, each_object, get, objects, read_json, read_plain_pickle, shown
from ..coco_geometry import box_fields, read_box_xywh, read_segmentation, watch_boxes
from ..records import Record, Region, Rle
from .packed import OBJECT, ImageFinder, PackedReader, coco_names
from .visual_genome import size_of

logger = logging.getLogger(__name__)
Folders = str | Path | Sequence[str | Path]


class _Referring(PackedReader):
    """Records whose regions have ``expressions``, a box and, where the file has one, a mask.

    A mask stays what the file has, polygons or run lengths, until its record is built; then it is run-length encoded,
    and no pixel is drawn. Blank expressions are left out and counted, and regions and images left without any.

    Args:
        images: folder or folders of the images, which are looked for in it and in ``train2014`` and the like below.
        per_expression: a region for each expression, whose id is that of the expression, as the protocol ``referring``
            scores them; else a region for each object, whose id is that of its annotation.

    Attributes:
        blank: number of blank expressions.
    """

    def __init__(self, file: Path, images: Folders, entries: Iterable[dict[str, Any]], *, per_expression: bool) -> None:
        self.per_expression, self.blank = per_expression, 0
        self._images = ImageFinder(images, shown(file))
        watched = watch_boxes(entries, lambda entry: [item["box"] for item in entry["objects"]], shown(file))
        super().__init__(filter(None, map(self._worded, watched)), shown(file))
        self._images.require_found()
        if self.blank:
            logger.warning("%s: %d blank expressions are left out", shown(file), self.blank)

    def _worded(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        for item in entry["objects"]:
            kept = [(i, text) for i, text in item["texts"] if text.strip()]
            self.blank += len(item["texts"]) - len(kept)
            item["texts"] = kept
        entry["objects"] = [item for item in entry["objects"] if item["texts"]]
        entry["image"] = self._images.find(entry["image"]) if entry["objects"] else ""
        return entry if entry["objects"] else None

    def _record(self, entry: dict[str, Any]) -> Record:
        record = Record(entry["id"], *entry["size"], self._images.path(entry["image"]))
        for item in entry["objects"]:
            shape: dict[str, Any] = box_fields(*item["box"])
            if item["mask"] is not None:
                shape["mask"] = _mask(item["mask"], record.height, record.width, item["where"])
            texts = tuple(text for _, text in item["texts"])
            worded = [(i, (text,)) for i, text in item["texts"]] if self.per_expression else [(item["id"], texts)]
            record.regions += [Region(i, OBJECT.id, expressions=said, **shape) for i, said in worded]
        return record


class ReferReader(_Referring):
    """Records of REFER's ``refs(<version>).p`` and its ``instances.json``.

    The pickle is read without importing or calling anything (`read_plain_pickle`). An expression is its ``sent``, the
    normalised form, its id ``sent_id``; a region's id is ``ann_id``.

    Args:
        annotations: ``refs(unc).p`` or another of REFER's versions.
        instances: ``instances.json``, which has boxes, masks and sizes.
        images, per_expression: as above.
        split: train, val, test, testA or testB; None reads all.
    """

    def __init__(
        self,
        annotations: str | Path,
        instances: str | Path,
        images: Folders,
        *,
        split: str | None = None,
        per_expression: bool = False,
    ) -> None:
        self.annotations, self.instances = Path(annotations), Path(instances)
        super().__init__(self.annotations, images, self._entries(split), per_expression=per_expression)

    def _entries(self, split: str | None) -> Iterable[dict[str, Any]]:
        refs = objects(read_plain_pickle(self.annotations), shown(self.annotations))
        splits = {get(body, "split", (str,), where) for body, where in refs}
        if split is not None and split not in splits:
            allowed = ", ".join(sorted(splits))
            raise DataError("There is no such split.", where=shown(self.annotations), value=split, allowed=allowed)
        texts: dict[int, list[tuple[int, str]]] = {}  # by annotation, whose order is that of the references
        places: dict[int, str] = {}
        for body, where in refs:
            if split is None or body["split"] == split:
                annotation = get(body, "ann_id", (int,), where)
                places.setdefault(annotation, where)
                texts.setdefault(annotation, []).extend(
                    (get(item, "sent_id", (int,), place), get(item, "sent", (str,), place))
                    for item, place in each_object(body, where, "sentences")
                )
        del refs
        return self._located(texts, places)

    def _located(self, texts: Mapping[int, Any], places: Mapping[int, str]) -> Iterable[dict[str, Any]]:
        file, document = shown(self.instances), read_json(self.instances)
        annotations = {}
        for body, where in each_object(document, file, "annotations"):
            if (annotation := get(body, "id", (int,), where)) in texts:
                annotations[annotation] = (body, where)
        images = {
            get(body, "id", (int,), where): (body, where) for body, where in each_object(document, file, "images")
        }
        del document
        entries: dict[int, dict[str, Any]] = {}
        for annotation, said in texts.items():
            if annotation not in annotations:
                value, allowed = f"ann_id {annotation}", f"annotations of {file}"
                raise DataError(
                    "A reference is to no annotation.", where=places[annotation], value=value, allowed=allowed
                )
            body, where = annotations[annotation]
            image_id = get(body, "image_id", (int,), where)
            if image_id not in images:
                raise DataError("An annotation belongs to no image of the file.", where=where, value=image_id)
            entry = entries.setdefault(image_id, _entry(image_id, *images[image_id]))
            entry["objects"].append(_object(annotation, said, body, body.get("segmentation"), where))
        return entries.values()


class MdetrReferReader(_Referring):
    """Records of MDETR's layout: every expression is an item of ``images`` of its own, with one annotation.

    Items have the expression as ``caption``, their image as ``original_id`` or ``original_img_id``, optionally
    ``refexp_id`` (else the annotation's id counts). Annotations of one object share ``original_id``; without it, each
    is an object of its own.

    Args:
        annotations: the JSON file, such as ``refcoco_unc_train.json``.
        images, per_expression: as above.
    """

    def __init__(self, annotations: str | Path, images: Folders, *, per_expression: bool = False) -> None:
        self.annotations = Path(annotations)
        super().__init__(self.annotations, images, self._entries(), per_expression=per_expression)

    def _entries(self) -> Iterable[dict[str, Any]]:
        file, document = shown(self.annotations), read_json(self.annotations)
        items = {
            get(body, "id", (int, str), where): (body, where) for body, where in each_object(document, file, "images")
        }
        entries: dict[int | str, dict[str, Any]] = {}
        known: dict[tuple[int | str, int], dict[str, Any]] = {}
        for body, where in each_object(document, file, "annotations"):
            key = get(body, "image_id", (int, str), where)
            if key not in items:
                raise DataError("An annotation belongs to no expression of the file.", where=where, value=key)
            item, place = items[key]
            name = "original_id" if "original_id" in item else "original_img_id"
            image_id = get(item, name, (int, str), place)
            entry = entries.setdefault(image_id, _entry(image_id, item, place))
            own_id = get(body, "id", (int,), where)
            said = get(item, "refexp_id", (int,), place) if item.get("refexp_id") is not None else own_id
            object_id = get(body, "original_id", (int,), where) if body.get("original_id") is not None else own_id
            if (image_id, object_id) not in known:
                known[image_id, object_id] = _object(object_id, [], body, body.get("segmentation"), where)
                entry["objects"].append(known[image_id, object_id])
            known[image_id, object_id]["texts"].append((said, get(item, "caption", (str,), place)))
        return entries.values()


class UninextReferReader(_Referring):
    """Records of UNINEXT's ``instances.json``: a list of objects with their ``expressions`` under ``train``.

    An expression's id counts the expressions read, from 0, an object's the objects.

    Args:
        annotations: the JSON file.
        images, per_expression: as above; an image of COCO is ``COCO_train2014_<12 digits>.jpg``, another ``<id>.jpg``.
        source: read only objects whose ``data_source`` is this, ``coco`` or ``vg``; None reads all.
        key: the list to read.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: Folders,
        *,
        source: str | None = None,
        key: str = "train",
        per_expression: bool = False,
    ) -> None:
        self.annotations = Path(annotations)
        super().__init__(self.annotations, images, self._entries(source, key), per_expression=per_expression)

    def _entries(self, source: str | None, key: str) -> Iterable[dict[str, Any]]:
        entries: dict[tuple[Any, int | str], dict[str, Any]] = {}
        number = count = 0
        for body, where in each_object(read_json(self.annotations), shown(self.annotations), key):
            origin = body.get("data_source")
            if source is not None and origin != source:
                continue
            image_id = get(body, "image_id", (int, str), where)
            names = _uninext_names(image_id, origin)
            entry = entries.setdefault((origin, image_id), _entry(image_id, body, where, names))
            texts = [
                get({"expression": t}, "expression", (str,), where) for t in get(body, "expressions", (list,), where)
            ]
            said = list(enumerate(texts, start=number))
            number, count = number + len(said), count + 1
            entry["objects"].append(_object(count - 1, said, body, body.get("mask"), where))
        return entries.values()


def _images(document: Any, file: str) -> Iterator[tuple[dict[str, Any], str]]:
    return each_object(document, file, "images")


def _uninext_names(image_id: int | str, origin: Any) -> tuple[str, ...]:
    if origin == "coco" and str(image_id).isdecimal():
        return coco_names(f"COCO_train2014_{int(image_id):012d}.jpg")
    return (f"{image_id}.jpg", f"VG_100K/{image_id}.jpg", f"VG_100K_2/{image_id}.jpg")


def _entry(image_id: int | str, body: Any, where: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the entry of an image without objects; its ``image`` are the paths it may have."""
    names = coco_names(get(body, "file_name", (str,), where)) if names is None else names
    return {"id": image_id, "size": size_of(body, where), "image": names, "objects": []}


def _object(object_id: int, texts: list[Any], body: Any, mask: Any, where: str) -> dict[str, Any]:
    read_box_xywh(body.get("bbox"), where)
    if not isinstance(mask, (list, dict, type(None))):
        raise DataError("A mask is neither polygons nor run lengths.", where=where, value=type(mask).__name__)
    return {"id": object_id, "texts": texts, "box": body["bbox"], "mask": mask, "where": where}


def _mask(value: Any, height: int, width: int, where: str) -> Rle:
    """Return a mask run-length encoded, the size of the image."""
    if isinstance(value, dict) and value.get("size") != [height, width]:
        allowed = f"[{height}, {width}]"
        raise DataError("A mask is not as large as its image.", where=where, value=value.get("size"), allowed=allowed)
    try:
        return compressed_rle(read_segmentation(value, height, width, where))
    except LocapError as err:
        raise DataError(err.what, where=where, value=err.value, allowed=err.allowed) from None
