"""Sums, and the name of what they must be divided by."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossTerm(NamedTuple):
    """One loss before its division.

    A system says with ``counts(batch)`` how many of each name a batch holds, before any forward pass. The trainer sums
    these over ranks and accumulated batches and divides by the sum, so that no split of a batch changes its loss.

    Attributes:
        total: scalar, the sum over everything counted.
        counted: what was counted, a key of ``counts(batch)``.
        weight: factor of the mean in the objective.
    """

    total: Tensor
    counted: str
    weight: float


def add_terms(losses: dict[str, LossTerm], more: dict[str, LossTerm]) -> None:
    """Add sums of the same names to ``losses``, in place."""
    for name, term in more.items():
        before = losses.get(name)
        losses[name] = term if before is None else term._replace(total=before.total + term.total)
