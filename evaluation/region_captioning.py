"""Protocol ``region_captioning``: COCO-caption on the captions of given regions.

A predicted region is the answer to the ground-truth region of the same id in the same image: its first caption is
scored against all texts of that region, its captions or, where it has none, its referring expressions:
`caption_figures`. Every region with a text must be predicted, though its caption may be empty; an unknown or repeated
region is an error. Crowds are left out (``crowds``). A record with captions and no region is itself the region, under
its image's id.

Two files go under the name "VG", and RefCOCOg is scored in two ways. CIDEr weighs words by how many items of the whole
file use them, so figures of different files or items are not comparable. Hence four variants that refuse files of
another structure, beside ``standard``, which takes any file:

    ``vg_a``      GLaMM's test_caption.json: one region per image record, under the record's id, with one caption
    ``vg_b``      GRiT's test.json: every region of an image is an item of its own with one caption; the ids are unique
                  in the whole file
    ``refcocog``  all expressions of an object are the references of one caption. Regions of an image with the same box
                  and one expression each are one object, whose caption is that of the first of them
    ``refcocog_per_expression``  PixelLLM's: every expression is an item with itself as the only reference, so an object
                  counts as often as it has expressions. Rows whose box is all zero are padding and left out
                  (``padding``)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..datasets.records import Record, Region
from ..utils.errors import DataError
from .caption_figures import CaptionEvaluator, CaptionItem, add_caption_figures, require_texts
from .results import ImageId, ProtocolResult, first_ids

STRUCTURES = {
    "vg_a": "one region per image record, under the record's id, with one caption (GLaMM's test_caption.json)",
    "vg_b": "several regions per image with one caption each and ids unique in the file (GRiT's test.json)",
    "refcocog": "objects with referring expressions or several captions (RefCOCOg)",
}
FAMILY = {"refcocog_per_expression": "refcocog"}  # variants that share another's files
Row = Sequence[Any]  # [region id, candidate, texts, whether they are expressions, box or None]


class RegionCaptioning(CaptionEvaluator):
    """METEOR, CIDEr, ROUGE-L, BLEU-1 … 4 and on request SPICE of region captions."""

    protocol = "region_captioning"
    variants = ("standard", "vg_a", "vg_b", "refcocog", "refcocog_per_expression")

    def compute(self) -> ProtocolResult:
        """Return the figures over all regions; METEOR is missing where Java is.

        Raises:
            DataError: the ground truth is not a file of this variant.
        """
        images = self._ordered()
        self._require_structure([(image_id, entry["rows"]) for image_id, entry in images])
        result = ProtocolResult(self.protocol, self.variant, counts={"images": len(images)})
        result.counts["crowds"] = sum(entry["crowds"] for _, entry in images)
        if self.variant == "refcocog_per_expression":
            result.counts["padding"] = sum(_is_padding(row) for _, entry in images for row in entry["rows"])
        items = [item for image_id, entry in images for item in self._items(image_id, entry["rows"])]
        add_caption_figures(result, items, ("image_id", "region_id"), self.extra)
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        where = f"image_id {record.image_id}"
        truth, predicted = regions_of(record), regions_of(prediction)
        known, given = _by_id(truth, where), _by_id(predicted, f"{where}, prediction")
        texts = {region_id: _texts(region, f"{where}, region {region_id}") for region_id, region in known.items()}
        _require_known(given, known, where)
        asked = [region_id for region_id, region in known.items() if not region.is_crowd]
        _require_predicted([i for i in asked if texts[i] and i not in given], where)
        rows = []
        for region_id in asked:
            region = known[region_id]
            answer = given.get(region_id)
            candidates = require_texts(answer.captions, f"{where}, predicted region {region_id}") if answer else []
            box = None if region.box_xyxy is None else [float(side) for side in region.box_xyxy]
            candidate = candidates[0] if candidates else ""
            rows.append([region_id, candidate, texts[region_id], not region.captions and bool(region.expressions), box])
        return {"rows": rows, "crowds": len(known) - len(asked)}

    def _items(self, image_id: ImageId, rows: Sequence[Row]) -> Iterable[CaptionItem]:
        if self.variant == "refcocog_per_expression":
            rows = [
                [*row[:2], texts, *row[3:]]
                for row in rows
                if not _is_padding(row)
                for texts in [[text] for text in row[2]] or [[]]
            ]
        elif self.variant == "refcocog":
            rows = group_objects(rows)
        return (CaptionItem((image_id, row[0]), row[1], row[2]) for row in rows)

    def _require_structure(self, images: Sequence[tuple[ImageId, Sequence[Row]]]) -> None:
        wanted = FAMILY.get(self.variant, self.variant)
        if wanted == "standard" or not images:
            return
        found = find_structure(images)
        if found != wanted:
            regions = sum(len(rows) for _, rows in images)
            seen = f"{regions} regions in {len(images)} images"
            raise DataError(
                "The ground truth is of another protocol: CIDEr weighs words by how many items of the whole file use "
                "them, so figures of different files cannot be compared.",
                where=f"protocol {self.protocol}, variant {self.variant}",
                value=f"{seen}: {found}, {STRUCTURES[found]}" if found else f"{seen}, of no named file",
                allowed=STRUCTURES[wanted],
                fix=f"--variant {found or 'standard'}",
            )


def regions_of(record: Record) -> list[Region]:
    """Return the regions; a record with captions only is itself one."""
    if record.regions or not record.captions:
        return record.regions
    return [Region(record.image_id, captions=record.captions)]


def find_structure(images: Sequence[tuple[ImageId, Sequence[Row]]]) -> str | None:
    """Return the key of `STRUCTURES` that the regions with a text fit, if any."""
    worded = [(image_id, [row for row in rows if row[2]]) for image_id, rows in images]
    rows = [row for _, group in worded for row in group]
    if any(is_expression or len(texts) > 1 for _, _, texts, is_expression, _ in rows):
        return "refcocog"
    if all(len(group) <= 1 and all(row[0] == image_id for row in group) for image_id, group in worded):
        return "vg_a" if rows else None
    several = any(len(group) > 1 for _, group in worded)
    return "vg_b" if several and len({row[0] for row in rows}) == len(rows) else None


def group_objects(rows: Sequence[Row]) -> list[Row]:
    """Join the rows of an image with the same box and one text each; the first gives id and caption."""
    grouped: dict[Any, list[Any]] = {}
    for region_id, candidate, texts, *more in rows:
        box = more[-1]
        key = tuple(box) if box is not None and len(texts) == 1 else ("alone", region_id)
        if key in grouped:
            grouped[key][2] = [*grouped[key][2], *texts]
        else:
            grouped[key] = [region_id, candidate, texts, *more]
    return list(grouped.values())


def _is_padding(row: Row) -> bool:
    return row[4] is not None and not any(row[4])


def _texts(region: Region, where: str) -> list[str]:
    return require_texts(region.captions, where) or require_texts(region.expressions, where)


def _by_id(regions: Sequence[Region], where: str) -> dict[ImageId, Region]:
    twice = [region_id for region_id, count in Counter(region.id for region in regions).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} region(s) are listed twice.", where=where, value=f"region ids {first_ids(twice)}"
        )
    return {region.id: region for region in regions}


def _require_known(given: Mapping[ImageId, Region], known: Mapping[ImageId, Region], where: str) -> None:
    unknown = [region_id for region_id in given if region_id not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} predicted region(s) are not in the ground truth.",
            where=where,
            value=f"region ids {first_ids(unknown)}",
            allowed="the ids of the ground truth's regions; this protocol captions given regions",
        )


def _require_predicted(missing: Sequence[ImageId], where: str) -> None:
    if missing:
        raise DataError(
            f"{len(missing)} region(s) have no prediction.",
            where=where,
            value=f"region ids {first_ids(missing)}",
            allowed="one caption for every region with a caption; an empty one scores 0",
        )
