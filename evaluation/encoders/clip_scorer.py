"""CLIP scores of texts and pieces of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import UsageError
from ...utils.hub import resolve
from ...utils.untrusted import shown
from ..matching.region_geometry import Box


class ClipScorer:
    """A CLIP model of transformers.

    Args:
        name_or_path: a folder with safetensors weights, tokenizer and image processor, or a hub name.

    Raises:
        UsageError: the folder is missing or holds no CLIP model.
        MissingDependencyError: the hub name is neither cached nor reachable.
    """

    def __init__(self, name_or_path: str | Path) -> None:
        import torch
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        folder = resolve(name_or_path, what="CLIP model")
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        except Exception as err:  # the readers of vocabularies and weights raise what they like
            raise UsageError(
                f"The CLIP model cannot be read: {str(err).splitlines()[0] if str(err) else type(err).__name__}",
                where=shown(folder),
                allowed="config.json, model.safetensors, preprocessor_config.json and a tokenizer",
            ) from None
        self._model = model.eval()

    def scores(self, image: np.ndarray, boxes: Sequence[Box], texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each text and each piece of the image.

        Args:
            image: uint8 (height, width, 3).
            boxes: (x, y, width, height) in pixels; rounded outwards, one pixel at least.
            texts: longer ones than the model reads lose their end.

        Returns:
            float64 [texts, boxes].
        """
        import torch

        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        length = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer(clean, padding=True, truncation=True, max_length=length, return_tensors="pt")
        pixels = self._processor(images=[crop(image, box) for box in boxes], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = self._model(pixel_values=pixels, **words)
        sides = (torch.nn.functional.normalize(e, dim=-1).double() for e in (output.text_embeds, output.image_embeds))
        text, piece = sides
        return (text @ piece.T).numpy()


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Return the pixels of a box (x, y, width, height), rounded outwards; the nearest pixel when it is outside."""
    height, width = image.shape[:2]
    x0, y0 = min(max(math.floor(box[0]), 0), width - 1), min(max(math.floor(box[1]), 0), height - 1)
    x1, y1 = min(math.ceil(box[0] + box[2]), width), min(math.ceil(box[1] + box[3]), height)
    return image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
