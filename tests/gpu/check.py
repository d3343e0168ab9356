"""Everything a GPU can say about deformable attention and training, on a machine with torch, nvcc and no network.

    python tests/gpu/check.py [--output output/gpu-check.json] [--quick]

Builds the kernels, runs ``tests/gpu``, measures the kernels at the encoder's real sizes beside the reference and the
operator inside transformers, and prints a summary; the JSON holds every number. Floors are this machine's: bandwidth
and additions to memory are measured, first-level cache and arithmetic follow from clock and multiprocessors. Times are
of CUDA graphs with a cache flush before every call, the flush subtracted. Where the other requirements are installed
too, a step in half precision is compared with float32, a tiny system is trained on all GPUs, and the full-size Pix2Cap
step (1024 pixels, batch 4, bf16) is timed beside the published code's. Exit code 1 if a test or a measurement failed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ((32, 32), (64, 64), (128, 128))  # a picture of 1024 x 1024 at strides 32, 16 and 8
HEADS, POINTS = 8, 4
CALLS = 10


@dataclass
class Inputs:
    """A layer of the deformable encoder: every token asks."""

    value: Tensor
    offsets: Tensor
    logits: Tensor
    reference: Tensor
    grad_out: Tensor

    @cached_property  # copied to the device once: a graph cannot
    def sides(self) -> Tensor:
        return torch.tensor([(w, h) for h, w in LEVELS], device="cuda", dtype=torch.float32)[:, None]

    def locations(self) -> Tensor:
        return self.reference[:, :, None, :, None] + self.offsets.float() / self.sides

    def weights(self) -> Tensor:
        return self.logits.float().flatten(3).softmax(-1).view(self.logits.shape)


def draw(batch: int, dim: int, dtype: torch.dtype, points: str) -> Inputs:
    """``local``: two pixels around the query's own place, as trained encoders look; ``uniform``: anywhere."""
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "generator": generator}
    tokens = sum(h * w for h, w in LEVELS)
    centres = []
    for h, w in LEVELS:
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        centres.append(torch.stack((x / w, y / h), -1).flatten(0, 1))
    reference = torch.cat(centres).cuda()[None, :, None].expand(batch, -1, len(LEVELS), -1)
    layout = (batch, tokens, HEADS, len(LEVELS), POINTS)
    offsets = 2 * torch.randn(*layout, 2, **options)
    if points == "uniform":
        sides = torch.tensor([(w, h) for h, w in LEVELS], device="cuda")[:, None]
        offsets = (torch.rand(*layout, 2, **options) - reference[:, :, None, :, None]) * sides
    value = torch.randn(batch, tokens, HEADS, dim, **options).to(dtype)
    grad_out = torch.randn(batch, tokens, HEADS, dim, **options).to(dtype)
    return Inputs(value, offsets.to(dtype), torch.randn(layout, **options).to(dtype), reference, grad_out)


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call that starts with cold caches."""
    scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graphs = []
    with torch.cuda.stream(stream):
        call()
        for work in (lambda: (scratch.zero_(), call()), scratch.zero_):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(CALLS):
                    work()
            graphs.append(graph)
    torch.cuda.synchronize()

    def replay(graph: torch.cuda.CUDAGraph) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    for graph in graphs:
        replay(graph)
    both = [[replay(graph) for graph in graphs] for _ in range(7)]
    return sorted((full - flush) / CALLS for full, flush in both)[3]


def machine() -> dict[str, float | str]:
    """Name and rates (bytes or operations a second) of the device."""
    properties = torch.cuda.get_device_properties(0)
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    clock = getattr(properties, "clock_rate", 1_830_000) * 1e3
    multiprocessors = properties.multi_processor_count
    return {
        "name": properties.name,
        "torch": torch.__version__,
        "memory": 2 * source.numel() / seconds(lambda: target.copy_(source)),
        "first_level_cache": multiprocessors * 128 * clock,
        "flops": multiprocessors * 128 * 2 * clock,
    }


def atomics(folder: str) -> ctypes.CDLL:
    """Compile atomics.cu for this device."""
    from locap.ops.ms_deform_attn.build import find_compiler

    major, minor = torch.cuda.get_device_capability()
    path = Path(folder) / "atomics.so"
    source = str(Path(__file__).with_name("atomics.cu"))
    flags = ["-O3", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run([find_compiler("cuda"), *flags, source, "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def addition_seconds(library: ctypes.CDLL, inputs: Inputs) -> float:
    """Time to add a row of floats at every corner of every sample, and nothing else."""
    tokens, heads, dim = inputs.value.shape[1:]
    corner = (inputs.locations() * inputs.sides - 0.5).floor().long()
    places, start = [], 0
    for level, (h, w) in enumerate(LEVELS):
        x, y = corner[:, :, :, level].unbind(-1)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            inside = (x + dx >= 0) & (x + dx < w) & (y + dy >= 0) & (y + dy < h)
            places.append(torch.where(inside, start + (y + dy) * w + x + dx, -1))
        start += h * w
    at = torch.cat(places, -1).int().contiguous()
    sums = torch.zeros(inputs.value.shape, device="cuda")
    sizes = (at.numel() // at.shape[-1], at.shape[-1], heads, dim, tokens * heads, tokens * heads * dim)

    def call() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        rows, *rest = sizes
        code = library.add_rows_at(
            ctypes.c_void_p(sums.data_ptr()),
            ctypes.c_void_p(at.data_ptr()),
            ctypes.c_int64(rows),
            *rest[:3],
            *map(ctypes.c_int64, rest[3:]),
            stream,
        )
        assert code == 0

    return seconds(call)


def floors(inputs: Inputs, fused: bool, rates: dict, additions: float) -> dict[str, float]:
    """Least seconds of forward and backward: compulsory bytes, first-level cache, arithmetic, additions."""
    samples, wide = inputs.logits.numel(), inputs.grad_out.numel()
    size = inputs.value.element_size()
    points = samples * 3 * (inputs.offsets.element_size() if fused else 4)
    gathered = samples * 4 * inputs.value.shape[-1]
    forward_bytes = inputs.value.numel() * size + wide * size + points
    backward_bytes = forward_bytes + inputs.value.numel() * 8 + points
    cache = gathered * size / rates["first_level_cache"]
    return {
        "forward": max(forward_bytes / rates["memory"], cache, gathered * 2 / rates["flops"]),
        "backward": max(backward_bytes / rates["memory"], 2 * cache, additions),
    }


def ours(inputs: Inputs, fused: bool) -> dict[str, Callable[[], object]]:
    """The compiled kernels as calls that allocate their outputs, as the operators do."""
    from locap.ops.ms_deform_attn.library import load

    library, sizes = load("cuda"), [side for level in LEVELS for side in level]
    points = [inputs.offsets, inputs.logits] if fused else [inputs.locations(), inputs.weights()]
    rest = [inputs.reference] if fused else []
    options = {"reference": inputs.reference} if fused else {}
    prefix = "fused_" if fused else ""

    def forward() -> Tensor:
        out = torch.empty_like(inputs.grad_out)
        library.run(prefix + "forward", [inputs.value, *points, *rest, out], sizes, POINTS, **options)
        return out

    def backward() -> list[Tensor]:
        grads = [torch.empty_like(inputs.value, dtype=torch.float32), *map(torch.empty_like, points)]
        tensors = [inputs.value, *points, *rest, inputs.grad_out, *grads]
        library.run(prefix + "backward", tensors, sizes, POINTS, **options)
        return grads

    return {"forward": forward, "backward": backward}


def unfused(inputs: Inputs) -> Callable[[], object]:
    """Softmax, locations and the unfused kernel one after the other."""
    from locap.ops.ms_deform_attn.library import load

    library, sizes = load("cuda"), [side for level in LEVELS for side in level]

    def forward() -> Tensor:
        out = torch.empty_like(inputs.grad_out)
        library.run("forward", [inputs.value, inputs.locations(), inputs.weights(), out], sizes, POINTS)
        return out

    return forward


def plain(inputs: Inputs, operator: Callable[..., Tensor]) -> dict[str, Callable[[], object]]:
    """Forward and backward of a differentiable operator (value, locations, weights) in PyTorch."""
    leaves = [x.detach().requires_grad_() for x in (inputs.value, inputs.locations(), inputs.weights())]
    gradient = inputs.grad_out.flatten(2)

    def forward() -> Tensor:
        with torch.no_grad():
            return operator(*leaves)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(operator(*leaves), leaves, gradient)

    return {"forward": forward, "both": both}


def opponents() -> dict[str, Callable[..., Tensor]]:
    """The reference, and the operator of transformers if it is installed."""
    from locap.ops.ms_deform_attn.reference import ms_deform_attn

    found = {"reference": lambda value, *rest: ms_deform_attn(value, LEVELS, *rest)}
    try:
        from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
    except ImportError:
        return found
    module, shapes = MultiScaleDeformableAttention(), torch.tensor(LEVELS, device="cuda")
    areas = shapes.prod(1)
    start = torch.cat((areas.new_zeros(1), areas.cumsum(0)[:-1]))
    found["transformers"] = lambda v, loc, w: module(v, shapes, list(LEVELS), start, loc, w, 64)
    return found


def error(inputs: Inputs, found: dict[str, Callable[[], Tensor]]) -> float:
    """Largest error of our output, relative to the largest magnitude, in double precision on the first image."""
    from locap.ops.ms_deform_attn.reference import ms_deform_attn

    first = [x[:1].double() for x in (inputs.value, inputs.locations(), inputs.weights())]
    exact = ms_deform_attn(first[0], LEVELS, *first[1:])
    return float((found["forward"]()[:1].flatten(2).double() - exact).abs().max() / exact.abs().max())


def measure_case(batch: int, dim: int, points: str, rates: dict, library: ctypes.CDLL, slow: bool) -> list[dict]:
    """Rows of numbers for one size and distribution."""
    rows, additions = [], addition_seconds(library, draw(batch, dim, torch.float32, points))
    for dtype, fused in product((torch.float32, torch.bfloat16), (False, True)):
        inputs = draw(batch, dim, dtype, points)
        least, calls = floors(inputs, fused, rates, additions), ours(inputs, fused)
        row = {"batch": batch, "dim": dim, "points": points, "dtype": str(dtype)[6:], "fused": fused}
        row["error"] = error(inputs, calls)
        for name, call in calls.items():
            row[name] = seconds(call)
            row[f"{name}_of_floor"] = row[name] / least[name]
        rows.append(row)
    inputs = draw(batch, dim, torch.float32, points)
    rows[-1]["against_unfused_float32"] = seconds(unfused(inputs)) / rows[-1]["forward"]
    if slow:
        for name, operator in opponents().items():
            calls = plain(draw(batch, dim, torch.float32, points), operator)
            for what, call in calls.items():
                mine = rows[0]["forward"] + (rows[0]["backward"] if what == "both" else 0)
                rows[0][f"{what}_against_{name}"] = seconds(call) / mine
    return rows


def run_tests(folder: str) -> dict[str, int]:
    """Run tests/gpu, without the configuration and fixtures that want the rest of the requirements, and count."""
    report, tests = Path(folder) / "report.xml", ROOT / "tests" / "gpu"
    alone = ["-c", os.devnull, "--rootdir", str(tests), "--confcutdir", str(tests), "--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", *alone, str(tests)]
    subprocess.run([*command, f"--junitxml={report}"], check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}


def training(report: dict, folder: str) -> None:
    """Add what `training` measures to the report; what fails or is not installed goes to its "failed" or "left out"."""
    missing = [name for name in ("omegaconf", "transformers", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        report["left out"] = f"training: {', '.join(missing)} not installed"
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from training import KEYS, distributed, full_step, mixed_precision

    from locap.modeling.benchmarks.workload import SHAPES, build, draw_batch

    def half_precision() -> dict:
        quiet = ("MODEL.TEXT_DECODER.DROPOUT", "0", "MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0")
        model = build("tiny", [], (*KEYS, *quiet))
        found = mixed_precision(model, draw_batch(SHAPES["tiny"], model.captioner.words.num_embeddings), "cuda")
        report["failed"] += [f"{name} differs: {each}" for name, each in found.items() if not each["within"]]
        return found

    def on_all_gpus() -> dict:
        found = distributed(torch.cuda.device_count(), Path(folder) / "run", ROOT)
        report["failed"] += [f"torchrun: {found['said']}"] if found["code"] else []
        return found

    for name, measure in (
        ("mixed precision", half_precision),
        ("all GPUs", on_all_gpus),
        ("full step", lambda: full_step("cuda")),
    ):
        try:
            report[name] = measure()
        except (RuntimeError, subprocess.TimeoutExpired) as err:
            report["failed"].append(f"{name}: {err}")
        torch.cuda.empty_cache()


def importable(folder: str) -> None:
    """Let this process and those it starts import the clone as ``locap``, whatever its folder is called."""
    (Path(folder) / "locap").symlink_to(ROOT, target_is_directory=True)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def describe(row: dict) -> str:
    size = f"N={row['batch']} D={row['dim']} {row['points']:7} {row['dtype']:8} {'fused' if row['fused'] else '':5}"
    times = "  ".join(
        f"{name} {row[name] * 1e6:7.1f} us = {row[f'{name}_of_floor']:5.2f} x floor" for name in ("forward", "backward")
    )
    ratios = "".join(f"  {key.replace('_', ' ')} {row[key]:.1f} x" for key in row if "against" in key)
    return f"{size}  {times}  error {row['error']:.1e}{ratios}"


def goals(rows: list[dict]) -> dict[str, float]:
    """The worst of each figure that has a goal."""
    local = [row for row in rows if row["points"] == "local"]
    against = [row["against_unfused_float32"] for row in local if "against_unfused_float32" in row]
    return {
        "forward of floor, local points (goal: at most 2)": max((r["forward_of_floor"] for r in local), default=0),
        "backward of floor, local points (goal: at most 1.5)": max((r["backward_of_floor"] for r in local), default=0),
        "bfloat16 fused against unfused float32 (goal: at least 4)": min(against, default=0),
    }


def main() -> int:
    """Build, test, measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu-check.json")
    parser.add_argument("--quick", action="store_true", help="one size only")
    options = parser.parse_args()
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    os.environ.setdefault("LOCAP_CUDA_ARCHS", f"{major}{minor}")
    if not major:
        sys.exit("gpu-check needs a CUDA device, and torch sees none: nothing was run.")
    with tempfile.TemporaryDirectory() as folder:
        importable(folder)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "locap.ops.ms_deform_attn.build", "cuda", "--into-package"], check=True)
        report: dict = {"build_seconds": time.monotonic() - started}
        report["tests"] = run_tests(folder)
        rates, library = machine(), atomics(folder)
        report["machine"], report["rows"], report["failed"] = rates, [], []
        for batch, dim in ((1, 32),) if options.quick else ((1, 32), (1, 64), (4, 64)):
            for points in ("local", "uniform"):
                try:
                    report["rows"] += measure_case(batch, dim, points, rates, library, slow=batch == 1)
                except RuntimeError as err:  # the other sizes and the tests' result are still worth having
                    report["failed"].append(f"N={batch} D={dim} {points}: {err}")
                torch.cuda.empty_cache()
        training(report, folder)
        report["goals"], report["seconds"] = goals(report["rows"]), time.monotonic() - started
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{rates['name']}: memory {rates['memory'] / 1e12:.2f} TB/s; tests {report['tests']}")
    print(*map(describe, report["rows"]), sep="\n")
    parts = ("mixed precision", "all GPUs", "full step", "left out")
    print(*(f"{name}: {json.dumps(report[name])}" for name in parts if name in report), sep="\n")
    print(*(f"not measured: {why}" for why in report["failed"]), sep="\n")
    print(*(f"{name}: {value:.2f}" for name, value in report["goals"].items()), sep="\n")
    print(f"{report['seconds']:.0f} s; every number: {options.output}")
    tests = report["tests"]
    return 1 if report["failed"] or tests["failures"] or tests["errors"] or not tests["tests"] else 0


if __name__ == "__main__":
    sys.exit(main())
