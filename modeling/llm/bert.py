"""The BERT-style decoder of GIT, GRiT and PixelLLM as a language model.

Sequence: visual tokens, context, text. Visual tokens and context see one another; text sees both and the text before
it. Positions of the context and of the text start at 0 each; visual tokens have none.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..text_decoders.bert_captioner import BertCaptioner, CaptionCache


class BertLanguageModel(nn.Module):
    """Post-norm BERT layers with an output of their own (`locap.modeling.llm.adapter.LanguageModel`).

    The norms' epsilons are those of the published PixelLLM: 1e-5 behind the projection of the visual tokens and behind
    the attentions, 1e-12 behind the feed-forward layers, 1e-8 behind the embedding.

    Args:
        visual_dim: width of the visual tokens given.
        vocab_size: V.
        dim: D.
        num_layers, num_heads, ffn_dim, dropout: of the layers.
        max_positions: the longest text or context.
        pad_id: padding of the context.
        init_std: standard deviation of the weights' start.
        checkpoint: recompute the layers in the backward pass.
    """

    def __init__(
        self,
        *,
        visual_dim: int,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        max_positions: int,
        pad_id: int,
        init_std: float = 0.02,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.vocab_size, self.pad_id = dim, vocab_size, pad_id
        self.decoder = BertCaptioner(
            region_dim=visual_dim,
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            dropout=dropout,
            max_positions=max_positions,
            init_std=init_std,
            tied=False,
            attention_eps=1e-5,
            checkpoint=checkpoint,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """See `LanguageModel.embed`; the first token stands at position 0."""
        return self.decoder.embed(tokens)

    def states(self, visual: Tensor, context: Tensor | None, text: Tensor) -> Tensor:
        """See `LanguageModel.states`."""
        return self.decoder(visual, text, context, self._spoken(context))

    def logits(self, states: Tensor) -> Tensor:
        """See `LanguageModel.logits`."""
        return self.decoder.logits(states)

    def start(self, visual: Tensor, context: Tensor | None, max_words: int) -> CaptionCache:
        """See `LanguageModel.start`."""
        return self.decoder.prefill(visual, max_words, context, self._spoken(context))

    def step(self, tokens: Tensor, cache: CaptionCache) -> Tensor:
        """See `LanguageModel.step`."""
        return self.decoder.advance(tokens, cache)

    def _spoken(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else context != self.pad_id
