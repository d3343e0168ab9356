"""Records as detectron2's `Instances` and panoptic tuples, and back.

Boxes are (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, on both sides, and id maps hold 0 where there is no region.
What differs: detectron2 numbers classes from 0 (see `Classes`), and a caption is a field of its own there. Keypoints
are handed on as they are; detectron2's own COCO loader adds half a pixel to those of the files.

detectron2 is imported by the functions that make its objects, never before; the others take anything of that shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import DataError
from ..utils.id_maps import measure_segments
from ..utils.untrusted import polygons_to_mask
from .detectron2_classes import LABEL_DIVISOR, Classes, library
from .records import Category, Record, Region, box_of_mask, decode_mask, encode_mask


class Texts(Sequence[str]):
    """One text per instance, as a field of `Instances`: chosen along with the tensors, joined by ``cat``."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, item: Any) -> Any:
        """Return one text for an int; for a slice, a list, or a tensor of numbers or of bools, `Texts`."""
        if isinstance(item, int):
            return self.texts[item]
        rows = np.arange(len(self))[item.cpu().numpy() if isinstance(item, Tensor) else item]
        return Texts([self.texts[row] for row in np.atleast_1d(rows)])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None

    def __repr__(self) -> str:
        return f"Texts({self.texts!r})"

    @staticmethod
    def cat(parts: Sequence[Texts]) -> Texts:
        """Join."""
        return Texts([text for part in parts for text in part])


@dataclass(slots=True)
class RegionTensors:
    """n regions as tensors: boxes float32 (n, 4), labels int64 (n,), scores float32 (n,), masks bool (n, H, W) or None,
    keypoints float32 (n, K, 3) or None, and n captions."""

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None
    keypoints: Tensor | None
    captions: list[str]


def region_tensors(record: Record, regions: Sequence[Region], classes: Classes) -> RegionTensors:
    """Gather what `Instances` hold of some regions of a record.

    Masks are there when each region has one; a score that is missing is 1, a caption "", keypoints zeros.

    Raises:
        DataError: a category is unknown, a region has neither box nor mask, or numbers of keypoints differ.
    """
    masks = _masks(record, regions)
    where = f"image {record.image_id}, region "
    boxes = [_box(region, None if masks is None else masks[row], where) for row, region in enumerate(regions)]
    return RegionTensors(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([classes.number_of(r.category_id, f"{where}{r.id}")[0] for r in regions]).long(),
        scores=torch.tensor([1.0 if r.score is None else r.score for r in regions], dtype=torch.float32),
        masks=None if masks is None else torch.from_numpy(masks),
        keypoints=_keypoints(record, regions),
        captions=[r.captions[0] if r.captions else "" for r in regions],
    )


def _masks(record: Record, regions: Sequence[Region]) -> np.ndarray | None:
    drawn = record.id_map is not None
    if not regions or not all(drawn or region.mask is not None for region in regions):
        return None if regions or not drawn else np.zeros((0, record.height, record.width), bool)
    ids = record.read_id_map() if any(region.mask is None for region in regions) else None
    return np.stack([ids == r.id if r.mask is None else decode_mask(r.mask) for r in regions])


def _box(region: Region, mask: np.ndarray | None, where: str) -> tuple[float, ...]:
    if region.box_xyxy is None and mask is None:
        raise DataError("A region has neither box nor mask.", where=f"{where}{region.id}")
    return box_of_mask(mask) if region.box_xyxy is None else region.box_xyxy


def _keypoints(record: Record, regions: Sequence[Region]) -> Tensor | None:
    counts = {len(region.keypoints) for region in regions} - {0}
    if not counts:
        return None
    if len(counts) > 1:
        raise DataError("Regions differ in keypoints.", where=f"image {record.image_id}", value=sorted(counts))
    missing = ((0.0, 0.0, 0),) * counts.pop()
    return torch.tensor([region.keypoints or missing for region in regions], dtype=torch.float32)


def to_instances(
    record: Record,
    categories: Sequence[Category] | Classes,
    *,
    truth: bool = False,
    things_only: bool = False,
    device: torch.device | str = "cpu",
) -> Any:
    """Return the regions of a record as detectron2's `Instances`.

    Args:
        record: its ``instances``, if it has that list, else its ``regions``.
        categories: in the order of detectron2's numbers; or its numbers.
        truth: fields ``gt_boxes``, ``gt_classes``, ``gt_masks`` (BitMasks), ``gt_keypoints``, ``gt_captions``, without
            crowds; else ``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks`` (bool tensor), ``pred_keypoints``,
            ``pred_captions``.
        things_only: leave out stuff, as evaluators of instances need it.
        device: of the tensors.

    Raises:
        DataError: as `region_tensors`.
        MissingDependencyError: detectron2 is not installed.
    """
    structures, classes = library("structures"), Classes.of(categories)
    regions = record.regions if record.instances is None else record.instances
    stuff = set(classes.stuff.values()) if things_only else ()
    regions = [r for r in regions if not (truth and r.is_crowd) and r.category_id not in stuff]
    found = region_tensors(record, regions, classes)
    prefix = "gt" if truth else "pred"
    fields = {f"{prefix}_boxes": structures.Boxes(found.boxes_xyxy), f"{prefix}_classes": found.labels}
    if found.masks is not None:
        fields[f"{prefix}_masks"] = structures.BitMasks(found.masks) if truth else found.masks
    if found.keypoints is not None:
        fields[f"{prefix}_keypoints"] = structures.Keypoints(found.keypoints) if truth else found.keypoints
    if not truth:
        fields["scores"] = found.scores
    fields[f"{prefix}_captions"] = Texts(found.captions)
    return structures.Instances((record.height, record.width), **fields).to(device)


def from_instances(
    instances: Any, categories: Sequence[Category] | Classes, *, image_id: int | str = "image", image: Any = None
) -> Record:
    """Return `Instances` as a record: predicted fields, or else true ones.

    Masks may be a bool tensor (n, height, width), BitMasks, PolygonMasks or ROIMasks.

    Raises:
        DataError: a class is unknown, boxes are rotated or not finite, or masks have another size than the image.
    """
    classes, (height, width) = Classes.of(categories), (int(side) for side in instances.image_size)
    fields = instances.get_fields()
    prefix = "pred" if any(name.startswith("pred_") for name in fields) else "gt"
    where = f"image {image_id}"
    boxes = _plain_boxes(fields.get(f"{prefix}_boxes"), where)
    masks = mask_tensor(fields.get(f"{prefix}_masks"), height, width, fields.get(f"{prefix}_boxes"), where)
    parts = {name: fields.get(name) for name in (f"{prefix}_classes", "scores", f"{prefix}_captions")}
    labels, scores, captions = ([None] * len(instances) if part is None else _listed(part) for part in parts.values())
    keypoints = _listed(fields.get(f"{prefix}_keypoints")) or [()] * len(instances)
    regions = [
        Region(
            id=row + 1,
            category_id=None if label is None else classes.id_of(label, None, where),
            box_xyxy=tuple(boxes[row]) if boxes else None,
            mask=None if masks is None else encode_mask(masks[row].cpu().numpy()),
            score=score,
            captions=(text,) if text else (),
            keypoints=_labelled(points, prefix == "gt"),
        )
        for row, (label, score, text, points) in enumerate(zip(labels, scores, captions, keypoints, strict=True))
    ]
    return Record(image_id, height, width, image, regions)


def _labelled(points: Sequence[Sequence[float]], truth: bool) -> tuple[tuple[float, float, int], ...]:
    """Return keypoints, whose third value is a visibility or, predicted, a score; nothing if none is labelled."""
    found = tuple((x, y, int(third) if truth else 2) for x, y, third in points)
    return found if any(visible for *_, visible in found) else ()


def _plain_boxes(boxes: Any, where: str) -> list[list[float]]:
    if boxes is None:
        return []
    tensor = boxes.tensor
    if tensor.shape[-1] != 4 or not bool(torch.isfinite(tensor).all()):
        raise DataError("Boxes are not four finite numbers each.", where=where, value=list(tensor.shape))
    return tensor.tolist()


def _listed(values: Any) -> list:
    values = getattr(values, "tensor", values)
    return values.tolist() if isinstance(values, Tensor) else list(values or ())


def mask_tensor(masks: Any, height: int, width: int, boxes: Any = None, where: str = "") -> Tensor | None:
    """Return masks of any of detectron2's kinds as bool (n, height, width); None stays None.

    Raises:
        DataError: they have another size.
    """
    if masks is None:
        return None
    if hasattr(masks, "polygons"):
        drawn = [polygons_to_mask([np.asarray(p).tolist() for p in parts], height, width) for parts in masks.polygons]
        return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, height, width, dtype=torch.bool)
    if hasattr(masks, "to_bitmasks"):
        masks = masks.to_bitmasks(boxes, height, width)
    tensor = getattr(masks, "tensor", masks)
    if tensor.ndim != 3 or tuple(tensor.shape[1:]) != (height, width):
        raise DataError("Masks have another size than their image.", where=where, value=list(tensor.shape))
    return tensor.bool()


def to_panoptic(record: Record, categories: Sequence[Category] | Classes) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return detectron2's panoptic tuple: an int32 map (height, width) and an entry per segment.

    An entry has ``id``, ``category_id`` (the class's number), ``isthing``, ``iscrowd`` and ``area``, and where the
    region has them ``score`` and ``captions``.
    """
    classes, ids = Classes.of(categories), record.read_id_map().astype(np.int32)
    measured = measure_segments(ids)
    areas = dict(zip(measured.ids.tolist(), measured.areas.tolist(), strict=True))
    ids[~np.isin(ids, [region.id for region in record.regions])] = 0
    return torch.from_numpy(ids), [_segment(region, areas, record, classes) for region in record.regions]


def _segment(region: Region, areas: Mapping[int, int], record: Record, classes: Classes) -> dict[str, Any]:
    number, is_thing = classes.number_of(region.category_id, f"image {record.image_id}, region {region.id}")
    segment = {"id": region.id, "category_id": number, "isthing": is_thing, "iscrowd": int(region.is_crowd)}
    segment["area"] = areas.get(region.id, 0)
    if region.score is not None:
        segment["score"] = region.score
    if region.captions:
        segment["captions"] = list(region.captions)
    return segment


def from_panoptic(
    panoptic: Tensor | np.ndarray,
    segments_info: Sequence[Mapping[str, Any]] | None,
    categories: Sequence[Category] | Classes,
    *,
    image_id: int | str = "image",
    image: Any = None,
    label_divisor: int = LABEL_DIVISOR,
) -> Record:
    """Return a panoptic tuple as a record.

    Args:
        panoptic: whole numbers (height, width), 0 where there is no segment.
        segments_info: an entry per segment; None for maps that hold class * label_divisor + number, -1 for none.
        categories: in the order of detectron2's numbers; or its numbers.
        image_id, image: of the record.
        label_divisor: see ``segments_info``.

    Raises:
        DataError: the map is not two-dimensional, it and the list disagree, or a class is unknown.
    """
    ids = np.asarray(panoptic.cpu() if isinstance(panoptic, Tensor) else panoptic)
    where, classes = f"image {image_id}", Classes.of(categories)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError("A panoptic map is not (height, width) whole numbers.", where=where, value=list(ids.shape))
    if segments_info is None:
        labels = [int(label) for label in np.unique(ids) if label >= 0]
        segments_info = [{"id": label + 1, "category_id": label // label_divisor} for label in labels]
        ids = np.where(ids < 0, 0, ids + 1)
    regions = [_region(segment, classes, where) for segment in segments_info]
    drawn, listed = set(np.unique(ids).tolist()) - {0}, {region.id for region in regions}
    if drawn != listed:
        value = sorted(drawn ^ listed)[:5]
        raise DataError("A panoptic map and its list of segments disagree.", where=where, value=value)
    return Record(image_id, *ids.shape, image, regions, ids.astype(np.int32))


def _region(segment: Mapping[str, Any], classes: Classes, where: str) -> Region:
    score = segment.get("score")
    return Region(
        id=int(segment["id"]),
        category_id=classes.id_of(int(segment["category_id"]), segment.get("isthing"), where),
        captions=texts_of(segment, where),
        is_crowd=bool(segment.get("iscrowd", 0)),
        area=segment.get("area"),
        score=None if score is None else float(score),
    )


def texts_of(item: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the sentences of an annotation: ``captions``, ``caption``, Pix2Cap's ``description`` or GRiT's.

    Raises:
        DataError: they are no texts.
    """
    for key in ("captions", "caption", "description", "object_description"):
        if item.get(key):
            texts = [item[key]] if isinstance(item[key], str) else list(item[key])
            if not all(isinstance(text, str) for text in texts):
                raise DataError("A caption is not text.", where=where, value=item[key])
            return tuple(text for text in texts if text.strip())
    return ()
