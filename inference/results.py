"""What a system says about one image, as a value that can be read, drawn, stored and handed on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from ..datasets.records import Category, Record, Region, box_of_mask, encode_mask, record_to_json, write_records
from ..utils.errors import MissingDependencyError
from ..utils.files import atomic_path
from .asks import Ask
from .drawing import region_masks
from .visualise import draw_record, print_record


@dataclass(frozen=True, slots=True)
class Result:
    """The answers about one image.

    Attributes:
        record: the regions with captions, boxes (xyxy, pixels of the original image), masks and scores; narratives.
        categories: names of the regions' ``category_id``.
        pixels: the image, uint8 (height, width, 3) RGB.
        asks: the questions, one per region in their order; empty when everything was asked for.
    """

    record: Record
    categories: tuple[Category, ...]
    pixels: np.ndarray
    asks: tuple[Ask, ...] = ()

    def __len__(self) -> int:
        return len(self.record.regions)

    def __iter__(self) -> Iterator[Region]:
        return iter(self.record.regions)

    def __repr__(self) -> str:
        told = ", ".join(repr(caption) for caption in self.captions[:3]) + (", …" if len(self) > 3 else "")
        return f"Result(image {self.record.image_id!r}, {len(self)} regions: {told})"

    @property
    def captions(self) -> list[str]:
        """The first sentence about each region, "" where there is none."""
        return [region.captions[0] if region.captions else "" for region in self.record.regions]

    @property
    def names(self) -> list[str]:
        """The category of each region, "" where there is none."""
        known = {category.id: category.name for category in self.categories}
        return [known.get(region.category_id, "") for region in self.record.regions]

    def masks(self) -> list[np.ndarray | None]:
        """Return the mask of each region, bool (height, width), None where there is none."""
        return list(region_masks(self.record))

    def plot(self, *, max_width: int = 1024) -> Image.Image:
        """Return the picture with numbered regions and their captions beside it, at most ``max_width`` pixels wide.

        It shows the segments, or the instances where there are no segments.
        """
        return draw_record(self.pixels, self._shown(), self.categories, max_width=max_width)

    def print(self, console: Console) -> None:
        """Print a table of what `plot` shows, and the narratives."""
        print_record(self._shown(), self.categories, console, [str(ask) for ask in self.asks])

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write ``<name>.json``, a record file with the results of every mode, and ``<name>.png``, the picture.

        Returns:
            The paths of both.
        """
        folder = Path(folder)
        told = write_records(folder / f"{name}.json", [replace(self.record, image=None)], self.categories)
        with atomic_path(folder / f"{name}.png") as temporary:
            self.plot().save(temporary)
        return [told, folder / f"{name}.png"]

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, with run-length masks and category names."""
        return record_to_json(self.record, {category.id: category.name for category in self.categories})

    def to_coco(self, image_id: int | None = None, first_id: int = 1) -> list[dict[str, Any]]:
        """Return an annotation per region, as in the ``annotations`` of a COCO file, of plain JSON values.

        ``bbox`` is x, y, width, height. ``segmentation``, run-length encoded, ``category_id``, ``score`` and
        ``caption`` are there where they are known; what is only a point has neither ``bbox`` nor ``area``.

        Args:
            image_id: of the image in the COCO file; by default the record's own.
            first_id: of the annotations, which are counted up from it.
        """
        image_id = self.record.image_id if image_id is None else image_id
        rows = zip(self.record.regions, self.masks(), self.captions, strict=True)
        return [_annotation(first_id + k, image_id, *row) for k, row in enumerate(rows)]

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``: boxes, ``data["caption"]`` and ``data["class_name"]`` of every region.

        Masks, confidences and classes are there when every region has one, or for the latter two any: a missing
        confidence is then NaN and a missing class -1. What is only a point is a box without area.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise MissingDependencyError(
                "supervision is not installed.", where="Result.to_supervision", fix='pip install "locap[demo]"'
            ) from None
        if not len(self):
            return Detections.empty()
        regions, masks = self.record.regions, self.masks()
        scores, classes = ([getattr(r, name) for r in regions] for name in ("score", "category_id"))
        return Detections(
            xyxy=np.array(
                [_box(*pair) or regions[k].points[0] * 2 for k, pair in enumerate(zip(regions, masks, strict=True))],
                float,
            ),
            mask=None if any(mask is None for mask in masks) else np.stack(masks),
            confidence=_filled(scores, np.nan, float),
            class_id=_filled(classes, -1, int),
            data={"caption": np.array(self.captions), "class_name": np.array(self.names)},
        )

    def to_html(self, *, title: str = "locap") -> str:
        """Return a page that needs nothing else, in which caption and region find each other."""
        from .html_page import result_page

        return result_page([self], title)

    def _repr_png_(self) -> bytes:
        """Return the picture, as notebooks show it."""
        stream = io.BytesIO()
        self.plot().save(stream, "PNG")
        return stream.getvalue()

    def _shown(self) -> Record:
        record = self.record
        if record.id_map is None and record.instances and not self.asks:
            return replace(record, regions=record.instances)
        return record


def _box(region: Region, mask: np.ndarray | None) -> tuple[float, float, float, float] | None:
    if region.box_xyxy is not None or mask is None:
        return region.box_xyxy
    return box_of_mask(mask)


def _annotation(
    number: int, image_id: int | str, region: Region, mask: np.ndarray | None, caption: str
) -> dict[str, Any]:
    body: dict[str, Any] = {"id": number, "image_id": image_id, "iscrowd": 0}
    if region.category_id is not None:
        body["category_id"] = region.category_id
    if (box := _box(region, mask)) is not None:
        x0, y0, x1, y1 = box
        body |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    if mask is not None:
        body |= {"segmentation": dict(region.mask or encode_mask(mask)), "area": int(mask.sum())}
    if region.score is not None:
        body["score"] = region.score
    return body | ({"caption": caption} if caption else {})


def _filled(values: list[Any], missing: float, kind: type) -> np.ndarray | None:
    if all(value is None for value in values):
        return None
    return np.array([missing if value is None else value for value in values], kind)
