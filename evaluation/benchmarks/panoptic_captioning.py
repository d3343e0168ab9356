"""Panoptic captioning beside straightforward loops over thresholds, predictions and segments."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...datasets.categories import COCO_PANOPTIC
from ...datasets.records import Record, Region
from ..captions import ptb
from ..panoptic_captioning import IOU_THRESHOLDS, METEOR_THRESHOLDS, PanopticCaptioning
from .jar import LockStepMeteor
from .pairwise import Pairs, Scorer, compare_with_loops, loop_average_precision
from .report import Report
from .scenes import draw_scenes

IMAGES = {"small": 60, "val": 2338}  # val: Pix2Cap-COCO's
SAMPLE = 300
FIGURES = ("map", "detection_map", "meteor", "cider", "rouge_l", "bleu_4")


def panoptic_captioning(size: str, repeats: int) -> Report:
    """Compare the protocol with its definition in loops."""
    images = IMAGES[size]
    options = {"images": images, "sample": SAMPLE, "repeats": repeats}
    return compare_with_loops(
        "panoptic_captioning", lambda turn: draw_scenes(images, captions=True, seed=turn), protocol, loops, **options
    )


def protocol(pairs: Pairs) -> dict[str, float]:
    """Return the figures of the protocol."""
    evaluator = PanopticCaptioning(COCO_PANOPTIC)
    for truth, prediction in pairs:
        evaluator.update(truth, prediction)
    figures = evaluator.compute().figures
    return {name: figures[name] for name in FIGURES}


@dataclass(slots=True)
class Scene:
    """One image, compared segment by segment.

    Attributes:
        truth: segments to be found, with tokenised captions.
        predicted: by falling score, with tokenised captions.
        iou: (index of truth, index of predicted) -> IoU.
        forgiven: of each prediction.
    """

    truth: list[tuple[Region, list[str]]]
    predicted: list[tuple[Region, str]]
    iou: dict[tuple[int, int], float]
    forgiven: list[bool]


def loops(pairs: Pairs, score: Scorer, process: LockStepMeteor) -> dict[str, float]:
    """Return the same figures from the protocol's definition, one threshold after the other."""
    tokens = iter(ptb.PtbTokenizer().tokenize(_captions(pairs)))
    scenes = [_compare(truth, prediction, tokens) for truth, prediction in pairs]
    values, detection = [], []
    for iou in IOU_THRESHOLDS:
        detection.append(_average_precision(scenes, iou, lambda *_: True))
        for least in METEOR_THRESHOLDS:
            values.append(_average_precision(scenes, iou, lambda c, r, least=least: score(c, r) > least))
    figures = {"map": float(np.mean(values)), "detection_map": float(np.mean(detection))}
    return figures | _text_metrics(scenes, process)


def _captions(pairs: Pairs) -> list[str]:
    return [text for pair in pairs for record in pair for region in record.regions for text in region.captions]


def _compare(truth: Record, prediction: Record, tokens: Iterator[str]) -> Scene:
    true = [(region, [next(tokens) for _ in region.captions]) for region in truth.regions]
    predicted = [(region, next(tokens)) for region in prediction.regions]
    shared = _shared_pixels(truth.id_map, prediction.id_map)
    area = {region.id: int((prediction.id_map == region.id).sum()) for region, _ in predicted}
    crowds = {region.category_id: region.id for region, _ in true if region.is_crowd}
    true = [item for item in true if not item[0].is_crowd]
    predicted.sort(key=lambda item: (-item[0].score, item[0].id))
    iou, forgiven = {}, []
    for p, (region, _) in enumerate(predicted):
        void = shared.get((0, region.id), 0)
        forgiven.append((void + shared.get((crowds.get(region.category_id), region.id), 0)) / area[region.id] > 0.5)
        for g, (other, _) in enumerate(true):
            if intersection := shared.get((other.id, region.id)):
                iou[g, p] = intersection / (area[region.id] + other.area - intersection - void)
    return Scene(true, predicted, iou, forgiven)


def _shared_pixels(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    keys, counts = np.unique(first.astype(np.uint64) << 32 | second.astype(np.uint64), return_counts=True)
    return {(int(key) >> 32, int(key) & (2**32 - 1)): int(n) for key, n in zip(keys, counts, strict=True)}


def _average_precision(
    scenes: Sequence[Scene], threshold: float, accept: Callable[[str, Sequence[str]], bool]
) -> float:
    records = []
    for index, scene in enumerate(scenes):
        free = set(range(len(scene.truth)))
        for p, (region, caption) in enumerate(scene.predicted):
            near = [(-scene.iou[g, p], g) for g in free if scene.iou.get((g, p), 0) >= threshold]
            if near:
                g = min(near)[1]
                free.remove(g)
                records.append((-region.score, index, region.id, accept(caption, scene.truth[g][1])))
            elif not scene.forgiven[p]:
                records.append((-region.score, index, region.id, False))
    return loop_average_precision((hit for *_, hit in sorted(records)), sum(len(scene.truth) for scene in scenes))


def _text_metrics(scenes: Sequence[Scene], process: LockStepMeteor) -> dict[str, float]:
    """Return pycocoevalcap's own metrics of the matched segments."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth: dict[int, list[str]] = {}
    given: dict[int, list[str]] = {}
    for scene in scenes:
        for (g, p), iou in scene.iou.items():
            if iou > 0.5 and scene.truth[g][0].category_id == scene.predicted[p][0].category_id:
                truth[len(given)], given[len(given)] = scene.truth[g][1], [scene.predicted[p][1]]
    with contextlib.redirect_stdout(io.StringIO()):
        cider, rouge, bleu = (metric.compute_score(truth, given)[0] for metric in (Cider(), Rouge(), Bleu(4)))
    meteor = process.pooled([texts[0] for texts in given.values()], list(truth.values()))
    return {"meteor": meteor, "cider": float(cider), "rouge_l": float(rouge), "bleu_4": float(bleu[3])}
