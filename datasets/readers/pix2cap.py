"""Pix2Cap-COCO: COCO panoptic with a ``description`` in every segment."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted import shown
from ..records import Category, Region
from .coco_panoptic import CocoPanopticReader

logger = logging.getLogger(__name__)


class Pix2CapReader(CocoPanopticReader):
    """Records whose regions carry captions.

    Args:
        annotations, images, panoptic, categories: as `CocoPanopticReader`.
        min_description: an image is left out when any of its descriptions is shorter; 3 is what Pix2Cap trains with,
            0 keeps every image, as in its evaluation.

    Attributes:
        dropped_images: ids of the images left out.
        empty_captions: (image id, segment id) of kept segments without a description; they keep mask and class and
            take no part in captioning.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        panoptic: str | Path,
        *,
        categories: Sequence[Category] | None = None,
        min_description: int = 0,
    ) -> None:
        self.min_description = min_description
        self.dropped_images: list[int] = []
        self.empty_captions: list[tuple[int, int]] = []
        super().__init__(annotations, images, panoptic, categories=categories)
        self._report()

    def _select(self, entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        described = False
        for entry in entries:
            place = f"{shown(self.annotations)}: image {entry['image_id']}"
            captions = {
                segment["id"]: _captions(segment.get("description", ""), f"{place}, segment {segment['id']}")
                for segment in entry["segments_info"]
            }
            described = described or any("description" in segment for segment in entry["segments_info"])
            if any(_shortest(texts) < self.min_description for texts in captions.values()):
                self.dropped_images.append(entry["image_id"])
                continue
            self.empty_captions += [(entry["image_id"], i) for i, texts in captions.items() if not texts]
            for segment in entry["segments_info"]:
                segment["description"] = captions[segment["id"]]
            yield entry
        if not described:
            raise DataError(
                "No segment has a description: this is plain COCO panoptic, not Pix2Cap-COCO.",
                where=shown(self.annotations),
                fix="use annotations/pix2cap_coco_train.json or pix2cap_coco_val.json",
            )

    def _region(self, segment: Mapping[str, Any]) -> Region:
        region = super()._region(segment)
        region.captions = tuple(segment["description"])
        return region

    def _report(self) -> None:
        if self.dropped_images:
            logger.info(
                "%s: %d of %d images left out, a description is shorter than %d characters (first: image %s)",
                shown(self.annotations),
                len(self.dropped_images),
                len(self.dropped_images) + len(self),
                self.min_description,
                self.dropped_images[0],
            )
        if self.empty_captions:
            logger.warning(
                "%s: %d segments have an empty description and take no part in captioning "
                "(first: image %s, segment %s)",
                shown(self.annotations),
                len(self.empty_captions),
                *self.empty_captions[0],
            )


def _captions(description: Any, where: str) -> list[str]:
    """Return the captions that hold anything but white space; several are interchangeable."""
    texts = description if isinstance(description, list) else [description]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("A description is not text.", where=where, value=description, allowed="a string or strings")
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # unpaired surrogates
    return [text for text in texts if text.strip()]


def _shortest(texts: Sequence[str]) -> int:
    return min((len(text) for text in texts), default=0)
