"""Make the clone importable as ``locap`` without an installation, and keep tests apart from each other."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = ROOT.parent / "shared"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# before torch is imported: small tensors are slower on several threads, and the order of additions, so the last bits,
# must not depend on how many cores are free
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")
_cache = tempfile.TemporaryDirectory(prefix="locap-tests-")  # removed at the end
os.environ["LOCAP_CACHE"] = _cache.name
os.environ.setdefault("LOCAP_OPS_CACHE", str(ROOT / ".pytest_cache" / "ops"))  # kernels are compiled once, not per run

_spec = importlib.util.spec_from_file_location("locap_entry", ROOT / "entry.py")
_entry = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_entry)  # its bootstrap registers the package
assert Path(sys.modules["locap"].__file__).parent == ROOT


@pytest.fixture
def shared() -> Path:
    """The folder with real images and reference scores that stands beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent: real images and reference scores were not checked")
    return SHARED


@pytest.fixture
def coco_mini(shared: Path) -> Path:
    """13 real COCO images annotated in every format."""
    return shared / "data" / "coco_mini"


def load_beside(name: str) -> ModuleType:
    """Import a module that stands beside this file."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_pix2cap() -> ModuleType:
    """The builders of tiny_pix2cap.py, imported only by tests that want a model."""
    return load_beside("tiny_pix2cap")


@pytest.fixture(scope="session")
def tiny_pixelllm() -> ModuleType:
    """tiny_pixelllm.py: builders of a tiny PixelLLM and of its batches."""
    return load_beside("tiny_pixelllm")


@pytest.fixture(scope="session")
def on_ranks() -> Callable[..., list[Any]]:
    """``on_ranks(size, function, *arguments)``: what ``function(world, *arguments)`` returns on each of the ranks."""
    return load_beside("ranks").on_ranks


@pytest.fixture(scope="session")
def msda() -> ModuleType:
    """msda_cases.py: inputs of deformable attention with known answers."""
    return load_beside("msda_cases")


@pytest.fixture(scope="session")
def build(tiny_pix2cap: ModuleType) -> Callable[..., Any]:
    """``build(*overrides, aids=False, seed=0)``: a tiny Pix2Cap in its published form, or with every optional aid."""
    return tiny_pix2cap.build


@pytest.fixture(scope="session")
def make_batch(tiny_pix2cap: ModuleType) -> Callable[..., Any]:
    """``make_batch(segments per image, sizes=None, seed=0)``: noise with rectangles, 64 x 64 unless told otherwise."""
    return tiny_pix2cap.make_batch


@pytest.fixture(autouse=True)
def _messages_reach_pytest():
    """Commands set up logging once per process; undo it, so that every test sees its own messages."""
    yield
    logger = logging.getLogger("locap")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
