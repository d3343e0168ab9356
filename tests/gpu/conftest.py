"""Everything here runs on a GPU and skips without one; ``make gpu-check`` runs it with the measurements."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from locap.ops.ms_deform_attn.library import Library, load


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: nothing ran on one; the kernels were compiled and emulated")


@pytest.fixture(scope="session")
def kernels() -> Library:
    """The compiled library. One that cannot be built is a failure here, not a reason to skip."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    library = load("cuda")
    assert library.usable(torch.cuda.current_device()) is None
    return library


@pytest.fixture(scope="session")
def msda() -> ModuleType:
    """As in the folder above, whose conftest.py is not read where only torch is installed."""
    spec = importlib.util.spec_from_file_location("msda_cases", Path(__file__).parents[1] / "msda_cases.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["msda_cases"] = module
    spec.loader.exec_module(module)
    return module
