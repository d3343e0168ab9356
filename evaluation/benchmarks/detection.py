"""Average precision of boxes: the protocol from records, and the library it rests on, beside pycocotools."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

from ...datasets.categories import COCO_PANOPTIC
from ...datasets.records import Record, Region
from ..runner import evaluate_stored
from .boxes import HEIGHT, WIDTH, draw_coco
from .measuring import Way, measure_in_turn
from .report import Report, same_figures

IMAGES = {"small": 300, "val": 5000}
GOAL = 8.0
NAMES = (
    "ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large",
    "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Boxes:
    """One set of boxes in two forms.

    Attributes:
        truth, results: COCO's dictionaries.
        pairs: (truth, prediction) records.
    """

    truth: dict[str, Any]
    results: list[dict[str, Any]]
    pairs: list[tuple[Record, Record]]


def detection(size: str, repeats: int) -> Report:
    """Compare the protocol, its library alone, and pycocotools."""
    ways = [
        Way("pycocotools", pycocotools_figures),
        Way("faster-coco-eval alone", faster_figures),
        Way("ours", protocol),
    ]
    found, figures = measure_in_turn(ways, lambda turn: draw_boxes(IMAGES[size], turn), repeats=repeats)
    facts = {"same figures": same_figures(figures, 1e-12), "ap": figures[0][0]["ap"]}
    return Report("detection", IMAGES[size], "images", found[2:], found[:2], facts, GOAL)


def draw_boxes(images: int, seed: int) -> Boxes:
    """Draw boxes as `draw_coco` does, and make records of them."""
    truth, results = draw_coco(images, seed)
    pairs = [tuple(Record(i, HEIGHT, WIDTH) for _ in range(2)) for i in range(images)]
    for side, bodies in enumerate((truth["annotations"], results)):
        for index, body in enumerate(bodies, 1):
            x, y, width, height = body["bbox"]
            geometry = {"box_xyxy": (x, y, x + width, y + height), "area": body.get("area")}
            more = {"is_crowd": bool(body.get("iscrowd")), "score": body.get("score")}
            pairs[body["image_id"]][side].regions.append(Region(index, body["category_id"], **geometry, **more))
    return Boxes(truth, results, pairs)


def protocol(boxes: Boxes) -> dict[str, float]:
    """Return the figures of the protocol."""
    truth, predictions = ([pair[side] for pair in boxes.pairs] for side in (0, 1))
    (result,) = evaluate_stored(truth, predictions, ["detection"], COCO_PANOPTIC)
    return {name: result.figures[name] for name in NAMES}


def pycocotools_figures(boxes: Boxes) -> dict[str, float]:
    """Return COCO's figures by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _figures(COCO, COCOeval, boxes)


def faster_figures(boxes: Boxes) -> dict[str, float]:
    """Return COCO's figures by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    return _figures(COCO, COCOeval_faster, boxes)


def _figures(coco_class: type, evaluator_class: type, boxes: Boxes) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = coco_class()
        coco.dataset = boxes.truth | {"annotations": [dict(body) for body in boxes.truth["annotations"]]}
        coco.createIndex()
        evaluator = evaluator_class(
            coco, coco.loadRes([dict(body) for body in boxes.results]), "bbox"
        )  # loading adds keys
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(NAMES, map(float, evaluator.stats), strict=False))
