"""Everything here runs on a GPU and skips without one; ``make gpu-check`` runs it with the measurements."""

from __future__ import annotations

import pytest
import torch

from locap.ops.ms_deform_attn.library import Library, load


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the CUDA kernels were compiled and emulated, not run")


@pytest.fixture(scope="session")
def kernels() -> Library:
    """The compiled library. One that cannot be built is a failure here, not a reason to skip."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    library = load("cuda")
    assert library.usable(torch.cuda.current_device()) is None
    return library
