"""The layers that a model repeats: what is sharded and compiled one by one."""

from __future__ import annotations

from torch import nn

_ENDINGS = ("Block", "Layer")  # of class names, here, in timm and in transformers


def repeated_blocks(*parts: nn.Module) -> list[nn.Module]:
    """Return the outermost blocks and layers that stand in lists or sequences of these parts, in their order."""
    found: list[nn.Module] = []
    for part in parts:
        listed = isinstance(part, (nn.ModuleList, nn.Sequential))
        for child in part.children():
            if listed and type(child).__name__.endswith(_ENDINGS) and next(child.parameters(), None) is not None:
                found.append(child)
            else:
                found += repeated_blocks(child)
    return found
