"""Torch, CUDA, GPUs and the kernels, as a process of its own tells."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from .lines import BROKEN, MISSING, OK, ROOT, Line, build_tools, output_of, pip_install, system_install

PROBE_SECONDS = 60.0  # importing torch from a cold network drive takes its time
_BOTH = '"torch>=2.10" "torchvision>=0.25"'
_REINSTALL = f"pip install --upgrade --force-reinstall {_BOTH}"
_QUESTIONS = ("torch", "imports", "gpus", "operators", "data")
_START = """
import importlib.util, sys
sys.path[:] = [entry for entry in sys.path if entry]  # not the folder this is called in
spec = importlib.util.spec_from_file_location("locap", {init!r}, submodule_search_locations=[{root!r}])
sys.modules["locap"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["locap"])
from locap.trainer.doctor.probe import main
main()
"""


@functools.cache
def start_probe() -> subprocess.Popen:
    """Start asking; the answer is `answers`."""
    code = _START.format(init=str(ROOT / "__init__.py"), root=str(ROOT))
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    )


@functools.cache
def answers() -> dict[str, dict[str, Any]]:
    """Return ``{question: {"value": ...} or {"error": text}}``; every question has an error if the process died."""
    process = start_probe()
    try:
        said, complaint = process.communicate(timeout=PROBE_SECONDS)
        return json.loads(said.splitlines()[-1])
    except subprocess.TimeoutExpired:
        process.kill()
        reason = f"importing torch took more than {PROBE_SECONDS:g} s"
    except (IndexError, ValueError):
        last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
        reason = f"a process that imports torch ended with code {process.returncode}: {last[:300]}"
    return {question: {"error": reason} for question in _QUESTIONS}


def imports() -> Iterator[Line]:
    """Whether torch and what is built against it can be imported."""
    torch = answers()["torch"]
    if "error" in torch:
        yield Line("import torch", BROKEN, torch["error"], _REINSTALL)
        return
    failed = answers()["imports"]
    for name, reason in (failed.get("value") or {}).items():
        package = {"PIL": "pillow"}.get(name, name)
        fix = _REINSTALL if name == "torchvision" else f"{pip_install('--force-reinstall', package)}"
        yield Line(f"import {name}", BROKEN, reason, fix)
    if "error" in failed:
        yield Line("imports", BROKEN, failed["error"], _REINSTALL)
    elif not failed["value"]:
        yield Line("imports", OK, "torch, torchvision, numpy, scipy and pillow fit together")


def cuda() -> Iterator[Line]:
    """Whether torch's CUDA, the driver and nvcc go together."""
    torch = answers()["torch"].get("value")
    if torch is None:
        yield Line("CUDA", BROKEN, "not checked: torch cannot be imported", _REINSTALL)
        return
    driver = driver_version()
    yield _runtime(torch, driver)
    if driver is not None:
        yield _nvcc(torch["cuda"])


def _runtime(torch: dict[str, Any], driver: str | None) -> Line:
    built = f"torch {torch['version']} is built for " + (f"CUDA {torch['cuda']}" if torch["cuda"] else "CPUs")
    if driver is None:
        return Line("CUDA", OK, f"{built}; no NVIDIA driver here: the CPU computes")
    if torch["cuda"] is None and torch["hip"] is None:
        return Line("CUDA", BROKEN, f"{built}, but there is a GPU (driver {driver})", _REINSTALL)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return Line("CUDA", MISSING, f"{built}; CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES")
    gpus = answers()["gpus"]
    if "error" in gpus or not gpus["value"]:
        reason = gpus.get("error") or "torch sees no GPU"
        major = torch["cuda"].partition(".")[0]
        fix = f"update the driver, or {pip_install('--force-reinstall', 'torch', 'torchvision')} for another CUDA"
        return Line("CUDA", BROKEN, f"{built}, driver {driver}: {reason} (CUDA {major} wants a newer driver?)", fix)
    return Line("CUDA", OK, f"{built}, driver {driver}")


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, None where there is no GPU of NVIDIA."""
    if not shutil.which("nvidia-smi"):
        return None
    try:
        said = output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].strip() if re.match(r"[\d.]+", said) else None


def _nvcc(runtime: str | None) -> Line:
    toolkit = system_install("nvidia-cuda-toolkit", "cuda-nvcc")
    try:
        compiler = build_tools().find_compiler("cuda")
    except build_tools().BuildError as err:
        return Line("nvcc", MISSING, f"{err}; without it deformable attention is slow on GPUs", toolkit)
    match = re.search(r"release (\d+)\.(\d+)", output_of([compiler, "--version"]))
    version = ".".join(match.groups()) if match else "of unknown version"
    if match and runtime and match[1] != runtime.partition(".")[0]:
        fix = f"conda install -c nvidia cuda-nvcc={runtime}; export NVCC=$CONDA_PREFIX/bin/nvcc"
        return Line("nvcc", MISSING, f"CUDA {version} ({compiler}), torch's is {runtime}", fix)
    return Line("nvcc", OK, f"CUDA {version} ({compiler})")


def gpus() -> Iterator[Line]:
    """Every GPU with its memory."""
    found = answers()["gpus"]
    if "error" in found:
        yield Line("GPUs", MISSING, f"none can be used: {found['error']}", "see CUDA above; or --overrides DEVICE cpu")
        return
    for index, gpu in enumerate(found["value"]):
        memory = f"{gpu['free'] / 2**30:.1f} of {gpu['total'] / 2**30:.1f} GiB free"
        yield Line(f"GPU {index}", OK, f"{gpu['name']}, {memory}, compute capability {gpu['capability']}")
    if not found["value"]:
        yield Line("GPUs", OK, "none: the CPU computes")


def operators() -> Iterator[Line]:
    """Which implementation of deformable attention runs."""
    found = answers()["operators"]
    if "error" in found:
        yield Line("deformable attention", BROKEN, f"not checked: {found['error']}", _REINSTALL)
        return
    for kind, text in found["value"].items():
        yield _operator(kind, text)


def _operator(kind: str, text: str) -> Line:
    name = f"deformable attention, {kind}"
    what = {"cpu": "C++", "cuda": "CUDA"}[kind]
    if text == "compiled":
        return Line(name, OK, f"compiled {what} kernels")
    if text == "not compiled yet":
        return Line(name, OK, f"{what} kernels, compiled at their first use")
    fix = system_install("g++", "gxx") if kind == "cpu" else system_install("nvidia-cuda-toolkit", "cuda-nvcc")
    return Line(name, MISSING, f"the slow reference in PyTorch: {text}", fix)
