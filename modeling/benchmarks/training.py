"""A training step, from the batch to the moved weights, beside the same step by the published code's paths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...datasets.batches import Batch
from .. import pix2cap
from ..losses.terms import LossTerm
from ..pix2cap import Pix2Cap
from .host_waits import HostWaits, count_host_waits
from .inference import parts_of
from .measuring import PartMeter, Parts, Work, measure_in_turn
from .memory import allocated_gb
from .original_step import OriginalOptimizer, OriginalStep
from .report import Report, ratios
from .workload import Shape, draw_batch

MOVES = {"lr": 1e-7, "weight_decay": 0.05, "clip_norm": 1.0}  # so little that every step is the same
OURS, ORIGINAL = "locap", "published code's paths"


class FusedOptimizer:
    """Fused AdamW in a group per weight decay, after clipping by the norm of all gradients: as the trainer does it.

    Args:
        model: whose trained parameters move.
        lr, weight_decay, clip_norm: of all of them.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, clip_norm: float) -> None:
        self.parameters, self.clip_norm = [p for p in model.parameters() if p.requires_grad], clip_norm
        groups = [
            {"params": [p for p in self.parameters if (p.ndim > 1) == decays], "weight_decay": weight_decay * decays}
            for decays in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)

    def step(self) -> None:
        """Clip and step."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()


class Step:
    """Forward, losses, backward, clipping and the optimiser, as the trainer does them.

    Args:
        losses: of a batch.
        model: whose weights move.
        batch: the same for every call.
        optimizer: moves them.
        precision: what products are computed in; None: float32.
    """

    def __init__(
        self,
        losses: Callable[[Batch], dict[str, LossTerm]],
        model: Pix2Cap,
        batch: Batch,
        optimizer: FusedOptimizer | OriginalOptimizer,
        precision: torch.dtype | None = None,
    ) -> None:
        self.losses, self.model, self.batch = losses, model, batch
        self.optimizer, self.precision = optimizer, precision
        self.device = batch.images[0].device
        self.counts = model.counts(batch)  # the host's work on what it has

    def __call__(self) -> None:
        """Do one step."""
        torch.manual_seed(0)  # of dropout and stochastic depth
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            terms = self.losses(self.batch)
        self.backward(sum(term.total * term.weight / self.counts[term.counted] for term in terms.values()))
        self.update()
        self.model.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Fill the gradients."""
        loss.backward()

    def update(self) -> None:
        """Move the weights."""
        self.optimizer.step()

    def finished(self) -> None:
        """Do one step, and wait until the device has done it."""
        self()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def steps_of(
    model: Pix2Cap, batch: Batch, *, original: bool = True, precision: torch.dtype | None = None
) -> dict[str, Step]:
    """Return our step and, if wanted, the published code's, of one model in training mode, both once done."""
    model.train()
    model(batch)  # makes the table of frozen class sentences, which belongs to the start of a run
    steps = {OURS: Step(model, model, batch, FusedOptimizer(model, **MOVES), precision)}
    if original:
        steps[ORIGINAL] = Step(OriginalStep(model), model, batch, OriginalOptimizer(model, **MOVES), precision)
    for step in steps.values():
        step.finished()  # the optimisers' state is there from now on
    return steps


def training_step(
    model: Pix2Cap,
    shape: Shape,
    *,
    repeats: int,
    original: bool,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> Report:
    """Train steps on drawn images and captions; count, beside time and operations, waits of the host and memory.

    The table of frozen class sentences is made before: it belongs to the start of a run (see ``class_texts``).

    Args:
        model: under the recipe it is to be measured with.
        shape: of the batch.
        repeats: timed steps of each.
        original: whether to measure the published way.
        device: where.
        precision: of the products; None: float32.
    """
    model.to(device)
    batch = draw_batch(shape, model.captioner.words.num_embeddings).to(device)
    steps = steps_of(model, batch, original=original, precision=precision)
    memory = {name: allocated_gb(step, device) for name, step in steps.items()}
    waits = {name: count_host_waits(step, device) for name, step in steps.items()}
    works = [Work(name, step.finished, PartMeter(_parts(model, step))) for name, step in steps.items()]
    measured = [measurement for measurement, _ in measure_in_turn(works, repeats=repeats)]
    facts = {
        "trained parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "GB allocated at most": memory,
        "waits of the host": waits,
        "of ours outside matching": waits_outside_matching(steps[OURS]),
    }
    report = Report("training_step", measured, facts)
    if original:
        report.ratios = {**ratios(*measured), "memory": memory[ORIGINAL] / memory[OURS]}
    return report


def waits_outside_matching(step: Step) -> int | None:
    """Return how often the host waits but for the assignment; None on a GPU, where CUDA counts all of them."""
    if step.device.type == "cuda":
        return None
    with HostWaits() as waits, waits.set_apart(pix2cap, "assign"):
        step()
    return waits.found.total()


def _parts(model: Pix2Cap, step: Step) -> Parts:
    parts: Parts = {**parts_of(model), "matching": (step.losses, ("_match",)), "backward": (step, ("backward",))}
    if step.losses is model:
        parts["matching"] = (model, ("_pair",))
    return {**parts, "optimiser": (step, ("update",))}
