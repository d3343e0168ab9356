"""Average precision of boxes: faster-coco-eval beside pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from ...utils.errors import MissingDependencyError
from .boxes import draw_coco
from .measuring import Way, measure_in_turn
from .report import Report, same_figures

IMAGES = {"small": 300, "val": 5000}
GOAL = 8.0
NAMES = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100")
Data = tuple[dict[str, Any], list[dict[str, Any]]]


def detection(size: str, repeats: int) -> Report:
    """Compare the two libraries from COCO's dictionaries to COCO's figures."""
    ways = [Way("pycocotools", pycocotools_figures), Way("faster-coco-eval", faster_figures)]
    found, figures = measure_in_turn(ways, lambda turn: draw_coco(IMAGES[size], turn), repeats=repeats)
    facts = {"same figures": same_figures(figures, 1e-12), "ap": figures[0][0]["ap"]}
    return Report("detection", IMAGES[size], "images", found[1:], found[:1], facts, GOAL)


def pycocotools_figures(data: Data) -> dict[str, float]:
    """Return COCO's figures by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _figures(COCO, COCOeval, data)


def faster_figures(data: Data) -> dict[str, float]:
    """Return COCO's figures by faster-coco-eval.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise MissingDependencyError("faster-coco-eval is not installed.", fix="pip install faster-coco-eval") from None
    return _figures(COCO, COCOeval_faster, data)


def _figures(coco_class: type, evaluator_class: type, data: Data) -> dict[str, float]:
    truth, results = data
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = coco_class()
        coco.dataset = truth | {"annotations": [dict(body) for body in truth["annotations"]]}  # loading changes them
        coco.createIndex()
        evaluator = evaluator_class(coco, coco.loadRes([dict(body) for body in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(NAMES, map(float, evaluator.stats), strict=False))
