"""Any causal language model: visual tokens, then context, then text, in one sequence.

Rows are padded where they are padded, between context and text: nobody sees the padding, and positions count what is
seen, so that a row's states are those of the row alone without padding. Nothing is moved to the left or to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import Lora
from .pretrained import load_pretrained
from .tuned import TunedLanguageModel


@dataclass(slots=True)
class CausalCache:
    """Keys and values, and which of them are no padding: bool (R, M + C + T so far)."""

    pairs: Any
    seen: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.seen = self.seen[rows]
        self.pairs.batch_select_indices(rows)


class CausalLanguageModel(TunedLanguageModel):
    """A causal model of transformers (LLaMA and others) behind `locap.modeling.llm.adapter.LanguageModel`.

    The model is frozen but for LoRA; the projection of the visual tokens learns. It must take positions and full
    attention: models with sliding windows or recurrent layers count padding as text.

    Args:
        model: ``AutoModelForCausalLM`` or one of its classes.
        visual_dim: width of the visual tokens given.
        pad_id: padding of the context.
        lora: low-rank adaptation; None: none.
        init_std: standard deviation of the projection's start.
        checkpoint: recompute the layers in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        visual_dim: int,
        pad_id: int,
        lora: Lora | None,
        init_std: float = 0.02,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(
            model,
            dim=model.config.hidden_size,
            vocab_size=model.config.vocab_size,
            pad_id=pad_id,
            visual_dim=visual_dim,
            lora=lora,
            init_std=init_std,
            checkpoint=checkpoint,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        visual_dim: int,
        pad_id: int,
        lora: Lora | None,
        dtype: torch.dtype = torch.float32,
        checkpoint: bool = False,
    ) -> CausalLanguageModel:
        """Load weights by hub name or from a folder; raises as `load_pretrained`."""
        from transformers import AutoModelForCausalLM

        model = load_pretrained(AutoModelForCausalLM, name_or_path, dtype=dtype)
        return cls(model, visual_dim=visual_dim, pad_id=pad_id, lora=lora, checkpoint=checkpoint)

    def embed(self, tokens: Tensor) -> Tensor:
        """See `LanguageModel.embed`."""
        return self.model.get_input_embeddings()(tokens)

    def read_texts(self, visual: Tensor, context: Tensor | None, text: Tensor) -> Tensor:
        """See `TunedLanguageModel.read_texts`."""
        given, seen = self._given(visual, context)
        given = torch.cat((given, self.embed(text).to(given)), 1)
        return self._read(given, F.pad(seen, (0, text.shape[1]), value=True), None)[:, -text.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        """See `LanguageModel.logits`."""
        return self.model.get_output_embeddings()(states)

    def start(self, visual: Tensor, context: Tensor | None, max_words: int) -> CausalCache:
        """See `LanguageModel.start`; the cache grows."""
        from transformers import DynamicCache

        given, seen = self._given(visual, context)
        pairs = DynamicCache()
        self._read(given, seen, pairs)
        return CausalCache(pairs, seen)

    def step(self, tokens: Tensor, cache: CausalCache) -> Tensor:
        """See `LanguageModel.step`."""
        cache.seen = F.pad(cache.seen, (0, 1), value=True)
        return self._read(self.embed(tokens[:, None]), cache.seen, cache.pairs)[:, 0]

    def _given(self, visual: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what comes before the text, (R, M + C, D), and where it is no padding, bool (R, M + C)."""
        given = self.visual_proj(visual)
        seen = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        if context is not None and context.shape[1]:
            given = torch.cat((given, self.embed(context).to(given)), 1)
            seen = torch.cat((seen, context != self.pad_id), 1)
        return given.to(self.model.dtype), seen

    def _read(self, given: Tensor, seen: Tensor, pairs: Any) -> Tensor:
        """Read N more tokens, (R, N, D), where ``seen``, bool (R, all so far), is no padding, at its own positions."""
        positions = (seen.long().cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :]
        return self.model.base_model(
            inputs_embeds=given,
            attention_mask=seen.long(),
            position_ids=positions,
            past_key_values=pairs,
            use_cache=pairs is not None,
        ).last_hidden_state
