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
    """Predict from each cell the words of the texts whose mask, or else box, covers it.

    A softmax over the vocabulary against these words, all equally likely (Joulin et al., arXiv 1511.02251). Words of a
    narrative count where they were spoken.

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
        """Return the sum over images of the mean over their texts of the mean cross-entropy of the covered cells.

        Args:
            features: (B, C, h, w), covering the canvas.
            targets: of the images.
            canvas: (height, width), pixels.
        """
        logits = self.predict(features.flatten(2).transpose(1, 2)).float()  # B hw V
        total = 0 * logits.sum()
        for image, target in zip(logits, targets, strict=True):
            words, share = self._said(target, tuple(features.shape[-2:]), canvas, image.device)
            entropy = words.sum(1) @ (share @ image.logsumexp(1)) - (words * (share @ image)).sum()
            total = total + entropy / words.any(1).sum().clamp(min=1)
        return total

    @torch.no_grad()
    def _said(
        self, target: PromptTargets, size: tuple[int, int], canvas: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return words as probabilities, (N, V), and the cells that they are said about, (N, h * w); rows sum to 1."""
        text, boxes = target.text.to(device), target.boxes_xyxy
        words = torch.zeros(len(text), self.predict.out_features, device=device).scatter_(1, text, 1.0)
        teaches = target.learns.any(1).to(device)
        if target.task == "trace":  # a pair per word
            boxes = target.word_boxes.to(device).flatten(0, 1)
            words = F.one_hot(text.flatten(), words.shape[1]).float()
            teaches = teaches.repeat_interleave(text.shape[1])
        words[:, self.ignore_ids] = 0.0
        words = words * (boxes.any(-1) & teaches)[:, None]
        cells = covered_cells(boxes, size, canvas)
        if target.masks is not None:
            masks = F.adaptive_avg_pool2d(target.unpacked_masks(canvas[1]).float(), size).flatten(1)
            cells = torch.where(target.learns[:, 2:].to(device), masks, cells)
        words, cells = (x / x.sum(1, keepdim=True).clamp(min=1e-6) for x in (words, cells))
        return words, cells
