"""Exceptions of libraries that tell what the machine lacks, and those that tell of a defect."""

from __future__ import annotations

import pytest
import torch

from locap.utils.endings import explain
from locap.utils.errors import MissingDependencyError


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.fault("D8")
def test_a_full_gpu_is_told_with_what_was_under_way_and_three_remedies(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB.\n of which")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.zeros(2**40)
    error = explain(caught.value, where="step 7, 2 images of 1024 x 1024, images [3, 9]")
    assert isinstance(error, MissingDependencyError)
    assert error.exit_code == 5
    assert "Tried to allocate 2.00 GiB" in str(error)
    assert "images [3, 9]" in str(error)
    assert error.fix.count(";") == 2
    for key in ("COCO.TRAIN.BATCH_SIZE_TOTAL", "GRADIENT_ACCUMULATE_STEP", "PRECISION bf16", "RECOMPUTE"):
        assert key in error.fix
    assert len(str(error).splitlines()) <= 12


@pytest.mark.fault("D8")
def test_a_full_machine():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float64)
    assert "machine's memory" in explain(caught.value).what
    assert "machine's memory" in explain(MemoryError()).what


@pytest.mark.fault("N4", "N5")
@pytest.mark.parametrize(
    ("err", "says", "fix"),
    [
        (RuntimeError("operator torchvision::nms does not exist"), "do not belong together", "torch torchvision"),
        (RuntimeError("Couldn't load custom C++ ops. This can happen if"), "do not belong together", "torchvision"),
        (ValueError("numpy.dtype size changed, may indicate binary incompatibility"), "another NumPy", "numpy"),
        (ImportError("numpy._core.multiarray failed to import"), "another NumPy", "numpy"),
        (RuntimeError("The NVIDIA driver on your system is too old (found 11040)"), "driver is too old", "DEVICE cpu"),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "not built for this GPU", "DEVICE"),
        (missing("wandb.sdk"), "wandb is not installed", "pip install wandb"),
        (missing("sentencepiece"), "sentencepiece is not installed", "pip install sentencepiece"),
        (missing("PIL"), "pillow is not installed", "pip install pillow"),
    ],
)
def test_what_the_machine_lacks(err, says, fix):
    error = explain(err)
    assert error.exit_code == 5
    assert says in error.what
    assert fix in error.fix


@pytest.mark.parametrize(
    "err",
    [
        missing("locap.modeling.nothing"),
        missing("nobody_knows_this"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("numpy"),
        KeyError("OutOfMemoryError"),
    ],
)
def test_a_defect_is_left_alone(err):
    assert explain(err) is None
