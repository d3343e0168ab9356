"""Throughput of METEOR: our process beside the same jar run on files, and beside asking it for a pair at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ..captions.meteor import Meteor
from . import jar
from .measuring import Measurement, Way, java_seconds, measure_in_turn
from .report import Report, same_figures
from .sentences import rewrite_caption, write_caption

PAIRS = {"small": 20_000, "val": 100_000}
GOAL = 1.0
SHOWN = 1000  # pairs whose own scores are compared
Pairs = tuple[list[str], list[str]]


def meteor(size: str, repeats: int) -> Report:
    """Compare the ways of scoring many pairs; a start is measured apart, and taken off the run on files."""
    ours, lock_step = Meteor(), jar.LockStepMeteor()
    try:
        facts = _starts(ours, lock_step)
        ways = [
            Way("the jar on files, with its start", lambda pairs: _figures(*jar.score_files(*pairs))),
            Way("its start", lambda pairs: _figures(*jar.score_files(["a"], ["b"]))),
            Way("the jar, a pair at a time", lambda pairs: _one_by_one(lock_step, pairs)),
            Way("ours", lambda pairs: _ours(ours, pairs)),
        ]
        found, figures = measure_in_turn(ways, lambda turn: draw_pairs(PAIRS[size], seed=turn), repeats=repeats)
    finally:
        ours.close()
        lock_step.close()
    compared = [[turn[3], turn[0]] for turn in figures]
    pooled_aside = [[{k: v for k, v in turn[3].items() if k != "pooled"}, turn[2]] for turn in figures]
    facts = {"same figures": same_figures(compared, 1e-12) and same_figures(pooled_aside, 1e-12)} | facts
    others = [_difference("the jar on files, without its start", found[0], found[1]), found[2], found[0]]
    return Report("meteor", PAIRS[size], "pairs", found[3:], others, facts, GOAL)


def draw_pairs(count: int, seed: int) -> Pairs:
    """Return candidates and references, tokens between spaces; no two pairs are the same."""
    rng = np.random.default_rng([seed, count])
    references = [_tokens(write_caption(rng)) for _ in range(count)]
    return [_tokens(rewrite_caption(rng, text)) or "a" for text in references], references


def _tokens(caption: str) -> str:
    return caption.lower().replace(",", "").rstrip(".")


def _starts(ours: Meteor, lock_step: jar.LockStepMeteor) -> dict[str, float]:
    """Wait for both processes; returns what the start of ours took."""
    lock_step.score("a dog", ["a cat"])
    java, wall = java_seconds(), time.perf_counter()
    ours.score(["a dog"], [["a cat"]])
    return {
        "our start, Java s": round(java_seconds() - java, 1),
        "our start, wall s": round(time.perf_counter() - wall, 1),
    }


def _ours(scorer: Meteor, pairs: Pairs) -> dict[str, float]:
    scores = scorer.score(pairs[0], [[text] for text in pairs[1]])
    return _figures(scores.segments.tolist(), scores.corpus)


def _one_by_one(scorer: jar.LockStepMeteor, pairs: Pairs) -> dict[str, float]:
    scores = [scorer.score(candidate, [reference]) for candidate, reference in zip(*pairs, strict=True)]
    figures = _figures(scores, 0.0)
    del figures["pooled"]  # asking for single pairs never pools them
    return figures


def _figures(segments: Sequence[float], pooled: float) -> dict[str, float]:
    each = {f"pair {index}": score for index, score in enumerate(segments[:SHOWN])}
    return {"mean": float(np.mean(segments)), "pooled": pooled} | each


def _difference(name: str, whole: Measurement, part: Measurement) -> Measurement:
    return Measurement(
        name,
        whole.cpu_seconds - part.cpu_seconds,
        whole.java_seconds - part.java_seconds,
        whole.wall_seconds - part.wall_seconds,
    )
