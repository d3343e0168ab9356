"""Dense word head, an auxiliary training signal: which words are said about the segment at each position?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...datasets.batches import RegionTargets
from .semantic import segment_shares


class WordHead(nn.Module):
    """Predict the words of a segment's caption from every position inside it; used in training only.

    A softmax over the vocabulary against the caption's words, all equally likely (Joulin et al., arXiv 1511.02251).
    Words are learnt where they are seen, long before a language model could connect them to the picture.

    Args:
        dim: width of the mask features.
        vocab_size: V.
        ignore_ids: tokens that are no words (padding, start, end).
    """

    def __init__(self, dim: int, vocab_size: int, ignore_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.predict = nn.Linear(dim, vocab_size)
        self.ignore_ids = ignore_ids

    def loss(self, mask_features: Tensor, targets: list[RegionTargets]) -> Tensor:
        """Return the cross-entropy, averaged over a segment's positions and summed over segments.

        Args:
            mask_features: (B, C, h, w), stride 4.
            targets: per image; segments without position or caption don't count.
        """
        total = mask_features.new_zeros((), dtype=torch.float32)
        for features, target in zip(mask_features, targets, strict=True):
            if not len(target):
                continue
            words = self._words(target.caption_tokens)  # n V
            shares = segment_shares(target, *features.shape[-2:]).flatten(1)  # n h*w
            logits = self.predict(features.flatten(1).t()).float()  # h*w V
            total = total + words.sum(1) @ (shares @ logits.logsumexp(1)) - (words * (shares @ logits)).sum()
        return total

    def _words(self, caption_tokens: Tensor) -> Tensor:
        """Return the words of captions as probabilities: int64 (n, T) -> (n, V), all zero without a caption."""
        words = torch.zeros(len(caption_tokens), self.predict.out_features, device=caption_tokens.device)
        words.scatter_(1, caption_tokens, 1.0)
        words[:, list(self.ignore_ids)] = 0.0
        return words / words.sum(1, keepdim=True).clamp(min=1)
