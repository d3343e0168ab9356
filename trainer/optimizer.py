"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .parallel import is_shard

Layers = Sequence[Sequence[nn.Parameter]]
COSINES = ("WarmupCosineLR", "CosineAfterWarmupLR")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Which learning rate and weight decay a parameter gets.

    Attributes:
        lr_multipliers: a part of a parameter's name -> factor; the factors of all parts found multiply.
        weight_decay: of everything else.
        weight_decay_norm: of normalisation layers.
        weight_decay_embed: of embeddings.
        weight_decay_bias: of modules with "bias" in their name (of the module, not of the parameter).
        decay_by_shape: ``weight_decay`` goes to all parameters of two dimensions and more, embeddings too, and no
            other decays.
        layer_decay: the last of the encoder's layers learns at this share of the rate, every one before it at this
            share of the next one's.
    """

    lr_multipliers: Mapping[str, float]
    weight_decay: float
    weight_decay_norm: float
    weight_decay_embed: float
    weight_decay_bias: float
    decay_by_shape: bool = False
    layer_decay: float = 1.0


def parameter_groups(model: nn.Module, base_lr: float, rule: GroupRule, layers: Layers = ()) -> list[dict[str, Any]]:
    """Return one group per distinct (learning rate, weight decay); each trainable parameter once.

    Shards have groups of their own, as no kernel takes them together with whole tensors. A shared parameter belongs to
    the module that is defined first.

    Args:
        model: the model.
        base_lr: learning rate before all factors.
        rule: see there.
        layers: parameters of the encoder's layers, its input first; what is in none is above them.
    """
    scales = layer_scales(layers, rule.layer_decay)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for module_name, module, name, parameter in _owned_parameters(model):
        full = f"model.{module_name}.{name}" if module_name else f"model.{name}"
        factor = math.prod(value for part, value in rule.lr_multipliers.items() if part in full)
        factor *= scales.get(id(parameter), 1.0)
        decay = _decay_by_shape(parameter, rule) if rule.decay_by_shape else _decay(module_name, module, full, rule)
        groups.setdefault((base_lr * factor, decay, is_shard(parameter)), []).append(parameter)
    return [{"params": p, "lr": lr, "initial_lr": lr, "weight_decay": decay} for (lr, decay, _), p in groups.items()]


def layer_scales(layers: Layers, decay: float) -> dict[int, float]:
    """Return Python's id of a parameter -> decay ** (L - i), for layers i = 0 ... L - 1."""
    return {id(parameter): decay ** (len(layers) - i) for i, layer in enumerate(layers) for parameter in layer}


def _owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module_name, module, name, parameter


def _decay(module_name: str, module: nn.Module, full: str, rule: GroupRule) -> float:
    if "relative_position_bias_table" in full or "absolute_pos_embed" in full:
        return 0.0
    if isinstance(module, NORMS):
        return rule.weight_decay_norm
    if isinstance(module, nn.Embedding):
        return rule.weight_decay_embed
    return rule.weight_decay_bias if "bias" in module_name else rule.weight_decay


def _decay_by_shape(parameter: nn.Parameter, rule: GroupRule) -> float:
    return rule.weight_decay if parameter.ndim > 1 else 0.0


def configured_groups(model: nn.Module, solver: Any, layers: Layers = ()) -> list[dict[str, Any]]:
    """Return the parameter groups that the SOLVER section describes; see `parameter_groups`."""
    rule = GroupRule(
        solver.LR_MULTIPLIER,
        solver.WEIGHT_DECAY,
        solver.WEIGHT_DECAY_NORM,
        solver.WEIGHT_DECAY_EMBED,
        solver.WEIGHT_DECAY_BIAS,
        solver.WEIGHT_DECAY_BY == "shape",
        solver.LAYER_DECAY,
    )
    return parameter_groups(model, solver.BASE_LR, rule, layers)


def build_optimizer(model: nn.Module, solver: Any, layers: Layers = ()) -> torch.optim.Optimizer:
    """Return the optimiser that the SOLVER section names; ``layers`` as in `parameter_groups`."""
    groups = configured_groups(model, solver, layers)
    if solver.OPTIMIZER == "SGD":
        fused = not any(is_shard(parameter) for group in groups for parameter in group["params"])
        return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, fused=fused)  # torch has no other
    return torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=True)


class Schedule:
    """Learning-rate factor per optimiser step (detectron2's three schedules, and PixelLLM's).

    Args:
        kind: "WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR", or "CosineAfterWarmupLR", whose cosine starts where
            the warm-up ends.
        max_steps: length of the run.
        milestones: multi-step: fractions of the run.
        gamma: multi-step: factor at each milestone.
        end_factor: cosine: last factor; polynomial: share that stays.
        power: polynomial: exponent.
        warmup_steps, warmup_factor, warmup_method: the first steps rise from ``warmup_factor`` ("linear") or stay there
            ("constant").
    """

    def __init__(
        self,
        kind: str,
        max_steps: int,
        *,
        milestones: Sequence[float] = (),
        gamma: float = 0.1,
        end_factor: float = 0.0,
        power: float = 0.9,
        warmup_steps: int = 0,
        warmup_factor: float = 1.0,
        warmup_method: str = "linear",
    ) -> None:
        self.kind, self.max_steps, self.gamma, self.end_factor, self.power = kind, max_steps, gamma, end_factor, power
        self.milestones = [int(fraction * max_steps) for fraction in milestones]
        self.warmup_steps, self.warmup_factor, self.warmup_method = warmup_steps, warmup_factor, warmup_method

    def factor(self, step: int) -> float:
        """Return the factor of step 0, 1, ..."""
        return self._shape(step) * self._warmup(step)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set every group's learning rate for a step."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _shape(self, step: int) -> float:
        if self.kind == "WarmupMultiStepLR":
            return self.gamma ** bisect.bisect_right(self.milestones, step)
        start = self.warmup_steps if self.kind == "CosineAfterWarmupLR" else 0
        progress = min(max(step - start, 0) / max(self.max_steps - start, 1), 1.0)
        if self.kind in COSINES:
            return self.end_factor + (1 - self.end_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.end_factor + (1 - self.end_factor) * (1 - progress) ** self.power

    def _warmup(self, step: int) -> float:
        if step >= self.warmup_steps:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps


def build_schedule(solver: Any, max_steps: int) -> Schedule:
    """Return the schedule that the SOLVER section names, for a run of ``max_steps`` optimiser steps."""
    cosine = solver.LR_SCHEDULER_NAME in COSINES
    return Schedule(
        solver.LR_SCHEDULER_NAME,
        max_steps,
        milestones=solver.STEPS,
        gamma=solver.GAMMA,
        end_factor=solver.BASE_LR_END / solver.BASE_LR if cosine and solver.BASE_LR else solver.POLY_LR_CONSTANT_ENDING,
        power=solver.POLY_LR_POWER,
        warmup_steps=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
    )
