"""Masks that may overlap as one id map, for systems that learn a panoptic segmentation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..utils.errors import DataError
from ..utils.id_maps import PADDING_ID, measure_segments
from .reader import Reader
from .records import Record, Region, decode_mask


class Flattened:
    """A data set whose masks become an id map (`flatten`); records that have one stay as they are.

    Args:
        reader: one that lists regions without a mask in ``unmasked`` is refused when there are any.

    Raises:
        DataError: regions have no mask.
    """

    def __init__(self, reader: Reader) -> None:
        if unmasked := getattr(reader, "unmasked", None):
            image_id, region_id = unmasked[0]
            raise DataError(
                f"The system learns masks, and {len(unmasked)} regions of the file have none.",
                where=str(getattr(reader, "annotations", "")) or None,
                value=f"the first: image {image_id}, region {region_id}",
                allowed='a "segmentation" (COCO), "mask" (records) or polygon (LabelMe) for every region',
                fix="leave those regions out, or train a system that takes boxes: MODEL.NAME pixelllm_model",
            )
        self.reader, self.categories = reader, tuple(reader.categories)
        self.blocks = getattr(reader, "blocks", None)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Record:
        record = self.reader[index]
        return record if record.id_map is not None else flatten(record)[0]


def flatten(record: Record) -> tuple[Record, int]:
    """Draw the masks of a record into an id map: crowds lowest, then by size, the smallest on top.

    Ids are kept where they are distinct and fit into a panoptic PNG, else they count from 1. A region without a mask,
    or with nothing left to see, is left out. Boxes and areas become those of what is seen.

    Returns:
        The record with an id map in memory, and the number of regions that were covered in part or left out.
    """
    masks = [(region, decode_mask(region.mask)) for region in record.regions if region.mask is not None]
    areas = [int(mask.sum()) for _, mask in masks]
    ids = [region.id for region, _ in masks]
    if len(set(ids)) < len(ids) or not all(0 < i < PADDING_ID for i in ids):
        ids = list(range(1, len(masks) + 1))
    drawn = np.zeros((record.height, record.width), np.int32)
    for k in sorted(range(len(masks)), key=lambda k: (not masks[k][0].is_crowd, -areas[k])):
        drawn[masks[k][1]] = ids[k]
    segments = measure_segments(drawn)
    seen = {i: (int(a), b) for i, a, b in zip(segments.ids.tolist(), segments.areas, segments.boxes_xyxy, strict=True)}
    regions = [_shown(region, i, *seen[i]) for (region, _), i in zip(masks, ids, strict=True) if i in seen]
    changed = sum(i not in seen or seen[i][0] != area for i, area in zip(ids, areas, strict=True))
    return replace(record, regions=regions, id_map=drawn), changed + len(record.regions) - len(masks)


def _shown(region: Region, number: int, area: int, box: np.ndarray) -> Region:
    corners = tuple(float(side) for side in box)
    return replace(region, id=number, mask=None, area=area, box_xyxy=corners, box_size=None)
