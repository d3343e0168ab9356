"""The training step on a device: equal in half precision within a tolerance, fast, and with few waits.

The functions take the device and the size, so that the tests run them on the processor with tiny shapes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

# Largest relative difference of the sum of the losses from float32, and of the norm of the gradients' difference.
TOLERANCES = {"bf16": (0.05, 0.30), "fp16": (0.02, 0.15)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DATASHEET_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bfloat16, by a part of the device's name
KEYS = ("MODEL.TEXT.PRETRAINED_TOKENIZER", "shapes")  # the frozen class texts need no real words to be timed


def mixed_precision(model: Any, batch: Any, device: str) -> dict[str, dict[str, float]]:
    """Compare the losses and gradients of one step in half precision with those in float32, on the same weights."""
    model, batch = model.to(device).train(), batch.to(device)
    exact, slopes = _step(model, batch, device, None)
    found = {}
    for name, dtype in DTYPES.items():
        loss, gradients = _step(model, batch, device, dtype)
        apart = sum((a - b).square().sum() for a, b in zip(gradients, slopes, strict=True)).sqrt()
        norm = sum(b.square().sum() for b in slopes).sqrt()
        found[name] = {"loss": abs(loss - exact) / abs(exact), "gradients": float(apart / norm)}
        allowed = dict(zip(("loss", "gradients"), TOLERANCES[name], strict=True))
        found[name]["within"] = all(found[name][part] <= limit for part, limit in allowed.items())
    return found


def _step(model: Any, batch: Any, device: str, dtype: torch.dtype | None) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    model.zero_grad()
    counts = model.counts(batch)
    with torch.autocast(device.split(":")[0], dtype, enabled=dtype is not None):
        terms = model(batch, step_seed=1)
    loss = sum(term.total * term.weight / max(counts[term.counted], 1.0) for term in terms.values())
    scale = 1024.0 if dtype is torch.float16 else 1.0  # small gradients would vanish
    (loss * scale).backward()
    return float(loss.detach()), [p.grad.detach().float() / scale for p in model.parameters() if p.grad is not None]


def full_step(
    device: str, *, size: str = "full", side: int = 1024, images: int = 4, repeats: int = 5, half: bool = True
) -> dict[str, Any]:
    """Time the training step of Pix2Cap and the published code's beside it.

    Returns:
        Of each: images a second, GB allocated beyond the weights, waits of the host, TFLOP, model FLOP utilisation of
        what the device multiplies in bfloat16 (measured) and of its data sheet.
    """
    from dataclasses import replace

    from locap.modeling.benchmarks.training import training_step
    from locap.modeling.benchmarks.workload import SHAPES, build

    shape = replace(SHAPES[size], images=images, height=side, width=side)
    precision = torch.bfloat16 if half else None
    report = training_step(
        build(size, [], KEYS), shape, repeats=repeats, original=True, device=device, precision=precision
    )
    measured, sheet = matmul_tflops(device), _datasheet(device)
    found: dict[str, Any] = {"matmul TFLOP/s": measured, "ratios": report.ratios}
    ours = report.measurements[0].tflop  # what the step needs; doing more of it is no use of the device
    for each in report.measurements:
        rate = ours / each.wall_seconds
        found[each.name] = {
            "images/s": images / each.wall_seconds,
            "seconds": each.wall_seconds,
            "TFLOP": each.tflop,
            "of the measured product rate": rate / measured,
            "GB allocated": report.facts["GB allocated at most"][each.name],
            "waits of the host": report.facts["waits of the host"][each.name],
        } | ({"MFU": rate / sheet} if sheet else {})
    return found


def matmul_tflops(device: str, side: int | None = None) -> float:
    """Return the rate of a large bfloat16 product, 10^12 operations a second."""
    cuda = device.startswith("cuda")
    side = side or (8192 if cuda else 512)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * side**3 / sorted(times)[len(times) // 2] / 1e12


def _datasheet(device: str) -> float | None:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return next((rate for part, rate in DATASHEET_TFLOPS.items() if part in name), None)


def distributed(processes: int, output: Path, root: Path) -> dict[str, Any]:
    """Train a tiny system for a few steps on every visible GPU, by torchrun; returns exit code and seconds."""
    keys = ["SOLVER.MAX_STEPS", "8", "SHAPES.NUM_TRAIN", "64", "SHAPES.NUM_TEST", "8", "EVAL_AT_START", "false"]
    batch = ["COCO.TRAIN.BATCH_SIZE_TOTAL", str(2 * processes), "SAVE_DIR", str(output)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(root / "entry.py"), "train", "--conf_files", str(root / "configs" / "quickstart.yaml")]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--overrides", *keys, *batch],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = {"processes": processes, "code": done.returncode, "seconds": time.monotonic() - started}
    return found if done.returncode == 0 else found | {"said": done.stderr[-2000:]}
