"""T5 as a language model: visual tokens and context go into the encoder, the text into the decoder.

T5's relative positions run over visual tokens and context as one sequence. Two things differ from the published T5X
code while training: transformers drops out visual tokens like words, and each element alone where T5X drops whole
channels.
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
class T5Cache:
    """What the encoder made, and the decoder's keys and values."""

    memory: Tensor
    valid: Tensor | None
    pairs: Any

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.memory = self.memory[rows]
        self.valid = None if self.valid is None else self.valid[rows]
        self.pairs.self_attention_cache.batch_select_indices(rows)
        self.pairs.cross_attention_cache.batch_select_indices(rows)


class T5LanguageModel(TunedLanguageModel):
    """A ``T5ForConditionalGeneration`` behind `locap.modeling.llm.adapter.LanguageModel`.

    The model is frozen but for LoRA; the projection of the visual tokens learns.

    Args:
        model: of transformers. Do not build one for weights of FLAN-T5 from a bare config: it would tie the output to
            the word table and scale the states; `T5LanguageModel.from_pretrained` does neither.
        visual_dim: width of the visual tokens given.
        lora: low-rank adaptation; None: none.
        init_std: standard deviation of the projection's start.
        checkpoint: recompute the layers in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        visual_dim: int,
        lora: Lora | None,
        init_std: float = 0.02,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(
            model,
            dim=model.config.d_model,
            vocab_size=model.config.vocab_size,
            pad_id=model.config.pad_token_id,
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
        lora: Lora | None,
        dtype: torch.dtype = torch.float32,
        checkpoint: bool = False,
    ) -> T5LanguageModel:
        """Load weights by hub name (``google/flan-t5-xl``) or from a folder; raises as `load_pretrained`."""
        from transformers import T5ForConditionalGeneration

        model = load_pretrained(T5ForConditionalGeneration, name_or_path, dtype=dtype)
        return cls(model, visual_dim=visual_dim, lora=lora, checkpoint=checkpoint)

    def embed(self, tokens: Tensor) -> Tensor:
        """See `LanguageModel.embed`."""
        return self.model.shared(tokens)

    def read_texts(self, visual: Tensor, context: Tensor | None, text: Tensor) -> Tensor:
        """See `TunedLanguageModel.read_texts`."""
        memory, valid = self._encode(visual, context)
        return self._decode(text, memory, valid)

    def logits(self, states: Tensor) -> Tensor:
        """See `LanguageModel.logits`; drops out states while training."""
        states = self.model.decoder.dropout(states)
        if self.model.config.scale_decoder_outputs:  # the first T5, whose output is its word table
            states = states * self.dim**-0.5
        return self.model.lm_head(states)

    def start(self, visual: Tensor, context: Tensor | None, max_words: int) -> T5Cache:
        """See `LanguageModel.start`; the cache grows."""
        from transformers import DynamicCache, EncoderDecoderCache

        memory, valid = self._encode(visual, context)
        return T5Cache(memory, valid, EncoderDecoderCache(DynamicCache(), DynamicCache()))

    def step(self, tokens: Tensor, cache: T5Cache) -> Tensor:
        """See `LanguageModel.step`."""
        return self._decode(tokens[:, None], cache.memory, cache.valid, cache.pairs)[:, 0]

    def _encode(self, visual: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the encoder's output, (R, M + C, D), and where it is no padding, bool (R, M + C)."""
        given, valid = self.visual_proj(visual), None
        if context is not None and context.shape[1]:
            given = torch.cat((given, self.embed(context).to(given)), 1)
            valid = F.pad(context != self.pad_id, (visual.shape[1], 0), value=True)
        given = given.to(self.model.dtype)
        return self.model.encoder(inputs_embeds=given, attention_mask=valid).last_hidden_state, valid

    def _decode(self, text: Tensor, memory: Tensor, valid: Tensor | None, pairs: Any = None) -> Tensor:
        """Return the output of the final norm: the decoder itself returns a dropped-out copy."""
        seen: list[Tensor] = []
        hook = self.model.decoder.final_layer_norm.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            self.model.decoder(
                input_ids=text,
                encoder_hidden_states=memory,
                encoder_attention_mask=valid,
                past_key_values=pairs,
                use_cache=pairs is not None,
            )
        finally:
            hook.remove()
        return seen[0]
