"""Visual Genome's ``region_descriptions.json``, and beside it ``image_data.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...utils.files import write_json
from ..records import Category, Record
from .coco import box_xywh
from .holds import Holds
from .naming import Naming, numbered_anew

HOLDS = Holds(
    record=frozenset(),
    region=frozenset({"box_xyxy", "captions"}),
    needs=(("box_xyxy",), ("captions",)),
    category="no",
    most_captions=1,
    crowds=False,
    boxes=True,
    areas=False,
)


def write(path: Path, records: Iterable[Record], categories: Sequence[Category], naming: Naming) -> Path:
    """Write both files; ``url`` is the image's name, whose last two parts count."""
    images, described, regions = [], [], []
    for record in records:
        number = naming.image_id(record)
        size = {"height": record.height, "width": record.width}
        images.append({"image_id": number, "url": naming.image(record), **size, "coco_id": None, "flickr_id": None})
        found = []
        for region in record.regions:
            x, y, width, height = box_xywh(region)
            body = {"region_id": region.id, "image_id": number, "phrase": region.captions[0]}
            found.append(body | {"x": x, "y": y, "width": width, "height": height})
        regions += found
        described.append({"id": number, "regions": found})
    if numbered_anew(regions, "region_id"):
        naming.notes["ids of regions that were replaced by numbers, as they were not distinct"] += len(regions)
    write_json(path.with_name("image_data.json"), images)
    return write_json(path, described)
