"""Tools to set a layer of ours beside another library's: same random weights, same outputs, same gradients."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Renaming = Sequence[tuple[str, str]]  # patterns and replacements, applied one after the other; "" drops a tensor


def _other(module: str, name: str) -> Any:
    """Return a class of another library, or skip."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"there is no {module}.{name}: ours was not compared with it")


def _randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter so that activations stay near 1 and nothing is neutral (no zero bias, no unit norm)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.dim() > 1:
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * values + name.endswith("weight"))
    return model.eval()


def _copy_weights(ours: nn.Module, theirs: nn.Module, renaming: Renaming, own: tuple[str, ...] = ()) -> None:
    """Load their weights under our names; only names that begin with one of ``own`` may be left over on our side."""
    wanted, given = ours.state_dict(), {}
    for name, tensor in _packed(theirs.state_dict()).items():
        for pattern, replacement in renaming:
            name = re.sub(pattern, replacement, name)
        if name:
            given[name] = tensor.reshape(wanted[name].shape) if name in wanted else tensor
    report = ours.load_state_dict(given, strict=False)
    assert not report.unexpected_keys
    assert not [name for name in report.missing_keys if not name.startswith(own)]
    ours.eval()


def _packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack separate query, key and value projections as `torch.nn.MultiheadAttention` does."""
    out = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            out[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            out[name] = tensor
    return out


def _assert_agree(
    ours: Callable[..., Iterable[Tensor]],
    theirs: Callable[..., Iterable[Tensor]],
    inputs: Sequence[Tensor],
    tolerance: float,
) -> None:
    """Compare outputs, and the gradients that one random cotangent per output sends to the inputs."""
    found, expected = (_run(function, [x.clone().requires_grad_() for x in inputs]) for function in (ours, theirs))
    for x, y in zip(found, expected, strict=True):
        assert y.abs().max() > 1e-3  # something was compared
        torch.testing.assert_close(x, y, atol=tolerance * float(y.abs().max()), rtol=0)


def _run(function: Callable[..., Iterable[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    outputs = list(function(*inputs))
    generator = torch.Generator().manual_seed(7)
    total = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)
    return [x.detach() for x in outputs] + list(torch.autograd.grad(total, inputs))


def _noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="session")
def other() -> Callable[[str, str], Any]:
    """``other(module, name)``: a class of another library; skips the test if there is none."""
    return _other


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """``randomise(model, seed=0)``: random weights everywhere, evaluation mode."""
    return _randomise


@pytest.fixture(scope="session")
def copy_weights() -> Callable[..., None]:
    """``copy_weights(ours, theirs, renaming, own=())``: every tensor of theirs becomes one of ours."""
    return _copy_weights


@pytest.fixture(scope="session")
def assert_agree() -> Callable[..., None]:
    """``assert_agree(ours, theirs, inputs, tolerance)``: outputs and input gradients, relative to their maximum."""
    return _assert_agree


@pytest.fixture(scope="session")
def noise() -> Callable[..., Tensor]:
    """``noise(*shape, seed=1, dtype=torch.float64)``."""
    return _noise
