"""The same bits every time: PyTorch's deterministic algorithms, for the length of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Choose algorithms that give the same bits every time, where there are some; the settings return afterwards.

    On the CPU a run repeats itself anyway, with the same number of threads and processes. On a GPU two of our backward
    passes have no deterministic way; PyTorch warns of each when it meets it, and goes on:

    - `torch.nn.functional.grid_sample`: points on masks, positions among maps, and deformable attention where the
      reference in PyTorch computes it (the compiled kernels of `ops.ms_deform_attn` then sum whole numbers, exactly);
    - `torch.nn.functional.interpolate` with ``antialias``: tables and maps that are brought to another size.

    ``index_add``, ``scatter_add``, ``index_put``, plain ``interpolate`` and ``roi_align`` have slower deterministic
    ways, which are taken.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, ":4096:8")  # cuBLAS reads it when it is first used
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
