"""How predictions are scored: which protocols, in which variants, and which of their figures are shown first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from ..datasets.records import Record
from ..datasets.shapes import holds, read_caption
from ..datasets.tasks import asked
from ..evaluation.report import print_results
from ..evaluation.results import ProtocolResult
from ..evaluation.runner import evaluate_stored, evaluator_class, make_evaluators
from ..utils.errors import UsageError, nearest
from .data import EvalSet

CAPTION_ATTRIBUTES = "caption_attributes"
PANOPTIC_ON = "MODEL.DECODER.TEST.PANOPTIC_ON"
SCORED_BY = {  # task: protocol
    "": "panoptic_captioning",
    "trace": "narrative_trace",
    "caption": "image_captioning",
    "region": "region_captioning",
    "refer": "referring",
    "detect": "dense_captioning",
}
HEADLINES = {  # figure: (name, factor)
    "pq": ("PQ", 100),
    "sq": ("SQ", 100),
    "rq": ("RQ", 100),
    "pq_things": ("PQ things", 100),
    "pq_stuff": ("PQ stuff", 100),
    "map": ("mAP", 100),
    "detection_map": ("detection mAP", 100),
    "box_precision@0.5": ("P@0.5", 100),
    "ciou": ("cIoU", 100),
    "giou": ("gIoU", 100),
    "euclidean_error": ("word error %", 100),
    "point_l1": ("point L1 %", 100),
    "coverage": ("coverage %", 100),
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

LOWER_IS_BETTER = ("word error %", "point L1 %")


def protocols_of(eval_set: EvalSet, cfg: Any) -> list[str]:
    """Return the protocols that score a data set: PROTOCOLS, or the one of its task.

    Raises:
        UsageError: nothing measures how well its task is done.
    """
    if eval_set.task not in SCORED_BY:
        scored = ", ".join(task for task in SCORED_BY if task)
        raise UsageError(
            f"No protocol scores the task {eval_set.task}.",
            where="DATASETS.TEST",
            value=eval_set.name,
            allowed=f"data sets of the tasks {scored}",
            fix=f"leave {eval_set.name} out of DATASETS.TEST",
        )
    return list(cfg.PROTOCOLS) or [SCORED_BY[eval_set.task]]


def protocol_options(eval_set: EvalSet, cfg: Any) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of each protocol; EVAL_VARIANTS tells those that have such a variant, under the name
    of the data set or else of its task.

    Raises:
        UsageError: a protocol does not suit the data.
    """
    protocols = protocols_of(eval_set, cfg)
    if CAPTION_ATTRIBUTES in protocols and not eval_set.is_shapes():
        raise UsageError(
            "Only drawn scenes know the truth about every word.",
            where="PROTOCOLS",
            value=CAPTION_ATTRIBUTES,
            allowed="with DATASETS.TEST [shapes_val] or [shapes_test]",
        )
    options = {"panoptic_captioning": {"variant": cfg.EVAL_PROTOCOL}, CAPTION_ATTRIBUTES: {"judge": judge_shapes}}
    variants = cfg.EVAL_VARIANTS
    if variant := variants.get(eval_set.name) or variants.get(eval_set.task):
        having = [protocol for protocol in protocols if variant in evaluator_class(protocol).variants]
        for protocol in having or protocols:  # the first that lacks it says which there are
            options[protocol] = {**options.get(protocol, {}), "variant": variant}
    return options


def check_protocols(cfg: Any, eval_sets: Sequence[EvalSet]) -> None:
    """Raise the `UsageError` of wrong PROTOCOLS, EVAL_VARIANTS, tasks or BEST_FIGURE now, not after hours."""
    check_best_figure(cfg)
    for eval_set in eval_sets:
        protocols = protocols_of(eval_set, cfg)
        if not OmegaConf.select(cfg, PANOPTIC_ON, default=True):
            raise UsageError(
                "The protocols score panoptic segments, which the model is told not to return.",
                where=PANOPTIC_ON,
                value=False,
                allowed=f"true, with PROTOCOLS {protocols}",
                fix=f"--overrides {PANOPTIC_ON} true",
            )
        make_evaluators(protocols, eval_set.reader.categories, options=protocol_options(eval_set, cfg))


def score(truth: Sequence[Record], predictions: Sequence[Record], eval_set: EvalSet, cfg: Any) -> list[ProtocolResult]:
    """Score the predictions of a data set by its protocols; drawn scenes may also be judged word by word."""
    if eval_set.task:
        truth = [asked(record, eval_set.task) for record in truth]
    options = protocol_options(eval_set, cfg)
    protocols = protocols_of(eval_set, cfg)
    return evaluate_stored(truth, predictions, protocols, eval_set.reader.categories, options=options)


def judge_shapes(caption: str, region: Any, record: Record) -> dict[str, bool | None]:
    """Say which words of a caption are true of a drawn scene."""
    return holds(read_caption(caption), region, record)


def headline(scored: Mapping[str, Sequence[ProtocolResult]]) -> dict[str, float]:
    """Return the figures people quote, under the names and in the units they quote them in.

    Args:
        scored: name of a data set -> its results; where there are several, the name follows that of the figure.
    """
    quoted: dict[str, float] = {}
    for data, results in scored.items():
        figures = {name: value for result in reversed(results) for name, value in result.figures.items()}
        ending = f" ({data})" if len(scored) > 1 else ""
        for name, (shown, factor) in HEADLINES.items():
            if name in figures:
                quoted[shown + ending] = factor * figures[name]
    return quoted


def deciding_figure(cfg: Any, figures: Mapping[str, float]) -> tuple[str, bool]:
    """Return the name of the figure that says which weights are best, and whether more of it is better.

    Raises:
        UsageError: BEST_FIGURE is none of them.
    """
    name = cfg.BEST_FIGURE or next(iter(figures))
    if name not in figures:
        close = nearest(name, figures)
        raise UsageError(
            "The evaluation has no such figure.",
            where="BEST_FIGURE",
            value=name,
            allowed=", ".join(figures),
            fix=f'--overrides BEST_FIGURE "{close}"' if close else None,
        )
    return name, name.partition(" (")[0] not in LOWER_IS_BETTER


def check_best_figure(cfg: Any) -> None:
    """Raise UsageError where BEST_FIGURE is none that any evaluation shows, before training."""
    shown = {name: 0.0 for name, _ in HEADLINES.values()}
    if cfg.BEST_FIGURE:
        name, bracket, _ = cfg.BEST_FIGURE.partition(" (")
        deciding_figure(cfg, {**shown, cfg.BEST_FIGURE: 0.0} if bracket and name in shown else shown)


def print_scores(scored: Mapping[str, Sequence[ProtocolResult]]) -> None:
    """Print the results of each data set; where there are several, under its name."""
    console = Console()
    for data, results in scored.items():
        if len(scored) > 1:
            console.print(data, style="bold", markup=False, highlight=False)
        print_results(results, console)
