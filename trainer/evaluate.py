"""Predict a data set with a model, store the predictions, then score them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from ..datasets.loader import EvalLoader
from ..datasets.reader import Reader
from ..datasets.records import Category, Record, record_from_json, record_to_json, write_records
from ..datasets.shapes import holds, read_caption
from ..evaluation.formats import load_predictions_and_meta
from ..evaluation.report import EvaluationReport, describe_source, print_results, write_regions_csv, write_report
from ..evaluation.results import ProtocolResult
from ..evaluation.runner import evaluate_stored, make_evaluators
from ..utils.errors import UsageError
from .data import is_shapes, open_reader, test_loader
from .distributed import World, gather_texts
from .progress import ProgressBar

CAPTION_ATTRIBUTES = "caption_attributes"
PANOPTIC_ON = "MODEL.DECODER.TEST.PANOPTIC_ON"
HEADLINES = {  # figure: (name, factor)
    "pq": ("PQ", 100),
    "sq": ("SQ", 100),
    "rq": ("RQ", 100),
    "pq_things": ("PQ things", 100),
    "pq_stuff": ("PQ stuff", 100),
    "map": ("mAP", 100),
    "detection_map": ("detection mAP", 100),
    "meteor": ("METEOR", 1),
    "cider": ("CIDEr", 1),
    "rouge_l": ("ROUGE-L", 1),
    "bleu_4": ("BLEU-4", 1),
    "size": ("size %", 100),
    "colour": ("colour %", 100),
    "texture": ("texture %", 100),
    "shape": ("shape %", 100),
    "relation": ("relation %", 100),
}


def predict_all(model: nn.Module, loader: EvalLoader, world: World, dtype: torch.dtype | None = None) -> list[Record]:
    """Predict every image; each rank does whole batches.

    Returns:
        On rank 0 one record per image in the order of the data set, with masks as run lengths; elsewhere nothing.
    """
    was_training = model.training
    model.eval()
    rows = []
    with ProgressBar("predicting", len(loader), enabled=world.is_main) as bar:
        for batch in loader:
            with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
                rows.append([record_to_json(record) for record in model.predict(batch.to(world.device))])
            bar.advance()
    model.train(was_training)
    gathered = gather_texts(json.dumps(rows))
    if gathered is None:
        return []
    shares = [json.loads(text) for text in gathered]
    order = [(batch, rank) for rank, share in enumerate(shares) for batch in range(len(share))]
    return [record_from_json(body) for batch, rank in sorted(order) for body in shares[rank][batch]]


def evaluate_model(
    model: nn.Module, reader: Reader, cfg: Any, world: World, folder: Path, *, name: str
) -> list[ProtocolResult]:
    """Predict and score a data set.

    The predictions are written before anything is scored: ``predictions.json``, then ``results.json`` and a CSV with a
    row per region, in ``folder``.

    Returns:
        On rank 0 one result per protocol; elsewhere nothing.
    """
    started = time.monotonic()
    dtype = autocast_dtype(cfg, world)
    predictions = predict_all(model, test_loader(reader, cfg, world), world, dtype)
    if not world.is_main:
        return []
    meta = {"data": name, "decoding": _decoding(cfg.MODEL.TEXT_DECODER), "seed": cfg.SEED}
    path = write_records(folder / "predictions.json", predictions, reader.categories, meta)
    truth = [reader[index] for index in range(len(reader))]
    results = score(truth, predictions, reader, cfg)
    report = EvaluationReport(
        results,
        describe_source(name, truth),
        describe_source(str(path), predictions, path),
        seconds=time.monotonic() - started,
        decoding=meta["decoding"],
        seed=meta["seed"],
    )
    write_report(folder / "results.json", report)
    for result in results:
        write_regions_csv(folder / f"{result.protocol}_regions.csv", result)
    return results


def _decoding(cfg: Any) -> dict[str, Any]:
    """Return how captions were looked for, as far as it changes them."""
    beams = {"beam_search": cfg.BEAM_SEARCH} if cfg.BEAM_SIZE > 1 else {}
    return {"beam_size": cfg.BEAM_SIZE, **beams, "max_words": cfg.MAX_STEPS}


def score_stored(cfg: Any, path: str) -> list[ProtocolResult]:
    """Score a stored result file against DATASETS.TEST; the report goes beside it."""
    started = time.monotonic()
    reader = open_reader(cfg.DATASETS.TEST, cfg)
    truth = [reader[index] for index in range(len(reader))]
    predictions, meta = load_predictions_and_meta(path, truth)
    results = score(truth, predictions, reader, cfg)
    name = ", ".join(cfg.DATASETS.TEST)
    report = EvaluationReport(
        results,
        describe_source(name, truth),
        describe_source(path, predictions, path),
        seconds=time.monotonic() - started,
        decoding=meta.get("decoding") or {},
        seed=meta.get("seed"),
    )
    stored = Path(path)
    print_results(results)
    write_report(stored.with_name(f"{stored.stem}_results.json"), report)
    return results


def score(truth: list[Record], predictions: list[Record], reader: Reader, cfg: Any) -> list[ProtocolResult]:
    """Score predictions by the configured protocols; drawn scenes are also judged word by word."""
    options = protocol_options(cfg)
    return evaluate_stored(truth, predictions, list(cfg.PROTOCOLS), reader.categories, options=options)


def check_protocols(cfg: Any, categories: Sequence[Category]) -> None:
    """Raise the `UsageError` of a wrong PROTOCOLS now, not after hours of training."""
    if not OmegaConf.select(cfg, PANOPTIC_ON, default=True):
        raise UsageError(
            "The protocols score panoptic segments, which the model is told not to return.",
            where=PANOPTIC_ON,
            value=False,
            allowed=f"true, with PROTOCOLS {list(cfg.PROTOCOLS)}",
            fix=f"--overrides {PANOPTIC_ON} true",
        )
    make_evaluators(list(cfg.PROTOCOLS), categories, options=protocol_options(cfg))


def protocol_options(cfg: Any) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of each protocol.

    Raises:
        UsageError: a protocol does not suit the data.
    """
    if CAPTION_ATTRIBUTES in cfg.PROTOCOLS and not is_shapes(cfg.DATASETS.TEST):
        raise UsageError(
            "Only drawn scenes know the truth about every word.",
            where="PROTOCOLS",
            value=CAPTION_ATTRIBUTES,
            allowed="with DATASETS.TEST [shapes_val] or [shapes_test]",
        )
    return {"panoptic_captioning": {"variant": cfg.EVAL_PROTOCOL}, CAPTION_ATTRIBUTES: {"judge": judge_shapes}}


def judge_shapes(caption: str, region: Any, record: Record) -> dict[str, bool | None]:
    """Say which words of a caption are true of a drawn scene."""
    return holds(read_caption(caption), region, record)


def headline(results: list[ProtocolResult]) -> dict[str, float]:
    """Return the figures people quote, under the names and in the units they quote them in."""
    figures = {name: value for result in reversed(results) for name, value in result.figures.items()}
    return {shown: scale * figures[name] for name, (shown, scale) in HEADLINES.items() if name in figures}


def autocast_dtype(cfg: Any, world: World) -> torch.dtype | None:
    """Return the half precision to predict in, or None for float32."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision(cfg, world)]


def precision(cfg: Any, world: World) -> str:
    """Return "fp32", "bf16" or "fp16": PRECISION, or what FP16 means on this device."""
    if cfg.PRECISION != "auto":
        return cfg.PRECISION
    return "fp16" if cfg.FP16 and world.device.type == "cuda" else "fp32"
