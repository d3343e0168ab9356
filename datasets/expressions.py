"""Referring expressions one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .reader import Reader
from .records import Record, Region, encode_mask


class PerExpression:
    """A data set with a region for each expression, as the protocol ``referring`` scores them.

    Ids count the expressions of an image from 1. A mask that was in the id map becomes the region's own, since the id
    map's values are other ids. Blank expressions, and those of crowds, are left out.

    Args:
        reader: whose regions may have several expressions.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader, self.categories = reader, tuple(reader.categories)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Record:
        record = self.reader[index]
        regions = [replace(region, id=number) for number, region in enumerate(_expressions(record), start=1)]
        return replace(record, regions=regions, id_map=None)


def _expressions(record: Record) -> Iterator[Region]:
    ids = record.read_id_map() if record.id_map is not None else None
    for region in record.regions:
        said = [text for text in region.expressions if text.strip()]
        if said and not region.is_crowd:
            mask = encode_mask(ids == region.id) if region.mask is None and ids is not None else region.mask
            yield from (replace(region, mask=mask, expressions=(text,)) for text in said)
