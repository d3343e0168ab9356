"""Protocols ``detection``, ``instances`` and ``keypoints``: COCO's average precision and recall.

Variant ``standard``
    COCO's evaluator itself (`coco_backends`), on boxes (IoU), masks (IoU) or keypoints (object keypoint similarity).
    ``ap`` is the mean, over the IoU thresholds .50:.05:.95 and the classes, of the precision interpolated at 101
    recalls; ``ap_50`` and ``ap_75`` take one threshold; ``_small``, ``_medium`` and ``_large`` take areas below 32²,
    below 96² and above, in pixels. ``ar_N`` is the mean recall of the N best predictions of a class and an image.
    Keypoints have no ``_small`` and one N: their recalls are ``ar, ar_50, ar_75, ar_medium, ar_large``.

Variant ``class_agnostic`` (boxes and masks)
    The same with COCO's ``useCats = 0``: categories are not looked at; predictions need none.

Variants ``voc`` and ``voc07`` (boxes)
    PASCAL VOC's average precision at IoU 0.5: `voc_ap`.

Areas
    A true region's area is the one the file states, else that of its mask, else that of its box. A predicted one's is
    that of its box (detection), its mask (instances), or the box around its keypoints (keypoints), as COCO's tools
    count results that hold nothing but a box, a mask or keypoints. Boxes are not clipped to the image.

Regions that count
    Things only: regions of stuff categories, true or predicted, are left out and counted in ``stuff``, and so are,
    as COCO's tools do, predictions of categories that the data set does not have (``predicted_unknown_class``). A
    prediction's ``Record.instances`` are taken when there are any, else its regions. Crowds (``is_crowd``) are never to
    be found and excuse any number of predictions; people without labelled keypoints are never to be found either.
    ``predicted_outside`` counts boxes without a pixel in the image (they are scored; none where the image's size is
    not known), ``predicted_without_keypoints`` regions that ``keypoints`` leaves out. A predicted region without score
    or category, or without the geometry of its protocol, is an error.

Figures that COCO gives as -1 are undefined. Equal scores are ranked by image id, then in the order given.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pycocotools import mask as coco_mask

from ..datasets.records import Category, Record, Region
from ..utils.errors import DataError, UsageError
from .coco.backends import BACKENDS, CocoImage, coco_curves
from .coco.matches import MATCH_COLUMNS, match_rows
from .coco.summary import Summary, add_figures, add_tables, detection_summaries, keypoint_summaries
from .matching.region_geometry import Box, place, region_box, region_mask
from .option_values import ascending_counts, numbers, one_of
from .ranking.voc_ap import add_voc_figures
from .results import ImageEvaluator, ImageId, LaterRows, ProtocolResult, Table, first_ids

COCO_SIGMAS = tuple(
    float(sigma) for sigma in np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
)
ANY_CLASS = -1
TRUE, PREDICTED = "region", "prediction"  # what regions are called in messages


class CocoAveragePrecision(ImageEvaluator):
    """What the three protocols share.

    Args:
        categories, variant, image_order: as `ImageEvaluator`.
        max_detections: how many predictions of a class and an image count, ascending; numbers or "1,10,100".
        backend: the program, one of `BACKENDS`.
    """

    variants = ("standard", "class_agnostic")
    options: ClassVar[Mapping[str, str]] = {
        "max_detections": "how many predictions of a class and an image count, ascending; default 1,10,100",
        "backend": f"{' or '.join(BACKENDS)}: which program computes the figures; default {BACKENDS[0]}",
    }
    decisive = ("max_detections",)
    kind: ClassVar[str]  # COCO's name
    areas: ClassVar[tuple[str, ...]] = ("all", "small", "medium", "large")
    default_detections: ClassVar[tuple[int, ...]] = (1, 10, 100)
    sigmas: tuple[float, ...] | None = None

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        max_detections: str | Sequence[int] | None = None,
        backend: str = BACKENDS[0],
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        self.max_detections = ascending_counts("max_detections", max_detections or self.default_detections)
        self.backend = one_of("backend", backend, BACKENDS)
        self._class_agnostic = variant == "class_agnostic"
        self.things = sorted(category.id for category in categories if category.is_thing)

    def compute(self) -> ProtocolResult:
        """Return the figures of the module's description, tables per category, and a row per prediction."""
        entries = self._ordered()
        result = ProtocolResult(self.protocol, self.variant)
        self._count(result, [entry for _, entry in entries])
        if not entries or not self._category_ids():
            names = [summary.name for summary in self._summaries()]
            result.undefined |= dict.fromkeys(names, "there are no images or no thing categories")
            return result
        images = [self._image(entry) for _, entry in entries]
        curves = coco_curves(
            images,
            self._category_ids(),
            self.kind,
            max_detections=self.max_detections,
            class_agnostic=self._class_agnostic,
            sigmas=self.sigmas,
            backend=self.backend,
        )
        names = {i: self.categories[i].name if i in self.categories else "any" for i in self._category_ids()}
        if self._class_agnostic:
            names = {ANY_CLASS: "any"}
        add_figures(result, self._summaries(), curves)
        add_tables(result, curves, names, self.areas, self.max_detections)
        most, any_class = self.max_detections[-1], self._class_agnostic
        rows = LaterRows(lambda: match_rows(entries, images, curves, most, class_agnostic=any_class))
        result.regions = Table(MATCH_COLUMNS, rows)
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        found = prediction.regions if prediction.instances is None else prediction.instances
        known = [region for region in found if region.category_id is None or region.category_id in self.categories]
        truth = [region for region in record.regions if self._is_thing(record, region, TRUE)]
        predicted = [region for region in known if self._is_thing(prediction, region, PREDICTED)]
        entry = {
            "size": [record.height, record.width],
            "stuff": len(record.regions) + len(known) - len(truth) - len(predicted),
            "predicted_unknown_class": len(found) - len(known),
            "truth": [self._truth(record, region, TRUE) for region in truth],
        }
        rows = [self._predicted(prediction, region, PREDICTED) for region in predicted]
        return entry | {"predicted": [row for row in rows if row is not None]} | self._counted(record, rows)

    def _truth(self, record: Record, region: Region, side: str) -> list[Any]:
        """Return [id, category id, is crowd, area, geometry]."""
        geometry = self._true_geometry(record, region, side)
        return [region.id, region.category_id, int(region.is_crowd), _true_area(record, region, side), geometry]

    def _predicted(self, prediction: Record, region: Region, side: str) -> list[Any] | None:
        """Return [id, category id, score, area, geometry], or None for a region that the protocol leaves out."""
        measured = self._predicted_geometry(prediction, region, side)
        if measured is None:
            return None
        if region.score is None or not math.isfinite(region.score):
            raise DataError(
                "A predicted region has no finite score to rank it by.",
                where=place(prediction, region, side),
                value=region.score,
            )
        geometry, area = measured
        return [region.id, region.category_id, float(region.score), area, geometry]

    @abstractmethod
    def _true_geometry(self, record: Record, region: Region, side: str) -> Any:
        """Return the geometry as COCO evaluates it."""

    @abstractmethod
    def _predicted_geometry(self, prediction: Record, region: Region, side: str) -> tuple[Any, float] | None:
        """Return the geometry and its area; None for a region that is counted and left out."""

    @abstractmethod
    def _annotation(self, geometry: Any, size: Sequence[int]) -> dict[str, Any]:
        """Return the geometry under COCO's names."""

    def _counted(self, record: Record, rows: Sequence[Any]) -> dict[str, int]:
        """Return what the protocol counts beside the regions."""
        return {}

    def _summaries(self) -> list[Summary]:
        return detection_summaries(self.areas, self.max_detections)

    def _category_ids(self) -> list[int]:
        return self.things or ([0] if self._class_agnostic else [])

    def _is_thing(self, record: Record, region: Region, side: str) -> bool:
        if region.category_id is None and self._class_agnostic:
            return True
        if region.category_id not in self.categories:
            raise DataError(
                "A region is of a category that the data set does not have.",
                where=place(record, region, side),
                value=region.category_id,
                allowed=f"category ids {first_ids(list(self.categories), 20)}",
            )
        return self.categories[region.category_id].is_thing

    def _image(self, entry: Mapping[str, Any]) -> CocoImage:
        def body(row: Sequence[Any], key: str) -> dict[str, Any]:
            category_id = self._category_ids()[0] if row[1] is None else row[1]
            return {"category_id": category_id, key: row[2], "area": row[3]} | self._annotation(row[4], entry["size"])

        return CocoImage(
            *entry["size"],
            [body(row, "iscrowd") for row in entry["truth"]],
            [body(row, "score") for row in entry["predicted"]],
        )

    def _count(self, result: ProtocolResult, images: Sequence[Mapping[str, Any]]) -> None:
        crowds = sum(row[2] for image in images for row in image["truth"])
        result.counts = {
            "images": len(images),
            "truth": sum(len(image["truth"]) for image in images) - crowds,
            "crowds": crowds,
            "predicted": sum(len(image["predicted"]) for image in images),
        }
        for name in dict.fromkeys(name for image in images for name in image if name not in ("size", *result.counts)):
            result.counts[name] = sum(image[name] for image in images)
        if unknown := result.counts.get("predicted_unknown_class"):
            result.notes.append(f"{unknown} predictions are of categories that the data set does not have: left out")
        if self.max_detections != self.default_detections:
            result.notes.append(f"detections of a class and an image: {self.max_detections}, not COCO's own")


class BoxAveragePrecision(CocoAveragePrecision):
    """Protocol ``detection``."""

    protocol = "detection"
    kind = "bbox"
    variants = ("standard", "class_agnostic", "voc", "voc07")

    def compute(self) -> ProtocolResult:
        """Return the figures of the variant."""
        if not self.variant.startswith("voc"):
            return super().compute()
        entries = self._ordered()
        result = ProtocolResult(self.protocol, self.variant)
        self._count(result, [entry for _, entry in entries])
        categories = {category_id: self.categories[category_id] for category_id in self.things}
        add_voc_figures(result, [entry for _, entry in entries], categories, eleven_points=self.variant == "voc07")
        return result

    def _true_geometry(self, record: Record, region: Region, side: str) -> list[float]:
        return list(_box(record, region, side))

    def _predicted_geometry(self, prediction: Record, region: Region, side: str) -> tuple[list[float], float]:
        box = _box(prediction, region, side)
        return list(box), box[2] * box[3]

    def _annotation(self, geometry: Any, size: Sequence[int]) -> dict[str, Any]:
        return {"bbox": geometry}

    def _counted(self, record: Record, rows: Sequence[Any]) -> dict[str, int]:
        outside = (x >= record.width or y >= record.height or x + w <= 0 or y + h <= 0 for *_, (x, y, w, h) in rows)
        return {"predicted_outside": sum(outside) if record.height else 0}


class MaskAveragePrecision(CocoAveragePrecision):
    """Protocol ``instances``."""

    protocol = "instances"
    kind = "segm"

    def _true_geometry(self, record: Record, region: Region, side: str) -> str:
        return _mask(record, region, side)["counts"]

    def _predicted_geometry(self, prediction: Record, region: Region, side: str) -> tuple[str, int]:
        mask = _mask(prediction, region, side)
        return mask["counts"], int(coco_mask.area(mask))

    def _annotation(self, geometry: Any, size: Sequence[int]) -> dict[str, Any]:
        return {"segmentation": {"size": list(size), "counts": geometry}}


class KeypointAveragePrecision(CocoAveragePrecision):
    """Protocol ``keypoints``.

    Args:
        sigmas: falloff of each keypoint as a share of the region's size; COCO's 17 unless given.
        categories, variant, image_order, max_detections, backend: as `CocoAveragePrecision`.
    """

    protocol = "keypoints"
    kind = "keypoints"
    variants = ("standard",)
    options: ClassVar[Mapping[str, str]] = {
        "max_detections": "how many predictions of a class and an image count; default 20",
        "backend": CocoAveragePrecision.options["backend"],
        "sigmas": "falloff of each keypoint, numbers with commas between; default: COCO's 17",
    }
    decisive = ("max_detections", "sigmas")
    areas = ("all", "medium", "large")
    default_detections = (20,)

    def __init__(
        self, categories: Sequence[Category], *, sigmas: str | Sequence[float] = COCO_SIGMAS, **options: Any
    ) -> None:
        super().__init__(categories, **options)
        self.sigmas = numbers("sigmas", sigmas)
        if len(self.max_detections) > 1:
            raise UsageError("The protocol keypoints takes one max_detections.", value=self.max_detections)

    def _summaries(self) -> list[Summary]:
        return keypoint_summaries(self.areas)

    def _true_geometry(self, record: Record, region: Region, side: str) -> list[Any]:
        """Return [x0, y0, visibility 0, …], the number of labelled points, and the box, which serves without them."""
        points = self._flat(record, region, side) or [0.0] * (3 * len(self.sigmas))
        labelled = sum(visibility > 0 for visibility in points[2::3])
        box = region_box(record, region, side)
        if box is None and not labelled:
            raise DataError(
                "A true region has neither labelled keypoints nor a box.", where=place(record, region, side)
            )
        return [points, labelled, list(box or _box_around(points))]

    def _predicted_geometry(self, prediction: Record, region: Region, side: str) -> tuple[list[Any], float] | None:
        points = self._flat(prediction, region, side)
        if not points:
            return None
        box = _box_around(points)
        return [points, len(self.sigmas), list(box)], box[2] * box[3]

    def _flat(self, record: Record, region: Region, side: str) -> list[float]:
        if region.keypoints and len(region.keypoints) != len(self.sigmas):
            raise DataError(
                "A region has another number of keypoints than there are sigmas.",
                where=place(record, region, side),
                value=len(region.keypoints),
                allowed=str(len(self.sigmas)),
                fix="--option sigmas=…, one number per keypoint",
            )
        flat = [float(value) for point in region.keypoints for value in point]
        if not np.isfinite(flat).all():
            raise DataError("Keypoints are not finite.", where=place(record, region, side), value=region.keypoints)
        return flat

    def _annotation(self, geometry: Any, size: Sequence[int]) -> dict[str, Any]:
        points, labelled, box = geometry
        return {"keypoints": points, "num_keypoints": labelled, "bbox": box}

    def _counted(self, record: Record, rows: Sequence[Any]) -> dict[str, int]:
        return {"predicted_without_keypoints": sum(row is None for row in rows)}


def _box(record: Record, region: Region, side: str) -> Box:
    box = region_box(record, region, side)
    if box is None:
        raise DataError("A region has neither box nor mask.", where=place(record, region, side))
    return box


def _mask(record: Record, region: Region, side: str) -> Mapping[str, Any]:
    mask = region_mask(record, region, side)
    if mask is None:
        raise DataError(
            "A region has no mask.", where=place(record, region, side), fix="--protocol detection scores boxes"
        )
    return mask


def _true_area(record: Record, region: Region, side: str) -> float:
    if region.area is not None:
        return region.area
    mask = region_mask(record, region, side)
    if mask is not None:
        return int(coco_mask.area(mask))
    box = _box(record, region, side)
    return box[2] * box[3]


def _box_around(points: Sequence[float]) -> Box:
    """Return (x, y, width, height) around all points of a flat list (x, y, visibility, …), as COCO's tools do."""
    xs, ys = points[0::3], points[1::3]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
