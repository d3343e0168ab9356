"""Frozen parts of a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def freeze_by_name(module: nn.Module, fixed: Mapping[str, bool], spared: Sequence[str] = ()) -> None:
    """Freeze parameters whose names hold a part that ``fixed`` says true of, unless they hold one of ``spared``."""
    for name, parameter in module.named_parameters():
        chosen = any(part in name and flag for part, flag in fixed.items())
        if chosen and not any(part in name for part in spared):
            parameter.requires_grad_(False)
