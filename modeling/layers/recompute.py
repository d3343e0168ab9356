"""Activation checkpointing: forget what a layer computed and compute it again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute(layer: Callable[..., Tensor], *inputs: Tensor, enabled: bool = True) -> Tensor:
    """Call a layer; where ``enabled`` and gradients are wanted, keep its inputs only. Dropout draws the same twice."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
