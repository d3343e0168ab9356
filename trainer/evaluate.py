"""Predict a data set with a model, store the predictions, then score them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..datasets.loader import EvalLoader
from ..datasets.reader import Reader
from ..datasets.records import Record, record_from_json, record_to_json, write_records
from ..evaluation.formats import load_predictions_and_meta
from ..evaluation.report import EvaluationReport, describe_source, print_results, write_regions_csv, write_report
from ..evaluation.results import ProtocolResult
from ..utils.errors import UsageError
from ..utils.fault_points import reach
from ..utils.progress import ProgressBar
from .data import EvalSet, eval_loader, open_eval_sets
from .distributed import World, gather_texts
from .entries import eval_groups, name_of
from .pictures import draw_predictions
from .scoring import score

PICTURES = "pictures"


def predict_all(
    model: nn.Module,
    loader: EvalLoader,
    world: World,
    dtype: torch.dtype | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Record] | None:
    """Predict every image; each rank does whole batches.

    Args:
        model: a system.
        loader: of the images.
        world: this process among its peers.
        dtype: half precision, or None.
        stop: asked before each batch; a rank that is told to stop predicts no more.

    Returns:
        On rank 0 one record per image in the order of the data set, with masks as run lengths, or None if a rank has
        stopped early; elsewhere None.
    """
    was_training = model.training
    model.eval()
    rows: list[list[dict[str, Any]]] | None = []
    with ProgressBar("predicting", len(loader), enabled=world.is_main) as bar:
        for batch in loader:
            reach("evaluate.batch")
            if stop():
                rows = None
                break
            with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
                rows.append([record_to_json(record) for record in model.predict(batch.to(world.device))])
            bar.advance()
    model.train(was_training)
    gathered = gather_texts(json.dumps(rows))
    if gathered is None:
        return None
    shares = [json.loads(text) for text in gathered]
    if None in shares:
        return None
    order = [(batch, rank) for rank, share in enumerate(shares) for batch in range(len(share))]
    return [record_from_json(body) for batch, rank in sorted(order) for body in shares[rank][batch]]


def evaluate_sets(
    model: nn.Module,
    eval_sets: Sequence[EvalSet],
    tokenizer: Any,
    cfg: Any,
    world: World,
    folder: Path,
    **options: Any,
) -> dict[str, list[ProtocolResult]]:
    """Predict and score data sets one after the other, see `evaluate_model`; returns name -> results."""
    return {s.name: evaluate_model(model, s, tokenizer, cfg, world, folder / s.folder, **options) for s in eval_sets}


def evaluate_model(
    model: nn.Module,
    eval_set: EvalSet,
    tokenizer: Any,
    cfg: Any,
    world: World,
    folder: Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    pictures: int = 0,
) -> list[ProtocolResult]:
    """Predict and score a data set.

    The predictions are written before anything is scored: ``predictions.json``, then ``results.json`` and a CSV with a
    row per region, in ``folder``.

    Args:
        model, eval_set, tokenizer, cfg, world: what is evaluated.
        folder: of the files.
        stop: see `predict_all`.
        pictures: images that are drawn, in ``pictures/``.

    Returns:
        On rank 0 one result per protocol, none if a rank was told to ``stop``; elsewhere nothing.
    """
    started = time.monotonic()
    loader = eval_loader(eval_set, tokenizer, cfg, world)
    predictions = predict_all(model, loader, world, autocast_dtype(cfg, world), stop)
    if predictions is None:
        return []
    meta = {"data": eval_set.name, "decoding": _decoding(cfg.MODEL), "seed": cfg.SEED}
    path = write_records(folder / "predictions.json", predictions, eval_set.reader.categories, meta)
    draw_predictions(predictions, eval_set.reader, folder / PICTURES, pictures, task=eval_set.task)
    truth = _records(eval_set.reader)
    results = score(truth, predictions, eval_set, cfg)
    report = EvaluationReport(
        results,
        describe_source(eval_set.name, truth),
        describe_source(str(path), predictions, path),
        seconds=time.monotonic() - started,
        decoding=meta["decoding"],
        seed=meta["seed"],
    )
    write_report(folder / "results.json", report)
    for result in results:
        write_regions_csv(folder / f"{result.protocol}_regions.csv", result)
    return results


def _records(reader: Reader) -> list[Record]:
    return [reader[index] for index in range(len(reader))]


def _decoding(model: Any) -> dict[str, Any]:
    """Return how texts were looked for, as far as it changes them and the configuration has it."""
    cfg = model.get("TEXT_DECODER")
    if cfg is None:
        return {}
    rule = cfg.get("BEAM_SEARCH")  # which systems have that know several
    beams = {"beam_search": rule} if rule and cfg.BEAM_SIZE > 1 else {}
    return {"beam_size": cfg.BEAM_SIZE, **beams, "max_words": cfg.MAX_STEPS}


def score_stored(cfg: Any, path: str) -> list[ProtocolResult]:
    """Score a stored result file against DATASETS.TEST; the report goes beside it.

    Raises:
        UsageError: several data sets are configured that are scored apart.
    """
    started = time.monotonic()
    eval_set = _only_eval_set(cfg)
    truth = _records(eval_set.reader)
    predictions, meta = load_predictions_and_meta(path, truth)
    results = score(truth, predictions, eval_set, cfg)
    report = EvaluationReport(
        results,
        describe_source(eval_set.name, truth),
        describe_source(path, predictions, path),
        seconds=time.monotonic() - started,
        decoding=meta.get("decoding") or {},
        seed=meta.get("seed"),
    )
    stored = Path(path)
    print_results(results)
    write_report(stored.with_name(f"{stored.stem}_results.json"), report)
    return results


def _only_eval_set(cfg: Any) -> EvalSet:
    groups = eval_groups(cfg)
    if len(groups) > 1:
        names = list(map(name_of, groups))
        raise UsageError(
            "A result file belongs to one data set, and several are configured.",
            where="DATASETS.TEST",
            value=f"[{', '.join(names)}]",
            allowed="the one that the file predicts",
            fix=f"--overrides DATASETS.TEST [{names[0]}]",
        )
    return open_eval_sets(cfg)[0]


def autocast_dtype(cfg: Any, world: World) -> torch.dtype | None:
    """Return the half precision to predict in, or None for float32."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision(cfg, world)]


def precision(cfg: Any, world: World) -> str:
    """Return "fp32", "bf16" or "fp16": PRECISION, or what FP16 means on this device."""
    if cfg.PRECISION != "auto":
        return cfg.PRECISION
    return "fp16" if cfg.FP16 and world.device.type == "cuda" else "fp32"
