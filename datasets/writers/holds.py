"""What a format of files can hold of a record; what it cannot is counted, never lost silently."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ...utils.untrusted import rle_runs
from ..flattening import flatten
from ..records import Record, Region, box_of_mask, decode_mask, encode_mask

OF_RECORD = ("captions", "narratives", "conversations", "instances", "semantic")
OF_REGION = (
    "mask",
    "box_xyxy",
    "points",
    "keypoints",
    "captions",
    "phrases",
    "expressions",
    "attributes",
    "questions",
    "score",
    "caption_score",
    "ignore",
    "logits",
)
WORDS = {"box_xyxy": "boxes", "mask": "masks", "attributes": "sets of attributes", "ignore": "ignored areas"}
WORDS |= {"logits": "soft masks", "score": "scores", "caption_score": "scores of captions"}


@dataclass(frozen=True, slots=True)
class Holds:
    """What a format can hold.

    Attributes:
        record: of `OF_RECORD`.
        region: of `OF_REGION`.
        needs: a region must have one of the first, one of the second, ...; one that has not is left out.
        category: "may": a region may have a category, "must": it must, "no": the format has none.
        most_captions: of a region; None: any number.
        crowds: whether it can say that a region is a crowd; crowds are left out where it cannot.
        boxes: regions have the box of their mask where they have none of their own.
        id_maps: masks are an id map, so they may not overlap.
        areas: it states areas, as a file had them.
    """

    record: frozenset[str]
    region: frozenset[str]
    needs: tuple[tuple[str, ...], ...] = ()
    category: str = "may"
    most_captions: int | None = None
    crowds: bool = True
    boxes: bool = False
    id_maps: bool = False
    areas: bool = True


def kept(record: Record, holds: Holds, left_out: Counter[str]) -> Record:
    """Return what a format can hold of a record, and count the rest in words.

    Reading back what was written gives this record again, but for ids and names that the format makes itself.
    """
    record = _with_masks(record)
    regions = [_kept_region(region, holds, left_out) for region in record.regions]
    record = replace(record, regions=[region for region in regions if region is not None])
    for name in OF_RECORD:
        value = getattr(record, name)
        if name not in holds.record and value:
            left_out[f"{name} of images" if name == "captions" else name] += len(value)
        if name not in holds.record:
            setattr(record, name, None if name in ("instances", "semantic") else ())
    if not holds.id_maps:
        return record
    record, covered = flatten(record)
    if covered:
        left_out["regions of which other regions cover some or all"] += covered
    return record


def _with_masks(record: Record) -> Record:
    """Return a record whose regions have their masks themselves."""
    if record.id_map is None:
        return replace(record, regions=list(record.regions))
    ids = record.read_id_map()
    regions = [replace(r, mask=encode_mask(ids == r.id) if r.mask is None else r.mask) for r in record.regions]
    return replace(record, regions=regions, id_map=None)


def _kept_region(region: Region, holds: Holds, left_out: Counter[str]) -> Region | None:
    if holds.boxes and region.box_xyxy is None and region.mask is not None and not _is_empty(region):
        region = replace(region, box_xyxy=box_of_mask(decode_mask(region.mask)))
    if why := _unfit(region, holds):
        left_out[f"regions {why}"] += 1
        return None
    changes: dict[str, Any] = {}
    defaults = {field.name: field for field in dataclasses.fields(Region)}
    for name in OF_REGION:
        value = getattr(region, name)
        if name in holds.region or not (value is not None and (not hasattr(value, "__len__") or len(value))):
            continue
        left_out[WORDS.get(name, f"{name} of regions")] += (
            len(value) if isinstance(value, tuple) and name in _TEXTS else 1
        )
        factory = defaults[name].default_factory
        changes[name] = defaults[name].default if factory is dataclasses.MISSING else factory()
    if "box_xyxy" in changes:
        changes["box_size"] = None
    extra = len(region.captions) - (holds.most_captions or len(region.captions))
    if "captions" in holds.region and extra > 0:
        left_out["further captions of regions"] += extra
        changes["captions"] = region.captions[: holds.most_captions]
    if not holds.areas:
        changes["area"] = None
    if holds.category == "no" and region.category_id is not None:
        changes["category_id"] = None
    return replace(region, **changes)


_TEXTS = ("points", "captions", "phrases", "expressions", "questions")


def _unfit(region: Region, holds: Holds) -> str:
    """Return why a region cannot be written, or ""."""
    if region.is_crowd and not holds.crowds:
        return "that are crowds"
    if holds.category == "must" and region.category_id is None:
        return "without a category"
    if region.mask is not None and holds.needs and _is_empty(region):
        return "with an empty mask"
    for names in holds.needs:
        if not any(getattr(region, name) for name in names):
            words = " or ".join(WORDS.get(name, name).rstrip("s").replace("boxe", "box") for name in names)
            return f"without {words}"
    return ""


def _is_empty(region: Region) -> bool:
    return not rle_runs(region.mask)[1][1::2].any()
