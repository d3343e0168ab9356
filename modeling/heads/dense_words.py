"""A dense auxiliary head of prompted systems: every cell of the map learns the words said about it; training only.

Words are learnt where they are seen, long before a language model connects them to the picture (as `WordHead` does for
segments).

Shapes: B images, C channels, h x w the map, N pairs of a box and words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batches import PromptTargets
from .word_pointer import covered_cells


class DenseWords(nn.Module):
    """Predict from each cell the words of the texts whose box covers it.

    A softmax over the vocabulary against these words (Joulin et al., arXiv 1511.02251); a text counts by one over the
    square of its box's area, so that what is small is not drowned by its surroundings. Words of a narrative count
    where they were spoken.

    Args:
        dim: C.
        vocab_size: V.
        ignore_ids: tokens that are no words (padding, begin, end).
    """

    def __init__(self, dim: int, vocab_size: int, ignore_ids: Sequence[int]) -> None:
        super().__init__()
        self.predict = nn.Linear(dim, vocab_size)
        self.ignore_ids = list(ignore_ids)

    def loss(self, features: Tensor, targets: Sequence[PromptTargets], canvas: tuple[int, int]) -> Tensor:
        """Return the sum over images of the mean cross-entropy of the cells that words are said about.

        Args:
            features: (B, C, h, w), covering the canvas.
            targets: of the images.
            canvas: (height, width), pixels.
        """
        size = tuple(features.shape[-2:])
        wanted = torch.stack([self._words(target, size, canvas, features.device) for target in targets])  # B hw V
        said = wanted.sum(-1)  # B hw
        share = wanted / said.clamp(min=1e-12)[..., None]
        logits = self.predict(features.flatten(2).transpose(1, 2)).float()
        entropy = torch.where(said > 0, logits.logsumexp(-1) - (share * logits).sum(-1), 0.0)
        return (entropy.sum(1) / (said > 0).sum(1).clamp(min=1)).sum()

    @torch.no_grad()
    def _words(self, target: PromptTargets, size: tuple[int, int], canvas: tuple[int, int], device) -> Tensor:
        """Return how much each word is said about each cell, (h * w, V)."""
        text = target.text.to(device)
        boxes, words = target.boxes_xyxy, torch.zeros(len(text), self.predict.out_features, device=device)
        words.scatter_(1, text, 1.0)
        if target.task == "trace":  # a pair per word
            boxes = target.word_boxes.to(device).flatten(0, 1)
            words = F.one_hot(text.flatten(), words.shape[1]).float()
        words[:, self.ignore_ids] = 0.0
        sides = boxes[:, 2:] - boxes[:, :2]
        weight = 1 / sides.prod(-1).clamp(min=1.0).square() * boxes.any(-1)  # N
        return (covered_cells(boxes, size, canvas) * weight[:, None]).T @ words
