"""COCO's evaluator run in memory: no file is written, nothing is printed.

Both back ends are the published programs: faster-coco-eval (C++), and pycocotools, which it reproduces to 1e-15.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.errors import MissingDependencyError

BACKENDS = ("faster", "pycocotools")
Annotation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image's annotations in COCO's terms.

    Attributes:
        height, width: pixels.
        truth: ``category_id, area, iscrowd`` and ``bbox``, ``segmentation``, or ``keypoints`` with ``num_keypoints``.
        predicted: ``category_id, area, score`` and the same geometry.

    The back ends add keys of their own to the annotations.
    """

    height: int
    width: int
    truth: list[Annotation]
    predicted: list[Annotation]


@dataclass(frozen=True, slots=True)
class CocoCurves:
    """What COCO's evaluator found; -1 where the ground truth has nothing to find.

    Attributes:
        iou_thresholds: float64 [T].
        precision: float64 [T, R, K, A, M], at R recalls for K categories, A areas and M numbers of detections.
        recall: float64 [T, K, A, M], the highest.
        overlaps: (index of the image, category id) -> IoU or OKS [predicted, truth], the best-scored ``M[-1]``
            predictions best first, the truth in its order; an empty list where either is absent. With
            ``class_agnostic`` the category id is -1 and both follow the order of the categories.
    """

    iou_thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    overlaps: Mapping[tuple[int, int], Any]


def coco_curves(
    images: Sequence[CocoImage],
    category_ids: Sequence[int],
    kind: str,
    *,
    max_detections: Sequence[int],
    class_agnostic: bool = False,
    sigmas: Sequence[float] | None = None,
    backend: str = "faster",
) -> CocoCurves:
    """Run COCO's evaluator.

    Args:
        images: in the order in which predictions of equal score are ranked.
        category_ids: ascending.
        kind: "bbox", "segm" or "keypoints".
        max_detections: ascending; how many of an image's predictions (of one category) count.
        class_agnostic: COCO's ``useCats = 0``.
        sigmas: keypoints' falloff, COCO's 17 if not given.
        backend: one of `BACKENDS`.

    Raises:
        MissingDependencyError: the back end is not installed.
    """
    coco_class, evaluator_class, silent = _classes(backend)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _dataset(coco_class, images, category_ids, "truth")
        predicted = _dataset(coco_class, images, category_ids, "predicted")
        evaluator = evaluator_class(truth, predicted, kind, **silent)
        evaluator.params.imgIds = list(range(len(images)))
        evaluator.params.catIds = list(category_ids)
        evaluator.params.maxDets = list(max_detections)
        evaluator.params.useCats = int(not class_agnostic)
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = (np.asarray(evaluator.eval[name], np.float64) for name in ("precision", "recall"))
    return CocoCurves(np.asarray(evaluator.params.iouThrs), precision, recall, evaluator.ious)


def _classes(backend: str) -> tuple[type, type, dict[str, Any]]:
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval, {}
    try:
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    except ImportError as err:
        raise MissingDependencyError(
            "faster-coco-eval cannot be imported.",
            value=str(err),
            fix="pip install faster-coco-eval; or --option backend=pycocotools, the same figures eight times slower",
        ) from None
    return COCO, COCOeval_faster, {"print_function": lambda *_: None}


def _dataset(coco_class: type, images: Sequence[CocoImage], category_ids: Sequence[int], side: str) -> Any:
    """Return a COCO object; its images and annotations get numbers in their order, annotations from 1."""
    annotations = []
    for index, image in enumerate(images):
        for body in getattr(image, side):
            annotations.append(body)
            body["id"], body["image_id"] = len(annotations), index
    coco = coco_class()
    coco.dataset = {
        "images": [{"id": i, "height": image.height, "width": image.width} for i, image in enumerate(images)],
        "categories": [{"id": category_id} for category_id in category_ids],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
