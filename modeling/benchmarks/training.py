"""A training step, forward and backward, beside the same losses by the published code's paths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...datasets.batches import Batch
from ..losses.terms import LossTerm
from ..pix2cap import Pix2Cap
from .inference import parts_of
from .measuring import PartMeter, Parts, Work, measure_in_turn
from .original_step import OriginalStep
from .report import Report, ratios
from .workload import Shape, draw_batch


class Step:
    """Forward, losses and backward, as the trainer does them; the optimiser is left out.

    Args:
        losses: of a batch.
        model: whose gradients they fill.
        batch: the same for every call.
    """

    def __init__(self, losses: Callable[[Batch], dict[str, LossTerm]], model: Pix2Cap, batch: Batch) -> None:
        self.losses, self.model, self.batch = losses, model, batch

    def __call__(self) -> None:
        """Do one step."""
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # of dropout and stochastic depth
        counts = self.model.counts(self.batch)
        terms = self.losses(self.batch)
        self.backward(sum(term.total * term.weight / counts[term.counted] for term in terms.values()))

    def backward(self, loss: Tensor) -> None:
        """Fill the gradients."""
        loss.backward()


def training_step(model: Pix2Cap, shape: Shape, *, repeats: int, original: bool) -> Report:
    """Train a step on drawn images and captions.

    The table of frozen class sentences is made before: it belongs to the start of a run (see ``class_texts``).

    Args:
        model: under the recipe it is to be measured with.
        shape: of the batch.
        repeats: timed steps of each.
        original: whether to measure the published way.
    """
    model.train()
    batch = draw_batch(shape, model.captioner.words.num_embeddings)
    model(batch)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    works = [_work("locap", model, Step(model, model, batch))]
    if original:
        works.append(_work("published code's paths", model, Step(OriginalStep(model), model, batch)))
    measured = [measurement for measurement, _ in measure_in_turn(works, repeats=repeats)]
    report = Report("training_step", measured, {"trained parameters": trained})
    if original:
        report.ratios = ratios(*measured)
    return report


def _work(name: str, model: Pix2Cap, step: Step) -> Work:
    parts: Parts = {**parts_of(model), "backward": (step, ("backward",))}
    return Work(name, step, PartMeter(parts))
