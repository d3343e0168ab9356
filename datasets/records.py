"""The one record: what every reader yields and every model, evaluator and visualiser consumes.

Conventions
    boxes       ``box_xyxy`` = (x0, y0, x1, y1), absolute pixels of the original image, float, x1 and y1 exclusive
    points      (x, y), absolute pixels
    masks       COCO run-length encoding ``{"size": [height, width], "counts": str}``, set pixels belong to the region;
                or, for panoptic data, the pixels of the record's id map that equal ``Region.id``
    logits      one of several soft masks stacked from top to bottom in an 8-bit grey PNG, positive inside the region:
                ``{"file": path, "index": which from 0, "count": how many}``, logit = (value - 128) / 8
    id map      int32 (height, width), 0 = no region
    categories  ``category_id`` is the id of the dataset, not a contiguous index

A panoptic prediction may carry two more lists, whose regions have masks of their own: ``instances``, which may overlap,
and ``semantic``, one region per category that occurs, which together cover the image.

A *prompt* is a region without text, a *prediction* is a record whose regions carry scores, and a result file is a
record file (`write_records`), so any model's output can be scored, drawn and compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..utils import untrusted
from ..utils.errors import DataError
from ..utils.files import write_json

Rle = Mapping[str, Any]
FORMAT = "locap-records/1"
MORE_REGIONS = ("instances", "semantic")  # lists of a record beside ``regions``
_KINDS: dict[str, tuple[tuple[type, ...], bool]] = {  # single values of records and regions in JSON: types, may be null
    **dict.fromkeys(("id", "height", "width"), ((int,), False)),
    **dict.fromkeys(("score", "caption_score", "area"), ((int, float), True)),
    **dict.fromkeys(("mask", "ignore", "logits", "attributes"), ((dict,), True)),
    **dict.fromkeys(("image", "id_map"), ((str,), True)),
    "image_id": ((int, str), False),
    "category_id": ((int,), True),
    "is_crowd": ((bool,), False),
}


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a dataset."""

    id: int
    name: str
    is_thing: bool = True
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question about a region: (text, what it is worth) per choice."""

    text: str
    choices: tuple[tuple[str, float], ...]
    kind: str = ""  # in the words of the data set


@dataclass(slots=True)
class Region:
    """A piece of an image with any of: geometry, category, texts, scores."""

    id: int = 0
    category_id: int | None = None
    mask: Rle | None = None
    box_xyxy: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    keypoints: tuple[tuple[float, float, int], ...] = ()  # (x, y, visibility 0 | 1 | 2)
    captions: tuple[str, ...] = ()  # interchangeable sentences
    phrases: tuple[str, ...] = ()  # a few words each
    expressions: tuple[str, ...] = ()  # refer to this region and to no other of the image
    attributes: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    is_crowd: bool = False
    area: float | None = None
    score: float | None = None
    caption_score: float | None = None  # mean log-probability per generated token
    box_size: tuple[float, float] | None = None  # (width, height) that a file states, where x1 - x0 rounds differently
    ignore: Rle | None = None  # pixels left out of every score
    logits: Mapping[str, Any] | None = None  # a soft mask, see above


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word of a narrative and when it was spoken, seconds."""

    text: str
    start: float
    end: float


@dataclass(slots=True)
class Narrative:
    """A spoken description with the pointer's path: strokes of (x, y, seconds), x and y in pixels."""

    caption: str
    words: tuple[TimedWord, ...] = ()
    traces: tuple[tuple[tuple[float, float, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; ``region_ids`` are the regions its text points at, in order."""

    role: str  # "user" or "assistant"
    text: str
    region_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Record:
    """An image and everything said about it."""

    image_id: int | str
    height: int
    width: int
    image: str | np.ndarray | None = None  # a path, "<archive>.tar!<name>", or uint8 (height, width, 3) RGB
    regions: list[Region] = field(default_factory=list)
    id_map: str | np.ndarray | None = None  # a panoptic PNG's path, or int32 (height, width)
    instances: list[Region] | None = None  # see above; None when not asked for
    semantic: list[Region] | None = None
    captions: tuple[str, ...] = ()
    narratives: tuple[Narrative, ...] = ()
    conversations: tuple[tuple[Turn, ...], ...] = ()

    def read_image(self) -> np.ndarray:
        """Return the pixels, uint8 (height, width, 3) RGB, decoded through the gate when stored as a path."""
        if isinstance(self.image, np.ndarray):
            return self.image
        if self.image is None:
            raise DataError("The record has no image.", where=f"image_id {self.image_id}")
        return untrusted.read_image(self.image, expected_size=(self.height, self.width))

    def read_id_map(self) -> np.ndarray:
        """Return the id map, int32 (height, width); drawn from the masks when the record has no panoptic PNG."""
        if isinstance(self.id_map, np.ndarray):
            return self.id_map
        if self.id_map is not None:
            return untrusted.read_id_map(self.id_map)
        ids = np.zeros((self.height, self.width), np.int32)
        for region in self.regions:
            if region.mask is not None:
                ids[decode_mask(region.mask)] = region.id
        return ids

    def read_mask(self, region: Region) -> np.ndarray:
        """Return one region's mask, bool (height, width)."""
        if region.mask is not None:
            return decode_mask(region.mask)
        return self.read_id_map() == region.id


def read_logits(regions: Sequence[Region], height: int, width: int) -> list[np.ndarray]:
    """Return the soft masks of regions that have them, float32 (height, width) each; every file is decoded once.

    Raises:
        DataError: a reference is malformed, or its file is missing or of another size.
    """
    stacks: dict[str, np.ndarray] = {}
    return [_one_of_stack(region.logits or {}, stacks, height, width) for region in regions]


def _one_of_stack(reference: Mapping[str, Any], stacks: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
    path, index, count = (reference.get(key) for key in ("file", "index", "count"))
    if not isinstance(path, str) or type(index) is not int or type(count) is not int or not 0 <= index < count:
        allowed = '{"file": path, "index": from 0, "count": more than index}'
        raise DataError("Not a soft mask.", value=dict(reference), allowed=allowed)
    if path not in stacks:
        stacks[path] = untrusted.read_grey(path)
    if stacks[path].shape != (count * height, width):
        raise DataError(
            "The soft masks do not fill their file.",
            where=untrusted.shown(path),
            value=f"height {stacks[path].shape[0]}, width {stacks[path].shape[1]}",
            allowed=f"{count} x {height} rows of {width}",
        )
    return (stacks[path][index * height : (index + 1) * height].astype(np.float32) - 128) / 8


def encode_mask(mask: np.ndarray) -> Rle:
    """Run-length encode a bool (height, width) mask."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: Rle) -> np.ndarray:
    """Decode to bool (height, width); the run lengths are validated first."""
    return untrusted.decode_rle(rle)


def box_of_mask(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the tight box (x0, y0, x1, y1), x1 and y1 exclusive, of a bool mask; zeros when it is empty."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def record_to_json(record: Record, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return the record as plain JSON values; pixels become a null image, an id map in memory becomes masks.

    Args:
        record: the record.
        names: category id -> name; adds a ``category_name`` to every region, for human readers.
    """
    body = _without_empty(record, skip=("image", "id_map", "regions", *MORE_REGIONS))
    body["image"] = record.image if isinstance(record.image, str) else None
    ids = record.id_map if isinstance(record.id_map, np.ndarray) else None
    body["regions"] = [_region_to_json(region, ids) for region in record.regions]
    for name in MORE_REGIONS:
        if (regions := getattr(record, name)) is not None:
            body[name] = [_region_to_json(region, None) for region in regions]
    for item in (item for name in ("regions", *MORE_REGIONS) for item in body.get(name, ())):
        if names and item.get("category_id") in names:
            item["category_name"] = names[item["category_id"]]
    if isinstance(record.id_map, str):
        body["id_map"] = record.id_map
    return body


def _region_to_json(region: Region, ids: np.ndarray | None) -> dict[str, Any]:
    body = _without_empty(region)
    if region.mask is None and ids is not None:
        body["mask"] = encode_mask(ids == region.id)
    return body


def _without_empty(item: Any, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Return a dataclass as a dict without its empty fields; one without a default is kept, since readers need it."""
    fields = [f for f in dataclasses.fields(item) if f.name not in skip]
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    values = {f.name: getattr(item, f.name) for f in fields}
    return {
        name: _plain(value)
        for name, value in values.items()
        if name in needed
        or (value is not None and value is not False and not (hasattr(value, "__len__") and len(value) == 0))
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _without_empty(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def record_from_json(body: Mapping[str, Any], *, where: str = "record") -> Record:
    """Build a record from `record_to_json`'s values.

    Raises:
        DataError: a field is missing, unknown or of the wrong type; the message names the place.
    """
    try:
        body = dict(body)
        regions = [_region_from_json(item) for item in body.pop("regions", [])]
        for name in MORE_REGIONS:
            if name in body:
                body[name] = [_region_from_json(item) for item in body[name]]
        narratives = tuple(_narrative_from_json(item) for item in body.pop("narratives", []))
        conversations = tuple(
            tuple(Turn(**{**turn, "region_ids": tuple(turn.get("region_ids", ()))}) for turn in turns)
            for turns in body.pop("conversations", [])
        )
        captions = _texts(body.pop("captions", []), "captions")
        _check_kinds(body)
        return Record(regions=regions, narratives=narratives, conversations=conversations, captions=captions, **body)
    except KeyError as err:
        raise DataError(f"Not a record: {err} is missing.", where=where) from None
    except (TypeError, ValueError, AttributeError) as err:
        raise DataError(f"Not a record: {err}.", where=where) from None


def _region_from_json(body: Mapping[str, Any]) -> Region:
    body = dict(body)
    body.pop("category_name", None)  # the file's table of categories knows it
    if (box := body.pop("box_xyxy", None)) is not None:
        if len(box) != 4 or not np.isfinite(box).all():
            raise ValueError(f"box_xyxy must be four finite numbers, got {box}")
        body["box_xyxy"] = tuple(float(side) for side in box)
    if (size := body.pop("box_size", None)) is not None:
        if len(size) != 2 or not np.isfinite(size).all():
            raise ValueError(f"box_size must be two finite numbers, got {size}")
        body["box_size"] = tuple(float(side) for side in size)
    for name in ("captions", "phrases", "expressions"):
        body[name] = _texts(body.get(name, []), name)
    for name, length in (("points", 2), ("keypoints", 3)):
        body[name] = _points(body.get(name, []), name, length)
    body["questions"] = tuple(_question_from_json(item) for item in body.get("questions", []))
    _check_kinds(body)
    return Region(**body)


def _question_from_json(body: Mapping[str, Any]) -> Question:
    choices = tuple(tuple(choice) for choice in body["choices"])
    _texts([body["text"], body.get("kind", ""), *(text for text, _ in choices)], "the texts of a question")
    if not all(isinstance(score, (int, float)) and np.isfinite(score) for _, score in choices):
        raise ValueError(f"the choices of a question must be [text, finite number], got {choices!r}")
    return Question(**{**body, "choices": choices})


def _narrative_from_json(body: Mapping[str, Any]) -> Narrative:
    words = tuple(_word_from_json(word) for word in body.get("words", []))
    traces = tuple(_points(stroke, "a stroke of traces", 3) for stroke in body.get("traces", []))
    return Narrative(*_texts([body["caption"]], "caption"), words, traces)


def _word_from_json(body: Mapping[str, Any]) -> TimedWord:
    word = TimedWord(**body)
    times = (word.start, word.end)
    if not all(isinstance(t, (int, float)) and not isinstance(t, bool) and np.isfinite(t) for t in times):
        raise ValueError(f"start and end of a word must be finite numbers, got {times}")
    return TimedWord(*_texts([word.text], "text"), *times)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} must be a list of texts, got {value!r}")
    return tuple(value)


def _points(value: Any, name: str, length: int) -> tuple[tuple[float, ...], ...]:
    points = tuple(tuple(point) for point in value)
    if not all(len(point) == length and np.isfinite(point).all() for point in points):
        raise ValueError(f"{name} must be lists of {length} finite numbers, got {value!r}")
    return points


def _check_kinds(body: Mapping[str, Any]) -> None:
    for name, (kinds, may_be_null) in _KINDS.items():
        value = body.get(name)
        if name not in body or (value is None and may_be_null):
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def write_records(
    path: str | Path,
    records: Sequence[Record],
    categories: Sequence[Category] = (),
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write a record file atomically: ``{"format", "meta", "categories", "records"}``."""
    names = {category.id: category.name for category in categories}
    document = {
        "format": FORMAT,
        "meta": dict(meta or {}),
        "categories": [_without_empty(category) | {"is_thing": category.is_thing} for category in categories],
        "records": [record_to_json(record, names) for record in records],
    }
    return write_json(path, document)


def read_records(path: str | Path) -> tuple[list[Record], list[Category], dict[str, Any]]:
    """Read a record file: (records, categories, meta).

    Raises:
        DataError: the file is not JSON, not a record file, or one of its records is malformed.
    """
    return records_from_json(untrusted.read_json(path), where=str(path))


def records_from_json(document: Any, *, where: str) -> tuple[list[Record], list[Category], dict[str, Any]]:
    """Return (records, categories, meta) of a parsed record file, see `read_records`."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError("Not a record file.", where=where, allowed=f'a JSON object with "format": "{FORMAT}"')
    for name, kind in (("records", list), ("categories", list), ("meta", dict)):
        if not isinstance(document.get(name, kind()), kind):
            raise DataError(f'"{name}" of the record file is not a {kind.__name__}.', where=where)
    records = [
        record_from_json(body, where=f"{where}: records[{index}]")
        for index, body in enumerate(document.get("records", []))
    ]
    categories = [
        _category_from_json(body, where=f"{where}: categories[{index}]")
        for index, body in enumerate(document.get("categories", []))
    ]
    return records, categories, document.get("meta", {})


def _category_from_json(body: Mapping[str, Any], where: str) -> Category:
    try:
        category = Category(**{**body, "color": tuple(body["color"]) if body.get("color") else None})
        _check_kinds({"id": category.id})
        _texts([category.name], "name")
    except (TypeError, ValueError, AttributeError) as err:
        raise DataError(f"Not a category: {err}.", where=where) from None
    return category
