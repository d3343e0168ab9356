"""Frozen parts of a model in training."""

from __future__ import annotations

from torch import nn


def rest_frozen(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen in evaluation mode: no dropout, drop-path or running statistics.

    The published Pix2Cap leaves frozen parts in training mode, so their features are noise that nothing can adapt to.
    """
    for part in module.children():
        flags = {parameter.requires_grad for parameter in part.parameters()}
        if flags == {False}:
            part.eval()
        elif flags:
            rest_frozen(part)
