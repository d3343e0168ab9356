"""The class names as text embeddings, the weights of the open-vocabulary classifier.

Shapes: K classes, P width of the vision-language space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .clip_text import ClipTextEncoder

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


class ClassTexts:
    """Sentences about every class and the row "background", encoded on demand.

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
        self.tokenizer, self.templates = tokenizer, tuple(templates)
        self._training_tokens: Tensor | None = None  # K+1, templates, T
        self._table: Tensor | None = None

    def sampled(self, encoder: ClipTextEncoder, rng: np.random.Generator) -> Tensor:
        """Encode one random sentence per class, as in training: (K + 1, P)."""
        tokens = self._tokens_for_training()
        drawn = torch.from_numpy(rng.integers(len(self.templates), size=len(self.names)))
        device = encoder.token_embedding.weight.device
        return encoder(tokens[torch.arange(len(tokens)), drawn].to(device), self.tokenizer.end_id)

    @torch.no_grad()
    def ensemble(self, encoder: ClipTextEncoder, batch_size: int = 512) -> Tensor:
        """Encode every sentence and average per class, as in evaluation: (K + 1, P); kept until `forget`."""
        device = encoder.token_embedding.weight.device
        if self._table is None or self._table.device != device:
            tokens = self.tokenizer(self._sentences(self.names)).to(device)
            with torch.autocast(device.type, enabled=False):  # the table outlives the precision it was asked for in
                rows = torch.cat([encoder(part, self.tokenizer.end_id) for part in tokens.split(batch_size)])
            mean = rows.view(len(self.names), len(self.templates), -1).mean(1)
            self._table = mean / mean.norm(dim=-1, keepdim=True)
        return self._table

    def forget(self) -> None:
        """Drop the kept table: the encoder's weights have changed, or will."""
        self._table = None

    def _sentences(self, names: Sequence[str]) -> list[str]:
        """Return one sentence per name and template, name by name."""
        alone = set() if self.background_templates else {BACKGROUND}
        return [(BARE[0] if name in alone else text).format(name) for name in names for text in self.templates]

    def _tokens_for_training(self) -> Tensor:
        if self._training_tokens is None:
            names = [name.replace(",", "").replace("+", " ") for name in self.names]
            tokens = self.tokenizer(self._sentences(names))
            self._training_tokens = tokens.view(len(names), len(self.templates), -1)
        return self._training_tokens


def strip_suffixes(name: str) -> str:
    """Return a COCO class name without "-other", "-merged" and "-stuff"."""
    for suffix in SUFFIXES:
        name = name.replace(suffix, "")
    return name
