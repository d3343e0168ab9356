"""What a training run would be, without running it: model, optimiser, data, batches, memory; nothing is written.

The model is built on PyTorch's meta device, which has shapes and no numbers, so the largest takes seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..datasets.categories import COCO_PANOPTIC
from ..datasets.mixtures import MixedReader
from ..modeling.benchmarks.memory import allocated_gb
from ..modeling.systems import configured_weights, find_system, without_start
from ..utils.errors import LocapError
from .assembly import decayed_layers, max_steps
from .data import EvalSet, open_eval_sets, open_training, train_loader
from .distributed import World
from .entries import eval_groups, train_entries
from .evaluate import precision
from .optimizer import configured_groups
from .run_folder import continued, resumed_run
from .scoring import check_protocols

GB = 1e9
ESTIMATE = (
    "An estimate, computed from numbers of parameters; buffers of communication and of the allocator come on top."
)
Found = TypeVar("Found")


class StandIn:
    """Takes the place of a caption tokenizer whose vocabulary is missing: only its size matters to a model's shapes."""

    start_id, end_id, pad_id = 1, 2, 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


@dataclass(slots=True)
class Plan:
    """What was found out; what could not be is None, and why stands in ``problems``.

    Attributes:
        model: on the meta device.
        tokenizer: of the system.
        train_reader: of DATASETS.TRAIN.
        eval_sets: of DATASETS.TEST.
        problems: the errors that training would end with.
    """

    model: nn.Module | None = None
    tokenizer: Any = None
    train_reader: MixedReader | None = None
    eval_sets: list[EvalSet] | None = None
    problems: list[LocapError] = field(default_factory=list)

    def attempt(self, make: Callable[[], Found]) -> Found | None:
        """Return what ``make`` makes, or None and remember its error."""
        try:
            return make()
        except LocapError as err:
            self.problems.append(err)
            return None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How many samples make a step, and how many steps a run; None where the data are missing.

    Attributes:
        per_process: images of one process in one pass.
        processes: how many.
        accumulated: passes of a step.
        samples: of an epoch.
        steps: of the run.
        warmup: of these, those of the warm-up.
    """

    per_process: int
    processes: int
    accumulated: int
    samples: int | None
    batches_per_epoch: int | None
    steps: int | None
    warmup: int

    @property
    def per_step(self) -> int:
        """Images of an optimiser step."""
        return self.per_process * self.processes * self.accumulated

    @property
    def epochs(self) -> float | None:
        """Passes over the data."""
        if not self.steps or not self.batches_per_epoch:
            return None
        return self.steps * self.accumulated / self.batches_per_epoch


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights, gradients, optimizer, average: float32; ``average`` is the moving average of the weights.
        casts: copies of the weights in half precision that autocast keeps during a pass.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    casts: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.casts


def dry_run(cfg: Any, world: World, *, measure: bool = False, console: Console | None = None) -> None:
    """Print what `train` would do.

    Args:
        cfg: the resolved configuration.
        world: this process among its peers; only the main one prints.
        measure: build the model on the CPU as well, and measure what a pass over one real batch allocates.
        console: where to print; default: standard output.

    Raises:
        LocapError: the first error that training would end with, after everything that is known was printed.
    """
    cfg = continued(cfg)
    plan = make_plan(cfg)
    if world.is_main:
        console = console or Console()
        batches = plan_batches(cfg, plan, world)
        for table in _tables(cfg, plan, batches, world):
            console.print(table)
        activations = _activations(cfg, plan, world) if measure and not plan.problems else "not estimated"
        console.print(f"Memory of a pass (activations): {activations}", highlight=False)
        console.print(f"Output: {Path(cfg.SAVE_DIR) / cfg.BASENAME}/run_<k>", highlight=False)
        for problem in plan.problems[1:]:
            console.print(f"missing: {problem}", highlight=False, markup=False)
    if plan.problems:
        raise plan.problems[0]


def make_plan(cfg: Any) -> Plan:
    """Open the data sets and build the model, as far as they can be.

    Raises:
        UsageError: a name in the configuration is wrong; there is nothing to show then.
    """
    find_system(cfg.MODEL.NAME)
    train_entries(cfg), eval_groups(cfg)
    plan = Plan()
    if cfg.RESUME:
        plan.attempt(lambda: resumed_run(cfg.RESUME_FROM))
    if cfg.WEIGHT:
        plan.attempt(lambda: configured_weights(cfg))
    plan.train_reader = plan.attempt(lambda: open_training(cfg))
    plan.eval_sets = plan.attempt(lambda: open_eval_sets(cfg))
    if plan.eval_sets:
        plan.attempt(lambda: check_protocols(cfg, plan.eval_sets))
    plan.tokenizer = plan.attempt(lambda: find_system(cfg.MODEL.NAME).tokenizer(cfg))
    plan.model = plan.attempt(lambda: build_on_meta(cfg, plan.train_reader, plan.tokenizer))
    return plan


def build_on_meta(cfg: Any, reader: MixedReader | None, tokenizer: Any) -> nn.Module:
    """Return the configured system without numbers; without data it has COCO's classes."""
    categories = COCO_PANOPTIC if reader is None else reader.categories
    words = tokenizer or StandIn(cfg.MODEL.TEXT_DECODER.VOCAB_SIZE)
    with torch.device("meta"):
        return find_system(cfg.MODEL.NAME).model(without_start(cfg), categories, words)


def plan_batches(cfg: Any, plan: Plan, world: World) -> BatchPlan:
    """Count samples and steps."""
    samples = per_epoch = steps = None
    if plan.train_reader is not None and plan.tokenizer is not None:
        loader = train_loader(plan.train_reader, plan.tokenizer, cfg, world)
        per_epoch, steps = len(loader), max_steps(cfg, loader)
        samples = cfg.DATASETS.SAMPLES_PER_EPOCH or len(plan.train_reader)
    return BatchPlan(
        cfg.COCO.TRAIN.BATCH_SIZE_TOTAL // world.size,
        world.size,
        cfg.GRADIENT_ACCUMULATE_STEP,
        samples,
        per_epoch,
        steps or cfg.SOLVER.MAX_STEPS or None,
        cfg.SOLVER.WARMUP_ITERS,
    )


def estimate_memory(total: int, trained: int, cfg: Any, *, half: bool, ranks_per_copy: int = 1) -> Memory:
    """Estimate what a model takes on each device, without activations.

    Args:
        total, trained: parameters.
        cfg: for the optimiser and the moving average.
        half: bf16 or fp16; weights, gradients and the optimiser's state stay float32.
        ranks_per_copy: processes that share one copy (FSDP); 1: each has its own.
    """
    states = 1 if cfg.SOLVER.OPTIMIZER == "SGD" else 2
    share = 4 / ranks_per_copy
    average = share * total if cfg.SOLVER.EMA_DECAY else 0.0
    return Memory(
        share * total, share * trained, share * trained * states, average, 2.0 * total / ranks_per_copy * half
    )


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return part -> (parameters, trained ones); one that parts share counts where it comes first."""
    seen: set[int] = set()
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        total, trained = counts.get(name.split(".")[0], (0, 0))
        counts[name.split(".")[0]] = (
            total + parameter.numel(),
            trained + parameter.numel() * parameter.requires_grad,
        )
    return counts


def _tables(cfg: Any, plan: Plan, batches: BatchPlan, world: World) -> Iterator[Table]:
    if plan.model is not None:
        counts = count_parameters(plan.model)
        total, trained = (sum(column) for column in zip(*counts.values(), strict=True))
        rows = [(name, *map(_number, (n, t, n - t))) for name, (n, t) in counts.items()]
        sums = ("all", *map(_number, (total, trained, total - trained)))
        yield _table(f"Model: {cfg.MODEL.NAME}", ("part", "parameters", "trained", "frozen"), [*rows, sums])
        groups = plan.attempt(lambda: configured_groups(plan.model, cfg.SOLVER, decayed_layers(plan.model, cfg))) or []
        yield _table(
            f"Optimiser: {cfg.SOLVER.OPTIMIZER}",
            ("learning rate", "weight decay", "tensors", "parameters"),
            [
                (f"{g['lr']:.3g}", f"{g['weight_decay']:.3g}", str(len(g["params"])), _number(_size(g["params"])))
                for g in groups
            ],
        )
        yield _memory_table(cfg, total, trained, world)
    yield _data_table(cfg, plan)
    yield _batch_table(batches)


def _memory_table(cfg: Any, total: int, trained: int, world: World) -> Table:
    chosen = precision(cfg, world) != "fp32", cfg.PARALLEL.STRATEGY
    rows = []
    for half, strategy in itertools.product((False, True), ("ddp", "fsdp")):
        ranks = (cfg.PARALLEL.RANKS_PER_COPY or world.size) if strategy == "fsdp" else 1
        found = estimate_memory(total, trained, cfg, half=half, ranks_per_copy=ranks)
        parts = (found.weights, found.gradients, found.optimizer, found.average, found.casts, found.total)
        mark = " (configured)" if (half, strategy) == chosen else ""
        name = f"{'bf16' if half else 'fp32'}, {strategy} x {world.size}{mark}"
        rows.append((name, *(f"{x / GB:.2f}" for x in parts)))
    columns = ("GB per device", "weights", "gradients", "optimiser", "EMA", "casts", "sum")
    return _table("Memory without activations (ESTIMATE)", columns, rows, caption=ESTIMATE)


def _data_table(cfg: Any, plan: Plan) -> Table:
    names, rows = [str(entry) for entry in train_entries(cfg)], []
    lengths = plan.train_reader.lengths if plan.train_reader is not None else [None] * len(names)
    for name, length in zip(names, lengths, strict=True):
        rows.append(("train", name, _number(length)))
    for each in plan.eval_sets or []:
        rows.append(("test", each.name, _number(len(each.reader))))
    if plan.eval_sets is None:
        rows += [("test", str(entry), _number(None)) for group in eval_groups(cfg) for entry in group]
    return _table("Data sets", ("", "name", "records"), rows)


def _batch_table(batches: BatchPlan) -> Table:
    product = f"{batches.per_process} per process x {batches.processes} processes x {batches.accumulated} accumulated"
    epochs = "unknown" if batches.epochs is None else f"{batches.epochs:.2f}"
    per_epoch = batches.batches_per_epoch and math.ceil(batches.batches_per_epoch / batches.accumulated)
    rows = [
        ("images per optimiser step", f"{batches.per_step} = {product}"),
        ("samples per epoch", _number(batches.samples)),
        ("optimiser steps per epoch", _number(per_epoch)),
        ("optimiser steps", _number(batches.steps)),
        ("of these warm-up", _number(batches.warmup)),
        ("epochs", epochs),
    ]
    return _table("Batches", ("", ""), rows)


def _activations(cfg: Any, plan: Plan, world: World) -> str:
    """Measure a forward and a backward pass over this process's first batch, on the CPU in float32."""
    system = find_system(cfg.MODEL.NAME)
    model = system.model(without_start(cfg), plan.train_reader.categories, plan.tokenizer).train()
    batch = next(iter(train_loader(plan.train_reader, plan.tokenizer, cfg, world).batches(0)))

    def step() -> None:
        sum(term.total * term.weight for term in model(batch, 0).values()).backward()
        model.zero_grad(set_to_none=True)

    step()  # what is made once is there afterwards
    return f"{allocated_gb(step):.2f} GB with gradients, measured with {len(batch)} images on the CPU in fp32"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and column else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _size(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
