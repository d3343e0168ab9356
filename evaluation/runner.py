"""Score stored predictions by any protocols."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..datasets.records import Category, Record
from ..utils.errors import MissingDependencyError, UsageError, nearest
from . import EVALUATORS
from .pairing import pair_predictions
from .progress import track
from .results import ImageEvaluator, ImageId, ProtocolResult

COLLECT_AFTER = 100_000  # new objects; Python's own default is 700 to 2000


def make_evaluators(
    protocols: Sequence[str],
    categories: Sequence[Category],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    image_order: Sequence[ImageId] | None = None,
) -> list[ImageEvaluator]:
    """Make one evaluator per protocol.

    Args:
        protocols: keys of ``EVALUATORS``.
        categories: the classes of the data set.
        options: protocol -> keyword arguments, such as ``{"panoptic_captioning": {"variant": "upstream"}}``.
        image_order: the image ids in the order of the ground truth.

    Raises:
        UsageError: no such protocol.
    """
    options = options or {}
    return [evaluator_class(name)(categories, image_order=image_order, **options.get(name, {})) for name in protocols]


def evaluator_class(protocol: str) -> type[ImageEvaluator]:
    """Return the class of a protocol; raises `UsageError` if there is none."""
    if protocol in EVALUATORS:
        return EVALUATORS[protocol]
    close = nearest(protocol, EVALUATORS)
    raise UsageError(
        "There is no such protocol.",
        value=protocol,
        allowed=", ".join(EVALUATORS),
        fix=f"use {close}" if close else None,
    )


def evaluate_stored(
    ground_truth: Iterable[Record],
    predictions: Iterable[Record],
    protocols: Sequence[str],
    categories: Sequence[Category],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ProtocolResult]:
    """Score predictions by several protocols in one pass; each image's truth and prediction are decoded as needed.

    Args:
        ground_truth: one record per image; all are held, so images and id maps had better be paths.
        predictions: one record per image, in any order.
        protocols, categories, options: as `make_evaluators`.

    Returns:
        One result per protocol, in the order asked for; what the machine lacks is named in ``unavailable``.

    Raises:
        DataError: predictions and ground truth do not fit together.
        UsageError: no such protocol or variant.
    """
    ground_truth = list(ground_truth)
    with fewer_collections():
        by_image = pair_predictions(ground_truth, predictions)
        order = [record.image_id for record in ground_truth]
        evaluators = make_evaluators(protocols, categories, options=options, image_order=order)
        for evaluator in evaluators:
            evaluator.warm_up()
        for record in track(ground_truth, "evaluating images"):
            truth, prediction = _decoded(record), _decoded(by_image[record.image_id])
            for evaluator in evaluators:
                evaluator.update(truth, prediction)
        return [compute(evaluator) for evaluator in evaluators]


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Let Python look for reference cycles more rarely: there are hardly any, among millions of small lists."""
    before = gc.get_threshold()
    if before[0]:  # 0: it never looks
        gc.set_threshold(max(before[0], COLLECT_AFTER), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _decoded(record: Record) -> Record:
    """Return the record with its id map in memory, so that several protocols share one decoding."""
    return replace(record, id_map=record.read_id_map()) if isinstance(record.id_map, str) else record


def compute(evaluator: ImageEvaluator) -> ProtocolResult:
    """Return the evaluator's result; when the machine lacks something it rests on entirely, a result that says so."""
    try:
        return evaluator.compute()
    except MissingDependencyError as err:
        return ProtocolResult(evaluator.protocol, evaluator.variant, unavailable={"all figures": str(err)})
