"""Sentence embeddings by mean pooling, as sentence-transformers computes them for all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UsageError
from ...utils.hub import resolve
from ...utils.untrusted import read_json, shown

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256  # of all-MiniLM-L6-v2
BATCH = 128


class SentenceEncoder:
    """A BERT-like encoder: mean of its last states over the tokens of a text, to unit length.

    Args:
        name_or_path: a folder in transformers' layout with safetensors weights, or a hub name.

    Raises:
        UsageError: the folder is missing, holds no such model, or its sentences are not pooled by their mean.
        MissingDependencyError: the hub name is neither cached nor reachable.
    """

    def __init__(self, name_or_path: str | Path = MINILM) -> None:
        folder = resolve(name_or_path, what="sentence encoder")
        _require_mean_pooling(folder)
        self._tokenizer, self._model = _load(folder)
        stated = _json_value(folder / "sentence_bert_config.json", "max_seq_length", MAX_TOKENS)
        self._max_tokens = min(stated, getattr(self._model.config, "max_position_embeddings", stated))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float64 [N, D], rows of length 1; longer texts lose their end."""
        import torch

        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        rows = [np.zeros((0, self._model.config.hidden_size))]
        for start in range(0, len(clean), BATCH):
            batch = self._tokenizer(
                clean[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state  # (B, L, D)
            weights = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).double().numpy())
        return np.concatenate(rows)


def _load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except Exception as err:  # the readers of vocabularies and weights raise what they like
        raise UsageError(
            f"The sentence encoder cannot be read: {str(err).splitlines()[0] if str(err) else type(err).__name__}",
            where=shown(folder),
            allowed="config.json, model.safetensors and a tokenizer",
        ) from None
    return tokenizer, model.eval()


def _require_mean_pooling(folder: Path) -> None:
    if not _json_value(folder / "1_Pooling" / "config.json", "pooling_mode_mean_tokens", True):
        raise UsageError(
            "The sentence encoder does not pool by the mean of its tokens.",
            where=shown(folder / "1_Pooling" / "config.json"),
            allowed="pooling_mode_mean_tokens true, as in all-MiniLM-L6-v2",
        )


def _json_value(path: Path, key: str, default: Any) -> Any:
    """Return a value of a JSON object in a file that may be absent."""
    body = read_json(path) if path.is_file() else {}
    value = body.get(key, default) if isinstance(body, dict) else default
    return value if isinstance(value, type(default)) else default
