"""Predictions and ground truth from files, anyone's: one file per form, each turned into records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...datasets.records import Category, Record
from ...utils.errors import DataError, UsageError, nearest
from ...utils.untrusted import read_json, read_json_lines, shown
from ..pairing import pair_predictions
from . import (
    coco_captions,
    coco_detection,
    coco_panoptic,
    dlc_bench,
    expression_masks,
    glamm_regions,
    localized_narratives,
    muse,
    muse_annotations,
    record_file,
    refcoco,
    refcoco_mdetr,
    vg,
    vip_bench,
)
from .form import PredictionForm, TruthForm

TRUTHS: dict[str, TruthForm] = {
    "records": record_file.TRUTH,
    "coco_panoptic": coco_panoptic.TRUTH,
    "refcoco": refcoco.TRUTH,
    "refcoco_mdetr": refcoco_mdetr.TRUTH,
    "expression_masks": expression_masks.TRUTH,
    "muse": muse.TRUTH,
    "muse_annotations": muse_annotations.TRUTH,
    "vip_bench": vip_bench.TRUTH,
    "dlc_bench": dlc_bench.TRUTH,
    "coco_captions": coco_captions.TRUTH,
    "glamm_regions": glamm_regions.TRUTH,
    "vg_regions": vg.TRUTH,
    "visual_genome": vg.RAW_TRUTH,
    "coco_detection": coco_detection.TRUTH,
    "localized_narratives": localized_narratives.TRUTH,
}
PREDICTIONS: dict[str, PredictionForm] = {
    "records": record_file.PREDICTIONS,
    "coco_panoptic": coco_panoptic.PREDICTIONS,
    "refcoco": refcoco.PREDICTIONS,
    "expression_masks": expression_masks.PREDICTIONS,
    "muse": muse.PREDICTIONS,
    "vip_bench": vip_bench.PREDICTIONS,
    "dlc_bench": dlc_bench.PREDICTIONS,
    "coco_captions": coco_captions.PREDICTIONS,
    "grit_results": vg.GRIT,
    "grit_results_by_logit": vg.GRIT_BY_LOGIT,
    "vg_results": vg.PREDICTIONS,
    "coco_detection": coco_detection.PREDICTIONS,
    "localized_narratives": localized_narratives.PREDICTIONS,
}
Form = TypeVar("Form", TruthForm, PredictionForm)


def load_ground_truth(
    path: str | Path, folder: str | Path | None = None, *, form: str | None = None
) -> tuple[list[Record], list[Category]]:
    """Read ground truth.

    Args:
        path: JSON, or JSON lines.
        folder: where the files that it names lie; each form has its own default.
        form: key of ``TRUTHS``; found out from the file if not given.

    Raises:
        DataError: the file is malformed or of no known form.
        UsageError: there is no such form.
    """
    path = Path(path)
    document = read_document(path)
    chosen = _choose(TRUTHS, document, form, path, "ground truth")
    return chosen.read(path, document, None if folder is None else Path(folder))


def load_predictions(
    path: str | Path, ground_truth: list[Record], folder: str | Path | None = None, *, form: str | None = None
) -> list[Record]:
    """Read stored predictions and check that they are of the images of ``ground_truth``.

    Arguments and errors are those of `load_ground_truth` and `pair_predictions`.
    """
    return load_predictions_and_meta(path, ground_truth, folder, form=form)[0]


def load_predictions_and_meta(
    path: str | Path, ground_truth: list[Record], folder: str | Path | None = None, *, form: str | None = None
) -> tuple[list[Record], dict[str, Any]]:
    """Do as `load_predictions`; also return what the file says about how they were made (``decoding``, ``seed``)."""
    path = Path(path)
    document = read_document(path)
    chosen = _choose(PREDICTIONS, document, form, path, "predictions")
    predictions = chosen.read(path, document, ground_truth, None if folder is None else Path(folder))
    pair_predictions(ground_truth, predictions, where=shown(path))
    return predictions, chosen.read_meta(path, document)


def read_document(path: Path) -> Any:
    """Return what a JSON file, or the list of what a file of JSON lines (``.jsonl``), holds."""
    return read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)


def _choose(forms: Mapping[str, Form], document: Any, name: str | None, path: Path, what: str) -> Form:
    if name is not None:
        if name not in forms:
            close = nearest(name, forms)
            raise UsageError(
                f"There is no such form of {what}.",
                value=name,
                allowed=", ".join(forms),
                fix=f"use {close}" if close else None,
            )
        return forms[name]
    found = next((form for form in forms.values() if form.recognises(document)), None)
    if found is None:
        raise DataError(
            f"The file is of no known form of {what}.",
            where=shown(path),
            allowed="; ".join(f"{key}: {form.what}" for key, form in forms.items()),
        )
    return found
