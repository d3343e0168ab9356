"""Low-rank adaptation (Hu et al., 2022) of language models, through peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...utils.errors import MissingDependencyError, UsageError


@dataclass(frozen=True, slots=True)
class Lora:
    """W' = W + alpha / rank * B A; A starts random, B at zero, without dropout.

    Attributes:
        rank: rows of A.
        alpha: scale, times ``rank``.
        targets: the last name of the linear layers adapted; T5's queries and values are "q" and "v", LLaMA's "q_proj"
            and "v_proj".
    """

    rank: int
    alpha: float
    targets: Sequence[str]


def add_lora(model: nn.Module, lora: Lora) -> int:
    """Adapt a model in place: everything in it freezes, the new matrices alone learn.

    Returns:
        The number of adapted matrices.

    Raises:
        UsageError: no layer has such a name.
        MissingDependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingDependencyError("LoRA needs the package peft.", fix="pip install peft") from None
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(lora.targets) - names)
    if unknown:
        allowed = ", ".join(sorted(names))
        raise UsageError("The language model has no such layer to adapt.", value=", ".join(unknown), allowed=allowed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, bias="none"
    )
    inject_adapter_in_model(config, model)
    freeze_all_but_lora(model)
    return sum(1 for _ in adapted_layers(model))


def freeze_all_but_lora(model: nn.Module) -> None:
    """Let the low-rank matrices learn and nothing else; without any, the whole model is frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapted_layers(model: nn.Module):
    """Yield name and layer of every adapted matrix."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


def merge_lora(model: nn.Module) -> None:
    """Add the low-rank matrices to the weights and drop them, in place: the model is its library's own again."""
    for name, layer in adapted_layers(model):
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
