"""Which implementation runs: a compiled library where it can be had, else the reference, and never in silence."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import torch

from ...utils.errors import MissingDependencyError, UsageError
from ...utils.logging import RANK_VARIABLES
from .build import BuildError
from .library import Library, load

BACKENDS = ("auto", "cuda", "cpu", "reference")
_log = logging.getLogger(__name__)


@torch.compiler.assume_constant_result
def choose(backend: str, device: str) -> str:
    """Return ``cpu``, ``cuda`` or ``reference``.

    Args:
        backend: one of `BACKENDS`. ``auto`` is the device's compiled library if it can be built, else the reference;
            a line in the log says which, once.
        device: type of the tensors' device.

    Raises:
        UsageError: an unknown backend, or one for another device.
        MissingDependencyError: an explicitly chosen backend cannot run here.
    """
    if backend not in BACKENDS:
        raise UsageError(
            "Unknown backend of multi-scale deformable attention.", value=backend, allowed=", ".join(BACKENDS)
        )
    if backend == "reference":
        return backend
    if backend == "auto":
        return device if device in ("cpu", "cuda") and _automatic(device) else "reference"
    if backend != device:
        raise UsageError(
            f"The {backend} backend of multi-scale deformable attention was asked to work on a {device} tensor.",
            value=backend,
            allowed=f"auto, reference{f', {device}' if device in BACKENDS else ''}",
        )
    usable_library(backend)
    return backend


@lru_cache(maxsize=2)
def usable_library(kind: str) -> Library:
    """Return the library, ready to run on this machine (one that is not raises at every call).

    Raises:
        MissingDependencyError: it cannot be compiled, loaded or run; the message holds the compiler's.
    """
    try:
        found = load(kind)
    except BuildError as err:
        raise MissingDependencyError(
            f"The {kind} kernels of multi-scale deformable attention cannot be built: {err}",
            fix=f"{_remedy(kind)}, or choose the backend auto or reference",
        ) from err
    if reason := found.usable(torch.cuda.current_device() if kind == "cuda" else 0):
        raise MissingDependencyError(
            f"The {kind} kernels of multi-scale deformable attention cannot run here: {reason}",
            fix="choose the backend auto or reference",
        )
    return found


@lru_cache(maxsize=2)
def _automatic(kind: str) -> bool:
    first = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"
    try:
        usable_library(kind)
    except MissingDependencyError as err:
        if first:
            lines = [line for line in err.what.splitlines() if "error" in line.lower()] or err.what.splitlines()
            _log.warning(
                "multi-scale deformable attention runs its slow reference in PyTorch (%s); for the fast %s kernels: %s",
                lines[0].strip()[:200],
                kind,
                _remedy(kind),
            )
        return False
    if first:
        _log.info("multi-scale deformable attention runs its compiled %s kernels", kind)
    return True


def _remedy(kind: str) -> str:
    what = (
        "a C++17 compiler (such as the package g++)" if kind == "cpu" else "the CUDA toolkit (nvcc) and a C++ compiler"
    )
    return f"install {what} and start again"
