"""From heads' results to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...datasets.records import Category, Record, Region, box_of_mask
from ..text_decoders.captions import Caption
from .panoptic import PanopticMap


def panoptic_record(
    image_id: int | str, panoptic: PanopticMap, categories: Sequence[Category], captions: Mapping[int, Caption]
) -> Record:
    """Return an image's record: its id map and a region per segment.

    Args:
        image_id: of the image.
        panoptic: its segments.
        categories: in the order of the class indices.
        captions: by query; a query without one stays without.
    """
    ids = panoptic.ids.cpu().numpy()
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
    return Record(image_id, *ids.shape, regions=regions, id_map=ids)


def with_caption(region: Region, caption: Caption | None) -> Region:
    """Give a region its sentence, if there is one."""
    if caption is not None:
        region.captions, region.caption_score = (caption.text,), caption.score
    return region
