"""Panoptic quality: from id maps in memory, from PNGs and from run lengths, beside the evaluation of panopticapi."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.categories import COCO_PANOPTIC
from ...datasets.records import Record
from ..panoptic import PanopticQuality
from .measuring import Way, measure_in_turn
from .report import Report, same_figures
from .scenes import DISTINCT, draw_scenes, with_masks, write_id_map

IMAGES = {"small": 60, "val": 5000}
GOAL = 4.0
OFFSET = 256**3
Pair = tuple[Record, Record]


def panoptic(size: str, repeats: int) -> Report:
    """Compare the ways of scoring panoptic predictions."""
    scenes = draw_scenes(IMAGES[size])
    with tempfile.TemporaryDirectory() as folder:
        data = _stored(scenes, Path(folder))
        ways = [Way("panopticapi's way", lambda data: separate_quality(data["PNG + PNG"]))]
        ways += [Way("the same, PNG written first", lambda data: write_and_score(data["PNG + id map"], Path(folder)))]
        ways += [
            Way("decoding the PNGs only", lambda data: [Image.open(r.id_map).load() for r in chain(*data["PNG + PNG"])])
        ]
        ways += [Way(f"ours, {name}", lambda data, name=name: quality(data[name])) for name in data]
        found, figures = measure_in_turn(ways, lambda turn: data, repeats=repeats)
    report = Report("panoptic", len(scenes), "images", found[3:], found[:3], goal=GOAL)
    report.facts["same figures"] = same_figures([[*turn[:2], *turn[3:]] for turn in figures], tolerance=1e-12)
    report.facts["pq"] = figures[0][0]["pq"]
    return report


def _stored(scenes: Sequence[Pair], folder: Path) -> dict[str, list[Pair]]:
    """Return the scenes as stored in several ways (truth + prediction)."""
    drawn = scenes[:DISTINCT]
    predicted = [write_id_map(folder / f"predicted_{i}.png", pair[1].id_map) for i, pair in enumerate(drawn)]
    truth = [write_id_map(folder / f"truth_{i}.png", pair[0].id_map) for i, pair in enumerate(drawn)]
    masks = [with_masks(pair[1]) for pair in scenes]
    from_file = [
        tuple(
            replace(record, id_map=paths[i % len(paths)])
            for record, paths in zip(pair, (truth, predicted), strict=True)
        )
        for i, pair in enumerate(scenes)
    ]
    return {
        "PNG + PNG": from_file,
        "PNG + id map": [(a, b) for (a, _), (_, b) in zip(from_file, scenes, strict=True)],
        "PNG + run lengths": [(a, b) for (a, _), b in zip(from_file, masks, strict=True)],
        "id map + id map": list(scenes),
    }


def quality(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the figures of the protocol."""
    evaluator = PanopticQuality(COCO_PANOPTIC)
    for truth, prediction in pairs:
        evaluator.update(truth, prediction)
    result = evaluator.compute()
    counts = {name: result.counts[name] for name in ("matched", "false_positives", "false_negatives")}
    return {name: result.figures[name] for name in ("pq", "sq", "rq")} | counts


def write_and_score(pairs: Sequence[Pair], folder: Path) -> dict[str, float]:
    """Return `separate_quality` of predictions in memory, which panopticapi reads from PNGs."""
    paths = [write_id_map(folder / f"written_{i}.png", pair[1].id_map) for i, pair in enumerate(pairs)]
    return separate_quality([(a, replace(b, id_map=path)) for (a, b), path in zip(pairs, paths, strict=True)])


def separate_quality(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the same figures as panopticapi finds them: sorted 64-bit pairs of ids, loops over segments."""
    categories = {category.id for category in COCO_PANOPTIC}
    matched, total = defaultdict(int), defaultdict(float)
    spurious, missed = defaultdict(int), defaultdict(int)
    for truth, prediction in pairs:
        for category, iou in count_pair(truth, prediction, spurious, missed):
            matched[category] += 1
            total[category] += iou
    rows = []
    for c in categories:
        if matched[c] + spurious[c] + missed[c]:
            weight = matched[c] + 0.5 * spurious[c] + 0.5 * missed[c]
            rows.append((total[c] / weight, total[c] / matched[c] if matched[c] else 0.0, matched[c] / weight))
    figures = {name: sum(row[place] for row in rows) / len(rows) for place, name in enumerate(("pq", "sq", "rq"))}
    counts = {"matched": matched, "false_positives": spurious, "false_negatives": missed}
    return figures | {name: sum(values.values()) for name, values in counts.items()}


def count_pair(
    truth: Record, prediction: Record, spurious: dict[int, int], missed: dict[int, int]
) -> list[tuple[int, float]]:
    """Return (class, IoU) of an image's matches; count what stayed alone into the other arguments."""
    ids, predicted_ids = _read(truth.id_map), _read(prediction.id_map)
    true = {region.id: region for region in truth.regions}
    predicted = {region.id: region for region in prediction.regions}
    area = {int(i): int(n) for i, n in zip(*np.unique(predicted_ids, return_counts=True), strict=True)}
    if set(area) - {0} != set(predicted):
        raise ValueError("listed and drawn segments differ")
    keys, counts = np.unique(ids.astype(np.uint64) * OFFSET + predicted_ids.astype(np.uint64), return_counts=True)
    shared = {(int(k) // OFFSET, int(k) % OFFSET): int(n) for k, n in zip(keys, counts, strict=True)}
    found, taken, used = [], set(), set()
    for (g, p), intersection in shared.items():
        if g not in true or p not in predicted or true[g].is_crowd or true[g].category_id != predicted[p].category_id:
            continue
        iou = intersection / (area[p] + true[g].area - intersection - shared.get((0, p), 0))
        if iou > 0.5:
            found.append((true[g].category_id, iou))
            taken.add(g)
            used.add(p)
    for g, region in true.items():
        if g not in taken and not region.is_crowd:
            missed[region.category_id] += 1
    crowds = {region.category_id: g for g, region in true.items() if region.is_crowd}
    for p, region in predicted.items():
        excused = shared.get((0, p), 0) + shared.get((crowds.get(region.category_id), p), 0)
        if p not in used and excused / area[p] <= 0.5:
            spurious[region.category_id] += 1
    return found


def _read(path: str) -> np.ndarray:
    rgb = np.array(Image.open(path), dtype=np.uint32)
    return rgb[:, :, 0] + 256 * rgb[:, :, 1] + 256 * 256 * rgb[:, :, 2]
