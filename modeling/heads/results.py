"""From heads' results to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...datasets.records import Category, Record, Region, box_of_mask, encode_mask
from ..text_decoders.captions import Caption
from .instances import Instances
from .panoptic import PanopticMap
from .segmentation import Segmentation

Captions = Mapping[int, Caption]  # by query; a query without one stays without


def record_of(
    image_id: int | str,
    size: tuple[int, int],
    found: Segmentation,
    categories: Sequence[Category],
    captions: Captions,
) -> Record:
    """Return an image's record.

    Args:
        image_id: of the image.
        size: (height, width) of the output.
        found: its segmentation; what it lacks stays empty in the record.
        categories: in the order of the class indices.
        captions: see `Captions`.
    """
    record = Record(image_id, *size)
    if found.panoptic is not None:
        record.id_map = found.panoptic.ids.cpu().numpy()
        record.regions = _segments(found.panoptic, record.id_map, categories, captions)
    if found.instances is not None:
        record.instances = _instances(found.instances, categories, captions)
    if found.semantic is not None:
        record.semantic = _semantic(found.semantic.argmax(0).cpu().numpy(), categories)
    return record


def _segments(
    panoptic: PanopticMap, ids: np.ndarray, categories: Sequence[Category], captions: Captions
) -> list[Region]:
    regions = []
    for segment in panoptic.segments:
        mask = ids == segment.id
        region = Region(
            id=segment.id,
            category_id=categories[segment.label].id,
            box_xyxy=box_of_mask(mask),
            area=int(mask.sum()),
            score=segment.score,
        )
        regions.append(with_caption(region, captions.get(segment.query)))
    return regions


def _instances(instances: Instances, categories: Sequence[Category], captions: Captions) -> list[Region]:
    regions = []
    boxes = [None] * len(instances.queries) if instances.boxes_xyxy is None else instances.boxes_xyxy.tolist()
    masks = instances.masks.cpu().numpy()
    columns = (instances.queries, instances.labels, instances.scores)
    for index, (query, label, score) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        region = Region(
            id=index + 1,
            category_id=categories[label].id,
            mask=encode_mask(masks[index]),
            box_xyxy=None if boxes[index] is None else tuple(boxes[index]),
            area=int(masks[index].sum()),
            score=score,
        )
        regions.append(with_caption(region, captions.get(query)))
    return regions


def _semantic(labels: np.ndarray, categories: Sequence[Category]) -> list[Region]:
    """Return a region per class of a label map."""
    regions = []
    for label in np.unique(labels).tolist():
        mask = labels == label
        category, area = categories[label].id, int(mask.sum())
        regions.append(
            Region(len(regions) + 1, category, mask=encode_mask(mask), box_xyxy=box_of_mask(mask), area=area)
        )
    return regions


def with_caption(region: Region, caption: Caption | None) -> Region:
    """Return the region, now with what is said about it, if anything is."""
    if caption is not None:
        region.captions, region.caption_score = (caption.text,), caption.score
    return region
