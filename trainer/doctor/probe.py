"""What only torch can tell, asked in a process of its own: one that a broken installation may crash or hang.

Prints one JSON object; it is run by `compute.start_probe`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from ...utils.errors import DataError, LocapError
from .lines import build_tools

IMPORTED = ("numpy", "scipy", "PIL", "torchvision")


def main() -> None:
    """Print what torch and the kernels say."""
    logging.disable(logging.CRITICAL)
    answer = {name: _tried(function) for name, function in _QUESTIONS.items()}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # whatever a library would still do at the end


def _tried(function: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": function()}
    except Exception as err:
        return {"error": f"{type(err).__name__}: {err}"[:500]}


def _torch() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}


def _imports() -> dict[str, str]:
    found = {name: _tried(lambda name=name: str(importlib.import_module(name).__name__)) for name in IMPORTED}
    return {name: answer["error"] for name, answer in found.items() if "error" in answer}


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda and torch.cuda.device_count():
            torch.cuda.init()  # says why it cannot be used
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append({"name": properties.name, "free": free, "total": total, "capability": capability})
    return found


def _operators() -> dict[str, str]:
    """Return for each device: ``compiled``, ``not compiled yet``, or why the reference is used."""
    import torch

    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {kind: _operator(kind) for kind in kinds}


def _operator(kind: str) -> str:
    try:
        if build_tools().find_library(kind) is None:
            return "not compiled yet"
        from ...ops.ms_deform_attn.backends import usable_library  # slow to import

        usable_library(kind)
    except (LocapError, RuntimeError) as err:
        return str(err).splitlines()[0]
    return "compiled"


def find_data() -> dict[str, Any]:
    """Return the names of the data sets whose annotations are there, and how many names there are."""
    from ...datasets.readers import DATASETS, TEXT_DATASETS
    from ...datasets.readers.whereabouts import locate

    layouts = {name: ((source.annotations,),) for name, source in DATASETS.items()}
    layouts |= {name: source.files for name, source in TEXT_DATASETS.items()}
    present = []
    for name, files in layouts.items():
        try:
            locate(name, None, files)
        except DataError:
            continue
        present.append(name)
    return {"present": present, "known": len(layouts)}


_QUESTIONS = {"torch": _torch, "imports": _imports, "gpus": _gpus, "operators": _operators, "data": find_data}
