"""Time, memory and accuracy of multi-scale deformable attention, side by side with its floor and with other code.

python -m locap.ops.ms_deform_attn.benchmark [--impl reference,cpu] [--shape mask2former|pix2cap|tiny] [--dtype float32]
    [--points local|uniform] [--fused] [--anchor module:function] [--gate 8 5] [--output result.json]

Runs of the implementations alternate, so that noise strikes all alike, and medians are shown. On the CPU with one
thread times are processor time. The floor is the bytes that must move (every tensor once) over the measured speed of a
copy; on a GPU also the gather through the nearest cache and the arithmetic. ``--gate F B`` fails unless the first
compiled implementation is F times as fast as the reference forward and B times backward.

An anchor is a function (value, shapes, locations, weights) of tensors and a list of (height, width) that autograd can
differentiate; its module is yours and is imported from the Python path.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ...utils.errors import LocapError, UsageError
from ...utils.files import write_json
from ...utils.logging import set_up_logging
from .backends import BACKENDS
from .functions import ms_deform_attn, ms_deform_attn_fused
from .operators import sum_type
from .reference import sampling_locations

HEADS, POINTS, STRIDES = 8, 4, (8, 16, 32)
SHAPES = {"mask2former": (1024, 32), "pix2cap": (1024, 64), "tiny": (256, 32)}  # side of the image, D
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
CHECKED = 1024  # queries whose results are compared with float64
MARGIN = 1e-3  # pixels from an edge of a cell, where the location's gradient jumps

Operator = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Problem:
    """Inputs: of the operator itself, or of its fused form.

    Attributes:
        shapes: (height, width) of the levels, the finest first.
        inputs: value, locations, weights; fused: value, offsets, logits.
        reference: (1, N, 1, 2), fused only.
        grad: of the output.
    """

    shapes: list[tuple[int, int]]
    inputs: tuple[Tensor, Tensor, Tensor]
    reference: Tensor | None
    grad: Tensor

    def part(self, dtype: torch.dtype | None = None) -> Problem:
        """Return the first queries of every level, if wanted in another type, its inputs ready for gradients."""
        starts = [sum(h * w for h, w in self.shapes[:level]) for level in range(len(self.shapes))]
        some = torch.cat([torch.arange(start, start + CHECKED // len(starts)) for start in starts])
        some = some[some < self.grad.shape[1]].to(self.grad.device)
        inputs = (self.inputs[0], *(x[:, some] for x in self.inputs[1:]))
        reference = None if self.reference is None else self.reference[:, some]
        moved = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        if reference is not None and dtype == torch.float64:
            reference = reference.double()
        return Problem(self.shapes, tuple(moved), reference, self.grad[:, some].to(dtype or self.grad.dtype))

    def run(self, operator: Callable[..., Tensor]) -> Tensor:
        """Run an implementation."""
        value, *points = self.inputs
        return operator(value, self.shapes, *points, *([] if self.reference is None else [self.reference]))

    def differentiate(self, out: Tensor) -> tuple[Tensor, ...]:
        """Run the backward pass of an output."""
        return torch.autograd.grad(out, self.inputs, self.grad, retain_graph=True)


@dataclass(slots=True)
class Result:
    """What one direction of one implementation took.

    Attributes:
        milliseconds, spread: median and interquartile range.
        floor: the least a machine like this could take, milliseconds.
        megabytes: new memory at the peak, results included (None where it cannot be told).
        errors: greatest difference from float64, relative to the greatest value: of the output, or per gradient.
        to_reference: how many times as fast as the reference (0 if that was not run).
    """

    impl: str
    direction: str
    milliseconds: float
    spread: float
    floor: float
    megabytes: float | None
    errors: list[float]
    to_reference: float = 0.0


def draw(
    shape: str, dtype: torch.dtype, points: str, *, batch: int = 1, dim: int = 0, fused: bool = False, device: str
) -> Problem:
    """Make a self-attention of all tokens of an image.

    Args:
        shape: key of `SHAPES`.
        dtype: of values, and of offsets and logits.
        points: ``local``, around the query's own pixel with a standard deviation of two pixels, or ``uniform``.
        batch, dim: images, and channels per head in place of the shape's.
        fused: draw offsets and logits.
        device: where.
    """
    torch.manual_seed(0)
    side, width = SHAPES[shape]
    shapes = [(side // stride, side // stride) for stride in STRIDES]
    tokens, exact = sum(h * w for h, w in shapes), sum_type(dtype)
    layout = (batch, tokens, HEADS, len(shapes), POINTS)
    value = torch.randn(batch, tokens, HEADS, dim or width).to(dtype)
    reference = torch.cat([_centres(*size) for size in shapes])[None, :, None].to(exact)
    offsets, logits = torch.randn(*layout, 2) * 2, torch.randn(layout)
    if points == "uniform":
        sizes = torch.tensor([(w, h) for h, w in shapes])[:, None]
        offsets = (torch.rand(*layout, 2) - reference[:, :, None, :, None]) * sizes
    if fused:
        inputs = (value, offsets.to(dtype), logits.to(dtype))
    else:
        weights = logits.to(exact).flatten(3).softmax(-1).view(layout)
        inputs = (value, sampling_locations(offsets.to(exact), reference, shapes), weights)
    inputs = tuple(x.to(device).requires_grad_() for x in inputs)
    grad = torch.randn(batch, tokens, HEADS * value.shape[-1]).to(device, dtype)
    return Problem(shapes, inputs, reference.to(device) if fused else None, grad)


def _centres(height: int, width: int) -> Tensor:
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns, rows), -1).flatten(0, 1)


def measure(problem: Problem, operators: dict[str, Operator], repeats: int) -> list[Result]:
    """Time forward and backward passes in turn, one implementation after the other, round by round."""
    times: dict[tuple[str, str], list[float]] = {}
    memory: dict[tuple[str, str], float | None] = {}
    errors = {name: accuracy(problem, operator) for name, operator in operators.items()}
    device = problem.grad.device
    for attempt in range(repeats + 1):  # the first only warms up
        for name, operator in operators.items():
            seconds, peak, out = _timed(lambda operator=operator: problem.run(operator), device)
            back, back_peak, _ = _timed(lambda out=out: problem.differentiate(out), device)
            del out
            if attempt:
                times.setdefault((name, "forward"), []).append(seconds)
                times.setdefault((name, "backward"), []).append(back)
            else:
                memory |= {(name, "forward"): peak, (name, "backward"): back_peak}
    floors = floor(problem)
    results = [
        Result(name, direction, *_summary(found), floors[direction], memory[name, direction], errors[name][direction])
        for (name, direction), found in times.items()
    ]
    slow = {result.direction: result.milliseconds for result in results if result.impl == "reference"}
    for result in results:
        result.to_reference = slow.get(result.direction, 0.0) / result.milliseconds
    return results


def _summary(seconds: list[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return middle * 1e3, (high - low) * 1e3


def _timed(work: Callable[[], Tensor], device: torch.device) -> tuple[float, float | None, Tensor]:
    """Return seconds, megabytes at the peak beyond those before, and the result."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, start, end = torch.cuda.memory_allocated(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        found = work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, (torch.cuda.max_memory_allocated() - before) / 1e6, found
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    before, begin = _resident("VmRSS", restart=True), clock()
    found = work()
    seconds, peak = clock() - begin, _resident("VmHWM")
    return seconds, None if before is None or peak is None else peak - before, found


def _resident(field: str, *, restart: bool = False) -> float | None:
    """Return megabytes of this process from Linux's own count; ``restart`` sets the peak back first."""
    try:
        if restart:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not pass for no new memory
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except (OSError, AttributeError):
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith(field)), None)


def accuracy(problem: Problem, operator: Operator) -> dict[str, list[float]]:
    """Compare output and gradients with the reference in float64 on the same inputs, for some of the queries."""
    exact, given = problem.part(torch.float64), problem.part()
    fused = problem.reference is not None
    truth = exact.run(operator_of("reference", fused))
    found = given.run(operator)
    wanted, got = exact.differentiate(truth), given.differentiate(found)
    clear = _clear_of_edges(exact)
    pairs = [(got[0], wanted[0]), (got[1][clear], wanted[1][clear]), (got[2], wanted[2])]
    return {"forward": [_error(found, truth)], "backward": [_error(x, y) for x, y in pairs]}


def _clear_of_edges(problem: Problem) -> Tensor:
    points = problem.inputs[1].detach()
    if problem.reference is not None:
        points = sampling_locations(points, problem.reference, problem.shapes)
    sizes = points.new_tensor([(w, h) for h, w in problem.shapes])[:, None]
    pixels = points * sizes - 0.5
    return ((pixels - pixels.round()).abs() > MARGIN).all(-1)


def _error(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).abs().max() / truth.abs().max()).item()


def work_of(problem: Problem) -> dict[str, dict[str, float]]:
    """Return bytes that must move, bytes gathered and arithmetic operations of each direction."""
    value, first, second = (x.numel() * x.element_size() for x in problem.inputs)
    out, sums = problem.grad.numel() * problem.grad.element_size(), problem.inputs[0].numel() * 4
    samples = problem.inputs[2].numel()
    operations = samples * problem.inputs[0].shape[-1] * 8.0
    gathered = samples * problem.inputs[0].shape[-1] * 4.0 * problem.inputs[0].element_size()
    return {
        "forward": {"bytes": float(value + first + second + out), "gathered": gathered, "flop": operations},
        "backward": {
            "bytes": float(value + out + 2 * (first + second) + 2 * sums),
            "gathered": 2 * gathered,
            "flop": 2 * operations,
        },
    }


def floor(problem: Problem) -> dict[str, float]:
    """Return the least milliseconds of each direction: see the module's text."""
    device = problem.grad.device
    speed = {"bytes": _copy_speed(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cycles = properties.multi_processor_count * getattr(properties, "clock_rate", 0) * 1e3
        speed |= {"gathered": cycles * 128, "flop": cycles * 256} if cycles else {}
    return {
        direction: max(work[kind] / rate for kind, rate in speed.items()) * 1e3
        for direction, work in work_of(problem).items()
    }


def _copy_speed(device: torch.device) -> float:
    """Return bytes per second, read and written, of a copy too large for a cache."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = min(_timed(lambda: target.copy_(source), device)[0] for _ in range(5))
    return 2 * source.numel() * source.element_size() / seconds


def operator_of(name: str, fused: bool) -> Operator:
    """Return an implementation by its name; raises `UsageError` for a name it does not know."""
    if name not in BACKENDS:
        raise UsageError("Unknown implementation.", value=name, allowed=", ".join(BACKENDS))
    function = ms_deform_attn_fused if fused else ms_deform_attn
    return lambda *inputs: function(*inputs, backend=name)


def anchor_of(name: str) -> Operator:
    """Import ``module:function``; raises `UsageError` if it is not there."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as err:
        raise UsageError("The anchor cannot be imported.", value=name, allowed="module:function") from err


def show(problem: Problem, results: Sequence[Result], title: str) -> None:
    """Print a row per implementation and direction."""
    table = Table(title=title)
    columns = ("", "ms", "± ms", "+ MB", "/ reference", "x floor", "errors")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for result in results:
        memory = "" if result.megabytes is None else f"{result.megabytes:.0f}"
        table.add_row(
            f"{result.impl} {result.direction}".replace(" ", "\u00a0"),
            f"{result.milliseconds:.2f}",
            f"{result.spread:.2f}",
            memory,
            f"{result.to_reference:.1f}",
            f"{result.milliseconds / result.floor:.1f}",
            " ".join(f"{error:.1e}" for error in result.errors),
        )
    console = Console()
    console.print(table)
    for direction, work in work_of(problem).items():
        text = f"{direction}: {work['bytes'] / 1e6:.1f} MB must move, {work['flop'] / 1e9:.2f} GFLOP"
        console.print(text, highlight=False)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m locap.ops.ms_deform_attn.benchmark", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--impl", help="comma-separated backends; default: reference and the device's kernels")
    parser.add_argument("--shape", choices=list(SHAPES), default="mask2former")
    parser.add_argument("--dim", type=int, default=0, help="channels per head, in place of the shape's")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--points", choices=("local", "uniform"), default="local")
    parser.add_argument("--fused", action="store_true", help="with softmax and locations inside")
    parser.add_argument("--anchor", metavar="MODULE:FUNCTION", help="other code to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="processor time is told for one thread only")
    parser.add_argument("--gate", type=float, nargs=2, metavar=("FORWARD", "BACKWARD"), help="least ratios")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, write; returns 1 if the gate is shut."""
    torch.set_num_threads(arguments.threads)
    names = (arguments.impl or f"reference,{arguments.device}").split(",")
    operators = {name: operator_of(name, arguments.fused) for name in names}
    if arguments.anchor:
        operators[arguments.anchor] = anchor_of(arguments.anchor)
    options = {"batch": arguments.batch, "dim": arguments.dim, "fused": arguments.fused, "device": arguments.device}
    problem = draw(arguments.shape, DTYPES[arguments.dtype], arguments.points, **options)
    results = measure(problem, operators, arguments.repeats)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} thread(s)"
    show(problem, results, f"{arguments.shape}, {arguments.dtype}, {arguments.points} points, {where}")
    if arguments.output:
        machine = {"torch": torch.__version__, "machine": platform.machine(), "device": where}
        found = {"results": [asdict(result) for result in results], "work": work_of(problem)}
        write_json(Path(arguments.output), {"options": vars(arguments), "machine": machine, **found}, indent=1)
    return 0 if arguments.gate is None or _passes(results, arguments.gate) else 1


def _passes(results: Sequence[Result], gate: Sequence[float]) -> bool:
    least = dict(zip(("forward", "backward"), gate, strict=True))
    ours = next(result.impl for result in results if result.impl != "reference")
    below = [x for x in results if x.impl == ours and x.to_reference < least[x.direction]]
    for result in below:
        sys.stderr.write(
            f"{ours} {result.direction}: {result.to_reference:.1f} times the reference's speed, not "
            f"{least[result.direction]:g}\n"
        )
    return not below


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    set_up_logging()
    try:
        return run(make_parser().parse_args(argv))
    except LocapError as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code


if __name__ == "__main__":
    sys.exit(main())
