"""Which device to compute on."""

from __future__ import annotations

import re

import torch

from .errors import MissingDependencyError, UsageError


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device a process computes on; "auto" takes a GPU when there is one."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if wanted != "auto" and not re.fullmatch(r"cuda(:\d+)?", wanted):
        raise UsageError("There is no such device.", where="DEVICE", value=wanted, allowed="auto, cpu, cuda, cuda:1")
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "No GPU can be used here.", where="DEVICE", value=wanted, allowed="auto, cpu", fix="--overrides DEVICE cpu"
        )
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            "There are more processes on this machine than GPUs.",
            value=local_rank + 1,
            allowed=f"at most {torch.cuda.device_count()} processes",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
