"""What language models of transformers have in common here."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from .lora import Lora, add_lora, freeze_all_but_lora


class TunedLanguageModel(nn.Module, ABC):
    """A model of transformers behind a learnt projection of visual tokens; it stays as it is, but for LoRA.

    Args:
        model: of transformers.
        dim, vocab_size, pad_id: the model's width, words and padding.
        visual_dim: width of the visual tokens given.
        lora: None freezes the whole model.
        init_std: standard deviation of the projection's start.
        checkpoint: recompute the model's layers in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dim: int,
        vocab_size: int,
        pad_id: int,
        visual_dim: int,
        lora: Lora | None,
        init_std: float,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.dim, self.vocab_size, self.pad_id = dim, vocab_size, pad_id
        end_id = model.config.eos_token_id
        self.end_id = end_id if isinstance(end_id, int) else None  # None: several, or not known
        self.visual_proj = nn.Sequential(nn.Linear(visual_dim, dim), nn.LayerNorm(dim))
        nn.init.normal_(self.visual_proj[0].weight, std=init_std)
        nn.init.zeros_(self.visual_proj[0].bias)
        self.model = model
        freeze_all_but_lora(model)
        if lora is not None:
            add_lora(model, lora)
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @abstractmethod
    def read_texts(self, visual: Tensor, context: Tensor | None, text: Tensor) -> Tensor:
        """Do what `states` says, of at least one text."""

    def states(self, visual: Tensor, context: Tensor | None, text: Tensor) -> Tensor:
        """See `LanguageModel.states`.

        transformers reads no text at all with an error, while a process without texts must still give its gradients,
        which are zero: there a text of zeros is read and dropped.
        """
        if len(text):
            return self.read_texts(visual, context, text)
        given = (
            None if rows is None else F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, 1)) for rows in (visual, context, text)
        )
        return self.read_texts(*given)[:0]
