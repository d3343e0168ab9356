"""Gradients that are not finite: the step is left out on the device, and the host learns of it without waiting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import NumericError
from .distributed import World, gather_texts


@dataclass(slots=True)
class _Step:
    """A step whose numbers are on their way to the host: gradient norm first, then each loss part of this rank."""

    number: int
    names: list[str]
    values: Tensor
    image_ids: list[Any]
    arrived: torch.cuda.Event | None


class FiniteWatch:
    """Reads the gradient norm of a step while the next one runs, and stops a run that does not recover.

    The norm is that of the gradient summed over ranks, so all ranks read the same.

    Args:
        world: this process among its peers.
        max_skipped: steps in a row that may be left out.
        on_skip: called on rank 0 with the step, its norm, and per rank the loss parts and image ids.

    Attributes:
        in_a_row: steps left out since the last good one.
        skipped: steps left out in all.
    """

    def __init__(self, world: World, max_skipped: int, on_skip: Any = None) -> None:
        self.world, self.max_skipped, self.on_skip = world, max_skipped, on_skip
        self.in_a_row = self.skipped = 0
        self._late: _Step | None = None

    def note(self, number: int, norm: Tensor, parts: Mapping[str, Tensor], image_ids: Sequence[Any]) -> None:
        """Start reading a step's numbers, and judge the step before (on the CPU this one).

        Raises:
            NumericError: as `judge`.
        """
        self.judge()
        values = torch.stack([value.detach().double() for value in (norm, *parts.values())])
        arrived = None
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._late = _Step(number, list(parts), values, list(image_ids), arrived)
        if arrived is None:
            self.judge()

    def judge(self) -> None:
        """Look at the numbers that are under way; on a GPU this waits for them.

        Raises:
            NumericError: more steps in a row than may be were left out.
        """
        step, self._late = self._late, None
        if step is None:
            return
        if step.arrived is not None:
            step.arrived.synchronize()
        norm, *losses = step.values.tolist()
        if norm - norm == 0:  # neither infinite nor NaN
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        self._tell(step, norm, dict(zip(step.names, losses, strict=True)))

    def _tell(self, step: _Step, norm: float, losses: dict[str, float]) -> None:
        """Gather what every rank was doing; rank 0 keeps it, and all stop together."""
        bad = [name for name, value in losses.items() if value - value != 0]
        own = {"images": step.image_ids, "losses": {k: repr(v) for k, v in losses.items()}, "bad": bad}
        gathered = gather_texts(json.dumps(own))
        if gathered is not None and self.on_skip:
            self.on_skip(step.number, norm, [json.loads(text) for text in gathered])
        if self.in_a_row > self.max_skipped:
            raise divergence(step.number, "The gradient is not finite.", step.image_ids, bad, self.in_a_row)


def divergence(
    step: int, what: str, image_ids: Sequence[Any], bad: Sequence[str] | None = None, steps: int = 1
) -> NumericError:
    """Return the error of a run that has diverged.

    Args:
        step: its number, from 1.
        what: one sentence.
        image_ids: of this rank's batch.
        bad: names of the losses that are not finite; None where that is not known.
        steps: how many in a row.
    """
    value = None
    if bad is not None:
        value = f"not finite: {', '.join(bad) or 'no loss of this process, only the gradient'}"
        value += f"; {steps} steps in a row" if steps > 1 else ""
    return NumericError(
        f"Training has diverged at step {step}. {what}",
        where=f"images {list(image_ids)}",
        value=value,
        allowed="finite losses and gradients",
        fix="lower SOLVER.BASE_LR, or PRECISION fp32; not_finite.jsonl lists the steps, the last checkpoint is intact",
    )
