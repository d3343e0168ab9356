"""Make the clone importable as ``locap`` without an installation, and keep tests apart from each other."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

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


@pytest.fixture(autouse=True)
def _messages_reach_pytest():
    """Commands set up logging once per process; undo it, so that every test sees its own messages."""
    yield
    logger = logging.getLogger("locap")
    logger.handlers.clear()
    logger.propagate = True
