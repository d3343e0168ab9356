"""The class names as text embeddings, the weights of the open-vocabulary classifier.

Shapes: K classes, N sentences, T tokens, P width of the vision-language space.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...utils.cache import cached_tensor, digest
from .clip_text import ClipTextEncoder

_log = logging.getLogger(__name__)

BACKGROUND = "background"
SUFFIXES = ("-other", "-merged", "-stuff")
BARE = ("{}.",)
# the bare name, then CLIP's 80 prompts for ImageNet, "a photo of a {}." moved to the front
CLIP_TEMPLATES = (
    "{}.",
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)


@dataclass(slots=True)
class _Tokens:
    """Tokens of some sentences on the host, int64 (N, T), and how many of each are read, (N,)."""

    tokens: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, tokens: Tensor, end_id: int) -> _Tokens:
        tokens = tokens.numpy()
        return cls(tokens, (tokens == end_id).argmax(1) + 1)

    def take(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Return tokens of these sentences, cut after the longest one's end: the encoder reads nothing beyond."""
        cut = np.ascontiguousarray(self.tokens[rows, : self.lengths[rows].max()])
        return torch.from_numpy(cut).to(device, non_blocking=True)


@dataclass(slots=True)
class _Embedded:
    """Every sentence's embedding, (K + 1, templates, P), and what it was made from."""

    key: str
    rows: Tensor


class ClassTexts:
    """Sentences about every class and the row "background", each encoded once for given weights.

    The embeddings are kept in memory and on disk (`locap.utils.cache`), under a digest of the encoder's weights, the
    sentences and the tokenizer, so the next run on the same weights need not encode anything.

    Args:
        names: K class names in the order of the class indices.
        tokenizer: texts -> int64 (N, T), with the attribute ``end_id``.
        templates: sentences with a hole for the name.
        background_templates: put "background" into the templates as well, as upstream; else it stands alone.
    """

    def __init__(
        self,
        names: Sequence[str],
        tokenizer: Callable[[list[str]], Tensor],
        templates: Sequence[str] = CLIP_TEMPLATES,
        *,
        background_templates: bool = True,
    ) -> None:
        self.background_templates = background_templates
        self.names = [strip_suffixes(name) for name in (*names, BACKGROUND)]
        self.training_names = [name.replace(",", "").replace("+", " ") for name in self.names]
        self.tokenizer, self.templates = tokenizer, tuple(templates)
        self._training_tokens: _Tokens | None = None
        self._embedded: dict[tuple[str, ...], _Embedded] = {}  # by names
        self._probes: dict[tuple[str, ...], str] = {}  # by names
        self._weights: tuple[object, str] | None = None  # the state of the encoder's weights, and their digest
        self._table: tuple[Tensor, Tensor] | None = None  # embeddings and their means

    def sampled(self, encoder: ClipTextEncoder, rng: np.random.Generator) -> Tensor:
        """Return the embedding of one random sentence per class, as in training: (K + 1, P).

        An encoder that is not trained is looked up, not called, but for the first time.
        """
        drawn = rng.integers(len(self.templates), size=len(self.names))
        device = encoder.token_embedding.weight.device
        if encoder.is_frozen:
            rows = self._embeddings(encoder, self.training_names)
            classes = torch.arange(len(rows), device=device)
            return rows[classes, torch.from_numpy(np.asarray(drawn)).to(device, non_blocking=True)]
        self.forget()  # an optimiser step is to follow, and fused ones leave no trace in PyTorch's records
        if self._training_tokens is None:
            self._training_tokens = self._tokenize(self.training_names)
        rows = np.arange(len(self.names)) * len(self.templates) + np.asarray(drawn)
        return encoder(self._training_tokens.take(rows, device), self.tokenizer.end_id)

    @torch.no_grad()
    def ensemble(self, encoder: ClipTextEncoder) -> Tensor:
        """Return the mean over every sentence of a class, of length one, as in evaluation: (K + 1, P)."""
        rows = self._embeddings(encoder, self.names)
        if self._table is None or self._table[0] is not rows:
            mean = rows.mean(1)
            self._table = rows, mean / mean.norm(dim=-1, keepdim=True)
        return self._table[1]

    @torch.no_grad()
    def phrases(self, encoder: ClipTextEncoder, phrases: Sequence[str]) -> Tensor:
        """Return phrases as `ensemble` makes classes of their names, then the background: (N + 1, P)."""
        rows = self._encode(encoder, list(phrases)).view(len(phrases), len(self.templates), -1).mean(1)
        return torch.cat((rows / rows.norm(dim=-1, keepdim=True), self.ensemble(encoder)[-1:]))

    def forget(self) -> None:
        """Look at all of the encoder's weights before the next use, even if PyTorch recorded no write to them."""
        self._weights = None

    @torch.no_grad()
    @torch.inference_mode(False)  # what is kept may be used in training later
    def _embeddings(self, encoder: ClipTextEncoder, names: list[str]) -> Tensor:
        """Return (K + 1, templates, P) on the encoder's device, from memory, disk or the encoder."""
        device = encoder.token_embedding.weight.device
        key = digest(self._weights_digest(encoder), device.type, self._probe(names))
        known = self._embedded.get(tuple(names))
        if known is None or known.key != key or known.rows.device != device:
            shape = (len(names), len(self.templates), encoder.projection.shape[1])
            rows = cached_tensor("class_texts", key, shape, lambda: self._encode_classes(encoder, names).view(shape))
            known = self._embedded[tuple(names)] = _Embedded(key, rows.to(device))
        return known.rows

    def _weights_digest(self, encoder: ClipTextEncoder) -> str:
        weights = encoder.sentence_weights()
        state = [(weight.data_ptr(), weight._version) for weight in weights]  # cheap, and changed by almost any write
        if self._weights is None or self._weights[0] != state:
            self._weights = state, digest(weights)
        return self._weights[1]

    def _probe(self, names: list[str]) -> str:
        """Return a digest of the sentences: of every name and every template once, as text and as tokens.

        Tokenizing all pairs would take as long as everything else that a warm start does.
        """
        if tuple(names) not in self._probes:
            texts = [*(f"{name}." for name in names), *(template.format(names[-1]) for template in self.templates)]
            sentences = repr((names, self.templates, self.background_templates, self.tokenizer.end_id))
            self._probes[tuple(names)] = digest(sentences, self.tokenizer(texts))
        return self._probes[tuple(names)]

    def _encode_classes(self, encoder: ClipTextEncoder, names: list[str]) -> Tensor:
        count = len(names) * len(self.templates)
        _log.info("encoding %d sentences about %d classes, once for these weights", count, len(names))
        return self._encode(encoder, names)

    def _encode(self, encoder: ClipTextEncoder, names: list[str], batch_size: int = 512) -> Tensor:
        """Encode every sentence about every name, the short ones first, so that few tokens are padding: (N, P)."""
        sentences = self._tokenize(names)
        device = encoder.token_embedding.weight.device
        order = np.argsort(sentences.lengths, kind="stable")
        with torch.autocast(device.type, enabled=False):  # what is kept outlives the precision it was asked for in
            parts = [
                encoder(sentences.take(order[start : start + batch_size], device), self.tokenizer.end_id)
                for start in range(0, len(order), batch_size)
            ]
        rows = torch.cat(parts)
        return torch.empty_like(rows).index_copy_(0, torch.from_numpy(order).to(device), rows)

    def sentences(self, names: Sequence[str]) -> list[str]:
        """Return one sentence per name and template, name by name; the background may have its bare name only."""
        alone = set() if self.background_templates else {BACKGROUND}
        return [(BARE[0] if name in alone else text).format(name) for name in names for text in self.templates]

    def _tokenize(self, names: list[str]) -> _Tokens:
        return _Tokens.of(self.tokenizer(self.sentences(names)), self.tokenizer.end_id)


def strip_suffixes(name: str) -> str:
    """Return a COCO class name without "-other", "-merged" and "-stuff"."""
    for suffix in SUFFIXES:
        name = name.replace(suffix, "")
    return name
