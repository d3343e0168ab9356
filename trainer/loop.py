"""The training loop: forward, divide by the global counts, backward, clip, step; everything else hangs on its hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.bad_samples import BadSample
from ..datasets.batches import Batch, RegionTargets, Targets
from ..utils.endings import explain
from ..utils.errors import NumericError
from ..utils.fault_points import reach
from .checkpoint import TrainingState
from .distributed import World, sum_numbers, sum_over_ranks
from .ema import MovingAverage
from .finite import FiniteWatch, divergence
from .flops import counted_flops
from .log_values import learning_rates
from .meter import Meter
from .optimizer import Schedule
from .parallel import Replicas

FIRST_STEP, STEP, WAITING = "first step", "step", "waiting for data"  # phases, for who watches over hangs


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step, as logged.

    Attributes:
        lr: the largest learning rate.
        lrs: each distinct one, by its initial value.
        losses: the loss of each part over all ranks, weights applied.
        skipped: steps left out so far, since their gradient was not finite.
        images_per_second: over all ranks since the last report, evaluations and checkpoints left out.
        data_wait: share of that time that was spent waiting for the loader.
        shares: the same of each phase of a step.
        memory_gb: the most that was in use on rank 0, see `Meter`.
        mfu: estimated share of the device's arithmetic that was used; None where unknown.
        seconds: of the loop so far, everything included.
        image_ids: of this rank's images in the step.
    """

    step: int
    epoch: float
    lr: float
    lrs: dict[str, float]
    loss: float
    losses: dict[str, float]
    grad_norm: float
    skipped: int
    images_per_second: float
    data_wait: float
    shares: dict[str, float]
    memory_gb: float | None
    mfu: float | None
    seconds: float
    image_ids: list[Any]


def _nothing(*_: Any) -> None:
    """Do nothing."""


@dataclass(slots=True)
class Hooks:
    """What happens around steps.

    Attributes:
        should_report: which steps are logged; all ranks must agree.
        on_report: called with their numbers.
        after_step: called after every step; evaluates and saves.
        stop_requested: whether this rank was asked to stop.
        on_bad_samples: called on all ranks, with this rank's, when any rank's batches lack broken samples.
        mark: told the phase and the step that begin, for who watches over hangs.
    """

    should_report: Callable[[int], bool] = lambda step: False
    on_report: Callable[[StepReport], None] = _nothing
    after_step: Callable[[], None] = _nothing
    stop_requested: Callable[[], bool] = lambda: False
    on_bad_samples: Callable[[list[BadSample]], None] = _nothing
    mark: Callable[[str, int], None] = _nothing


class TrainingLoop:
    """Runs optimiser steps.

    Args:
        model: a system: ``model(batch, step_seed)`` gives `LossTerm`s and ``model.counts(batch)`` what they count.
        optimizer, schedule: see ``trainer/optimizer.py``.
        world: this process among its peers.
        replicas: how the model is shared with them; None: every rank holds it.
        seed: dropout and the class sentences are functions of it and of the step.
        precision: "fp32", "bf16" or "fp16".
        clip_norm: largest global gradient norm, or None.
        accumulate: batches per optimiser step.
        targets: what the model learns from.
        average: of the weights, or None.
        max_skipped: steps in a row that are left out for a gradient that is not finite. With fp16 the scaler decides.
        on_skip: see `FiniteWatch`.
        peak_tflops: what the device can do; None: unknown, and operations are not counted.

    Attributes:
        stopping: a rank was asked to stop, and all have finished the same step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        world: World,
        replicas: Replicas | None = None,
        seed: int = 0,
        precision: str = "fp32",
        clip_norm: float | None = None,
        accumulate: int = 1,
        targets: type[Targets] = RegionTargets,
        average: MovingAverage | None = None,
        max_skipped: int = 0,
        on_skip: Callable[..., None] | None = None,
        peak_tflops: float | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.world = model, optimizer, schedule, world
        self.seed, self.clip_norm, self.accumulate, self.targets = seed, clip_norm, accumulate, targets
        self.replicas, self.average = replicas or Replicas(model, world), average
        self.state, self.hooks, self.stopping = TrainingState(), Hooks(), False
        self.watch = FiniteWatch(world, max_skipped, on_skip)
        self.peak_tflops = peak_tflops
        self.meter = Meter(world.device)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self._reported = time.monotonic()

    def run(self, batches: Iterable[Batch], steps_per_epoch: int, max_steps: int, hooks: Hooks) -> None:
        """Train from ``self.state`` until ``max_steps`` optimiser steps are done, or a stop is requested.

        Args:
            batches: this rank's batches from the state's position on, epoch after epoch.
            steps_per_epoch: batches of an epoch.
            hooks: what happens around steps.

        Raises:
            NumericError: training has diverged.
        """
        stream, self.hooks = iter(batches), hooks
        self.meter = Meter(self.world.device, peak_tflops=self.peak_tflops)
        self._reported = time.monotonic()
        phase = FIRST_STEP
        while self.state.step < max_steps and not self.stopping:
            hooks.mark(WAITING, self.state.step)
            window = list(self._take(stream))
            if not window:
                raise RuntimeError("the loader ended before the last step")
            hooks.mark(phase, self.state.step)
            phase = STEP
            try:
                terms, norm, lrs = self._first_step(window) if self._counts_flops() else self.step(window)
            except (torch.OutOfMemoryError, MemoryError) as err:
                raise explain(err, where=self._describe(window)) from err
            self._count_position(len(window), steps_per_epoch)
            if hooks.should_report(self.state.step):
                ids = [image for batch in window for image in batch.image_ids]
                hooks.on_report(self._report(terms, norm, lrs, steps_per_epoch, ids))
            with self.meter.aside():
                hooks.after_step()
        self.watch.judge()

    def _take(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for _ in range(self.accumulate):
            with self.meter.waiting():
                batch = next(stream, None)
            if batch is None:
                return
            self.meter.count(len(batch))
            yield batch.to(self.world.device)

    def _describe(self, window: list[Batch]) -> str:
        sizes = ["x".join(map(str, image.shape[-2:])) for batch in window for image in batch.images]
        return f"step {self.state.step + 1}, images of {', '.join(sizes)} pixels"

    def _counts_flops(self) -> bool:
        return self.peak_tflops is not None and self.meter.flops_per_image is None

    def _first_step(self, window: list[Batch]) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
        """As `step`, counting its operations."""
        with counted_flops() as flops:
            done = self.step(window)
        self.meter.flops_per_image = flops.total / max(1, sum(map(len, window)))
        return done

    def step(self, window: list[Batch]) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
        """Do one optimiser step on some batches; returns weighted losses (this rank's share), gradient norm, rates."""
        reach("step.begin")
        step = self.state.step
        self.schedule.apply(self.optimizer, step)
        torch.manual_seed(_mix(self.seed, step, self.world.rank))
        counts = self._agree(window)
        parts: dict[str, Tensor] = {}
        for index, batch in enumerate(window):
            last = index == len(window) - 1
            with nullcontext() if last else self.replicas.local_gradients():
                self._backward(batch, _mix(self.seed, step), counts, parts)
        with self.meter.optimizing():
            norm = self._update(step)
        self.state.step += 1
        if not self._scaler.is_enabled():
            ids = [image for batch in window for image in batch.image_ids]
            self.watch.note(self.state.step, norm, parts, ids)
        reach("step.end")
        return parts, norm, learning_rates(self.optimizer.param_groups)

    def _agree(self, window: list[Batch]) -> dict[str, float]:
        """Tell all ranks what this one counts, in one message.

        Returns:
            What is counted over all batches of the window on all ranks, 1 at least.
        """
        per_batch = [self.model.counts(batch) for batch in window]
        bad = [sample for batch in window for sample in batch.bad]
        names = sorted(per_batch[0])
        own = [float(sum(counts[name] for counts in per_batch)) for name in names]
        *totals, stops, all_bad = sum_numbers([*own, float(self.hooks.stop_requested()), float(len(bad))])
        self.stopping = stops > 0
        if all_bad:
            self.hooks.on_bad_samples(bad)
        return {name: max(value, 1.0) for name, value in zip(names, totals, strict=True)}

    def _backward(self, batch: Batch, seed: int, counts: Mapping[str, float], parts: dict[str, Tensor]) -> None:
        share = float(len(batch) > 0)  # a rank without samples computes along and adds nothing
        ids = batch.image_ids
        batch = batch if share else Batch.blank(kind=self.targets).to(self.world.device)
        broken = reach("step.forward") == "nan"
        with self.meter.forward(), torch.autocast(self.world.device.type, self._dtype, enabled=self._dtype is not None):
            try:
                terms = self.replicas.forward(batch, seed)
            except NumericError as err:
                raise divergence(self.state.step + 1, err.what, ids) from err
        losses = {name: term.total * (share * term.weight / counts[term.counted]) for name, term in terms.items()}
        if broken:
            losses = {name: value * float("nan") for name, value in losses.items()}
        with self.meter.backward():  # gradients are averaged over ranks, the division above is by the sum over ranks
            self._scaler.scale(sum(losses.values()) * self.world.size).backward()
        reach("step.backward")
        for name, value in losses.items():
            parts[name] = parts.get(name, 0) + value.detach()

    def _update(self, step: int) -> Tensor:
        """Clip and let the optimiser do its step; where the gradient is not finite, nothing changes.

        Fused optimisers look at ``found_inf`` on the device, so the host need not know.
        """
        self._scaler.unscale_(self.optimizer)
        norm = self.replicas.clip(self._trained, self.clip_norm or float("inf"))
        skipped = (~norm.isfinite()).to(torch.float32)
        reach("step.optimizer")
        self._step_optimizer(skipped)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step, skipped)
        return norm

    def _step_optimizer(self, skipped: Tensor) -> None:
        if self._scaler.is_enabled():
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif all(group.get("fused") for group in self.optimizer.param_groups):
            self.optimizer.found_inf = skipped
            self.optimizer.step()
        elif not bool(skipped):  # SGD on shards has no fused kernel: the host waits
            self.optimizer.step()

    def _count_position(self, num_batches: int, steps_per_epoch: int) -> None:
        self.state.batch += num_batches
        while self.state.batch >= steps_per_epoch:
            self.state.batch -= steps_per_epoch
            self.state.epoch += 1

    def _report(
        self,
        parts: dict[str, Tensor],
        norm: Tensor,
        lrs: dict[str, float],
        steps_per_epoch: int,
        image_ids: list[Any],
    ) -> StepReport:
        names = sorted(parts)
        values = sum_over_ranks(torch.stack([parts[name].double() for name in names])).tolist()
        timing, now = self.meter.take(self.world, sum_numbers), time.monotonic()
        self.state.seconds += now - self._reported
        self._reported = now
        return StepReport(
            step=self.state.step,
            epoch=self.state.epoch + self.state.batch / steps_per_epoch,
            lr=max(lrs.values()),
            lrs=lrs,
            loss=sum(values),
            losses=dict(zip(names, values, strict=True)),
            grad_norm=float(norm),
            skipped=self.watch.skipped,
            images_per_second=timing.images_per_second,
            data_wait=timing.data_wait,
            shares=timing.shares,
            memory_gb=timing.memory_gb,
            mfu=timing.mfu,
            seconds=self.state.seconds,
            image_ids=image_ids,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's own state, for a checkpoint.

        Raises:
            NumericError: the last step was one too many without a finite gradient.
        """
        self.watch.judge()
        state = {name: getattr(self.state, name) for name in TrainingState.__slots__}
        watch = {"skipped": self.watch.skipped, "in_a_row": self.watch.in_a_row}
        return state | {"scaler": self._scaler.state_dict(), "not_finite": watch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.state = TrainingState(**{name: state[name] for name in TrainingState.__slots__})
        for name, value in state.get("not_finite", {}).items():
            setattr(self.watch, name, value)
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers."""
    seed = 0x9E3779B97F4A7C15
    for number in numbers:
        seed = (seed ^ (number + 0x9E3779B9)) * 0xBF58476D1CE4E5B9 % 2**64
        seed ^= seed >> 31
    return seed % 2**63
