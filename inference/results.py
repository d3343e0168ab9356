"""What a system says about one image, as a value that can be read, drawn, stored and handed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.records import Category, Record, Region, record_to_json
from .asks import Ask
from .html_page import result_page
from .visualise import draw_record


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

    @property
    def captions(self) -> list[str]:
        """The first sentence about each region, "" where there is none."""
        return [region.captions[0] if region.captions else "" for region in self.record.regions]

    def plot(self, *, max_width: int = 1024) -> Image.Image:
        """Return the picture with numbered regions and their captions beside it, at most ``max_width`` pixels wide."""
        return draw_record(self.pixels, self.record, self.categories, max_width=max_width)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, with run-length masks and category names."""
        return record_to_json(self.record, {category.id: category.name for category in self.categories})

    def to_html(self, title: str = "") -> str:
        """Return one self-contained HTML page, in which pointing at a region marks its caption and the other way."""
        return result_page([self], title or str(self.record.image_id))
