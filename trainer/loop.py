"""The training loop: forward, divide by the global counts, backward, clip, step; everything else hangs on its hooks."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..datasets.batches import Batch, RegionTargets, Targets
from ..utils.errors import NumericError
from .checkpoint import TrainingState
from .distributed import World, sum_over_ranks
from .optimizer import Schedule


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step, as logged.

    Attributes:
        losses: the loss of each part over all ranks, weights applied.
        images_per_second: over all ranks since the last report, evaluations and checkpoints left out.
        data_wait: share of that time that was spent waiting for the loader.
        seconds: of the loop so far, everything included.
    """

    step: int
    epoch: float
    lr: float
    loss: float
    losses: dict[str, float]
    grad_norm: float
    images_per_second: float
    data_wait: float
    seconds: float


@dataclass(slots=True)
class _Meter:
    """What happened since the last report."""

    images: int = 0
    waited: float = 0.0
    aside: float = 0.0  # seconds of evaluations and checkpoints
    since: float = field(default_factory=time.monotonic)


class TrainingLoop:
    """Runs optimiser steps.

    Args:
        model: a system: ``model(batch, step_seed)`` gives `LossTerm`s and ``model.counts(batch)`` what they count.
        optimizer, schedule: see ``trainer/optimizer.py``.
        world: this process among its peers.
        seed: dropout and the class sentences are functions of it and of the step.
        precision: "fp32", "bf16" or "fp16".
        clip_norm: largest global gradient norm, or None.
        accumulate: batches per optimiser step.
        targets: what the model learns from.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        world: World,
        seed: int = 0,
        precision: str = "fp32",
        clip_norm: float | None = None,
        accumulate: int = 1,
        targets: type[Targets] = RegionTargets,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.world = model, optimizer, schedule, world
        self.seed, self.clip_norm, self.accumulate, self.targets = seed, clip_norm, accumulate, targets
        self.state = TrainingState()
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._forward = self._distributed(model)
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self._meter = _Meter()

    def _distributed(self, model: nn.Module) -> nn.Module:
        if self.world.size == 1:
            return model
        # gradients of 1 x 1 convolutions come with other strides of the same order: the copy costs nothing
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in torch
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **{sync: False})

    def run(
        self,
        batches: Iterable[Batch],
        steps_per_epoch: int,
        max_steps: int,
        *,
        should_report: Callable[[int], bool],
        on_report: Callable[[StepReport], None],
        after_step: Callable[[], None],
    ) -> None:
        """Train from ``self.state`` until ``max_steps`` optimiser steps are done.

        Args:
            batches: this rank's batches from the state's position on, epoch after epoch.
            steps_per_epoch: batches of an epoch.
            should_report: which steps are logged; all ranks must agree.
            on_report: called with their numbers.
            after_step: called after every step; evaluates and saves.
        """
        stream, self._meter = iter(batches), _Meter()
        while self.state.step < max_steps:
            window = list(self._take(stream))
            if not window:
                raise RuntimeError("the loader ended before the last step")
            terms, norm, lr = self.step(window)
            self._count_position(len(window), steps_per_epoch)
            if should_report(self.state.step):
                on_report(self._report(terms, norm, lr, steps_per_epoch))
            started = time.monotonic()
            after_step()
            self._meter.aside += time.monotonic() - started

    def _take(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for _ in range(self.accumulate):
            started = time.monotonic()
            batch = next(stream, None)
            self._meter.waited += time.monotonic() - started
            if batch is None:
                return
            self._meter.images += len(batch)
            yield batch.to(self.world.device)

    def step(self, window: list[Batch]) -> tuple[dict[str, Tensor], Tensor, float]:
        """Do one optimiser step on some batches; returns weighted losses (this rank's share), gradient norm, rate."""
        step = self.state.step
        lr = self.schedule.apply(self.optimizer, step)
        torch.manual_seed(_mix(self.seed, step, self.world.rank))
        counts = self._global_counts(window)
        parts: dict[str, Tensor] = {}
        for index, batch in enumerate(window):
            synchronised = index == len(window) - 1 or self.world.size == 1
            try:
                with nullcontext() if synchronised else self._forward.no_sync():
                    self._backward(batch, _mix(self.seed, step), counts, parts)
            except NumericError as err:
                raise self._divergence(err.what, window) from err
        norm = self._clip()
        self._check_finite(norm, parts, window)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        return parts, norm, lr

    def _backward(self, batch: Batch, seed: int, counts: Mapping[str, float], parts: dict[str, Tensor]) -> None:
        share = float(len(batch) > 0)  # a rank without samples computes along and adds nothing
        batch = batch if share else Batch.blank(kind=self.targets).to(self.world.device)
        with torch.autocast(self.world.device.type, self._dtype, enabled=self._dtype is not None):
            terms = self._forward(batch, seed)
        losses = {name: term.total * (share * term.weight / counts[term.counted]) for name, term in terms.items()}
        # gradients are averaged over ranks, the division above is by the sum over ranks
        self._scaler.scale(sum(losses.values()) * self.world.size).backward()
        for name, value in losses.items():
            parts[name] = parts.get(name, 0) + value.detach()

    def _global_counts(self, window: list[Batch]) -> dict[str, float]:
        """Return what is counted over all batches of the window on all ranks, 1 at least."""
        per_batch = [self.model.counts(batch) for batch in window]
        names = sorted(per_batch[0])
        local = torch.tensor([sum(counts[name] for counts in per_batch) for name in names], dtype=torch.float64)
        total = local if self.world.size == 1 else sum_over_ranks(local.to(self.world.device)).cpu()
        return {name: max(value, 1.0) for name, value in zip(names, total.tolist(), strict=True)}

    def _clip(self) -> Tensor:
        self._scaler.unscale_(self.optimizer)
        largest = self.clip_norm if self.clip_norm else float("inf")
        return torch.nn.utils.clip_grad_norm_(self._trained, largest, foreach=True)

    def _check_finite(self, norm: Tensor, parts: Mapping[str, Tensor], window: list[Batch]) -> None:
        """Stop before a bad gradient reaches the weights; with fp16 the scaler skips the step instead."""
        if self._scaler.is_enabled() or bool(norm.isfinite()):
            return
        bad = [name for name, value in parts.items() if not bool(value.isfinite())]
        raise self._divergence("The gradient is not finite.", window, ", ".join(bad) or "no loss, only the gradient")

    def _divergence(self, what: str, window: list[Batch], bad: str | None = None) -> NumericError:
        return NumericError(
            f"Training has diverged at step {self.state.step + 1}. {what}",
            where=f"images {[image for batch in window for image in batch.image_ids]}",
            value=f"not finite: {bad}" if bad else None,
            allowed="finite losses and gradients",
            fix="lower SOLVER.BASE_LR, or PRECISION fp32; the last checkpoint is intact",
        )

    def _count_position(self, num_batches: int, steps_per_epoch: int) -> None:
        self.state.batch += num_batches
        while self.state.batch >= steps_per_epoch:
            self.state.batch -= steps_per_epoch
            self.state.epoch += 1

    def _report(self, parts: dict[str, Tensor], norm: Tensor, lr: float, steps_per_epoch: int) -> StepReport:
        names = sorted(parts)
        values = sum_over_ranks(torch.stack([parts[name].double() for name in names])).tolist()
        losses = dict(zip(names, values, strict=True))
        meter, now = self._meter, time.monotonic()
        elapsed = max(now - meter.since - meter.aside, 1e-9)
        self._meter = _Meter()
        self.state.seconds += now - meter.since
        return StepReport(
            step=self.state.step,
            epoch=self.state.epoch + self.state.batch / steps_per_epoch,
            lr=lr,
            loss=sum(values),
            losses=losses,
            grad_norm=float(norm),
            images_per_second=meter.images * self.world.size / elapsed,
            data_wait=meter.waited / elapsed,
            seconds=self.state.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's own state, for a checkpoint."""
        state = {name: getattr(self.state, name) for name in TrainingState.__slots__}
        return state | {"scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.state = TrainingState(**{name: state[name] for name in TrainingState.__slots__})
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers."""
    seed = 0x9E3779B97F4A7C15
    for number in numbers:
        seed = (seed ^ (number + 0x9E3779B9)) * 0xBF58476D1CE4E5B9 % 2**64
        seed ^= seed >> 31
    return seed % 2**63
