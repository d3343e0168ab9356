"""A moving average of the weights: smoother than the last ones, for evaluation and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..utils.errors import CheckpointError
from .parallel import is_shard


class MovingAverage:
    """average <- average + (1 - d) (weights - average) after every step, d = min(decay, (1 + step) / (10 + step)).

    The young average forgets faster, so that it is not the initial weights for a thousand steps. What is frozen is not
    averaged.

    Args:
        model: whose trained parameters are averaged.
        decay: of an old average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights of a step.

        Args:
            step: index of the step, from 0.
            skipped: 0-dim, 1 where the step was left out: nothing then changes.
        """
        averages = [_here(average) for average in self.average.values()]
        weights = [_here(parameter.detach()) for parameter in self._trained.values()]
        rate = (1 - min(self.decay, (1 + step) / (10 + step))) * (1 - skipped)
        change = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(change, rate)
        torch._foreach_add_(averages, change)

    @torch.no_grad()
    def restart(self) -> None:
        """Forget what was: the average is the weights as they are."""
        for name, parameter in self._trained.items():
            self.average[name].copy_(parameter)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for the length of the block."""
        kept = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        self._fill(self.average)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a stored average.

        Raises:
            CheckpointError: it is that of another model.
        """
        if tensors.keys() != self.average.keys():
            odd = sorted(tensors.keys() ^ self.average.keys())
            raise CheckpointError("The checkpoint's average belongs to another model.", where=odd[0])
        for name, value in tensors.items():
            self.average[name].copy_(value)


def _here(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor; no kernel takes shards together with whole tensors."""
    return tensor.to_local() if is_shard(tensor) else tensor
