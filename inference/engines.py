"""The engines of `Captioner`: systems that are asked, and systems that describe everything they find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from ..datasets.batches import PromptTargets
from ..datasets.records import Category, Record
from ..modeling.systems import find_system
from .asks import Ask
from .predictor import Predictor
from .prompted import PromptedPredictor


class Engine(Protocol):
    """What `Captioner` needs of a family of systems; there is one for those with prompts and one for those without.

    Attributes:
        model: in evaluation mode, on its device.
        categories: its classes.
        takes: which questions it answers: some of "box", "point", "mask", "text", and "prompt" (words of one's own).
    """

    model: nn.Module
    categories: tuple[Category, ...]
    takes: frozenset[str]

    def encode(self, records: Sequence[Record]) -> Any:
        """Encode images, all that is asked of them later starts here."""

    def answer(self, encoded: Any, records: Sequence[Record], asks: Sequence[Sequence[Ask]]) -> list[Record]:
        """Answer the questions about each image: a region per question, in their order; without any, everything."""


class SegmentEngine:
    """A system without prompts, such as Pix2Cap."""

    takes: frozenset[str] = frozenset()

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.model, self.categories = predictor, predictor.model, predictor.categories

    def encode(self, records: Sequence[Record]) -> list[Record]:
        """See `Engine`."""
        return list(records)

    def answer(self, encoded: Any, records: Sequence[Record], asks: Sequence[Sequence[Ask]]) -> list[Record]:
        """See `Engine`."""
        return [self.predictor.predict(record) for record in records]


class PromptEngine:
    """A prompted system, such as PixelLLM."""

    takes = frozenset({"box", "point", "text"})

    def __init__(self, predictor: PromptedPredictor) -> None:
        self.predictor, self.model, self.categories = predictor, predictor.model, predictor.categories

    def encode(self, records: Sequence[Record]) -> list[Record]:
        """See `Engine`."""
        return list(records)

    def answer(self, encoded: Any, records: Sequence[Record], asks: Sequence[Sequence[Ask]]) -> list[Record]:
        """See `Engine`."""
        return [self.predictor.predict(record, given) for record, given in zip(records, asks, strict=True)]


def make_engine(cfg: Any, device: torch.device | str = "cpu") -> Engine:
    """Build the configured system with the weights of RESUME_FROM."""
    if find_system(cfg.MODEL.NAME).targets is PromptTargets:
        return PromptEngine(PromptedPredictor.from_config(cfg, device))
    return SegmentEngine(Predictor.from_config(cfg, device))
