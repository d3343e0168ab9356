"""Dense auxiliary heads: every position of the mask features learns its segment's class and words; training only.

Shapes: B images, C channels, h x w the mask features (stride 4), n segments, K classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batches import RegionTargets

STRIDE = 4  # pixels per position of the mask features


class DenseHead(Protocol):
    """A loss on mask features; ``counted`` and ``weight`` as in `LossTerm`."""

    counted: str
    weight: float

    def loss(self, mask_features: Tensor, targets: Sequence[RegionTargets]) -> Tensor:
        """Return the sum over what is counted; mask_features: (B, C, h, w)."""

    def count(self, targets: Sequence[RegionTargets]) -> float:
        """Return how much of it a batch holds."""


class SemanticHead(nn.Module):
    """Classify every position that is not void.

    Args:
        dim: C.
        class_weights: K factors, so that small things can count for more than wide stuff.
        weight: of the loss.
    """

    counted = "positions"

    def __init__(self, dim: int, class_weights: Sequence[float], *, weight: float = 1.0) -> None:
        super().__init__()
        self.classify = nn.Conv2d(dim, len(class_weights), 1)
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)
        self.weight = weight

    def loss(self, mask_features: Tensor, targets: Sequence[RegionTargets]) -> Tensor:
        """Return the weighted sum of cross-entropies."""
        logits = self.classify(mask_features)
        classes = torch.stack([semantic_map(target, *logits.shape[-2:]) for target in targets])
        return F.cross_entropy(logits.float(), classes, self.class_weights, ignore_index=-1, reduction="sum")

    def count(self, targets: Sequence[RegionTargets]) -> float:
        """Return the sum of weights of all positions that `loss` sees."""
        total = 0.0
        for target in targets:
            cells = (_cells(target).flatten() == target.segment_ids[:, None]).sum(1)  # n
            total += float(self.class_weights[target.labels] @ cells.float())
        return total


class WordHead(nn.Module):
    """Predict the words of a segment's caption from every position inside it.

    A softmax over the vocabulary against the caption's words, all equally likely (Joulin et al., arXiv 1511.02251).
    Words are learnt where they are seen, long before a language model connects them to the picture; and what tells
    the words of two segments apart tells their masks apart.

    Args:
        dim: C.
        vocab_size: V.
        ignore_ids: tokens that are no words (padding, start, end).
        weight: of the loss.
    """

    counted = "segments"

    def __init__(self, dim: int, vocab_size: int, ignore_ids: Sequence[int], *, weight: float = 1.0) -> None:
        super().__init__()
        self.predict = nn.Linear(dim, vocab_size)
        self.ignore_ids = list(ignore_ids)
        self.weight = weight

    def loss(self, mask_features: Tensor, targets: Sequence[RegionTargets]) -> Tensor:
        """Return the cross-entropy averaged over a segment's positions, summed over segments.

        Segments without a position or a caption add nothing.
        """
        total = mask_features.new_zeros((), dtype=torch.float32)
        for features, target in zip(mask_features, targets, strict=True):
            words = self._words(target.caption_tokens)  # n V
            shares = segment_shares(target, *features.shape[-2:]).flatten(1)  # n h*w
            logits = self.predict(features.flatten(1).t()).float()  # h*w V
            expected = (words * (shares @ logits)).sum()
            total = total + words.sum(1) @ (shares @ logits.logsumexp(1)) - expected
        return total

    def count(self, targets: Sequence[RegionTargets]) -> float:
        """Return the number of segments."""
        return sum(map(len, targets))

    def _words(self, caption_tokens: Tensor) -> Tensor:
        """Return the words of captions as probabilities: int64 (n, T) -> (n, V), all zero without a caption."""
        words = torch.zeros(len(caption_tokens), self.predict.out_features, device=caption_tokens.device)
        words.scatter_(1, caption_tokens, 1.0)
        words[:, self.ignore_ids] = 0.0
        return words / words.sum(1, keepdim=True).clamp(min=1)


def semantic_map(targets: RegionTargets, height: int, width: int) -> Tensor:
    """Return the class at the middle of each cell, int64 (height, width), -1 = void or padding."""
    cells = _padded(_cells(targets), height, width)
    classes = torch.full_like(cells, -1, dtype=torch.long)
    for label, segment in zip(targets.labels, targets.segment_ids, strict=True):
        classes = torch.where(cells == segment, label, classes)
    return classes


def segment_shares(targets: RegionTargets, height: int, width: int) -> Tensor:
    """Return per segment 1 / its number of cells inside it and 0 outside, float32 (n, height, width)."""
    inside = (_padded(_cells(targets), height, width) == targets.segment_ids[:, None, None]).float()
    return inside / inside.sum((1, 2), keepdim=True).clamp(min=1)


def _cells(targets: RegionTargets) -> Tensor:
    """Return the id in the middle of each cell."""
    return targets.id_map[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def _padded(cells: Tensor, height: int, width: int) -> Tensor:
    return F.pad(cells, (0, width - cells.shape[1], 0, height - cells.shape[0]), value=-1)
