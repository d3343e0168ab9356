"""BERT-style captioner (GIT, GRiT, Pix2Cap, PixelLLM): region tokens and words in one sequence of bidirectional layers.

An instruction, the context, may stand between the region tokens and the words. The mask lets words see all of both and
the words before them; region tokens and context see one another only, so their keys and values never change and a cache
is exact. Nobody sees the padding of a context.

Shapes: R regions, M tokens per region, C context words, T words, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import attend
from ..layers.recompute import recompute

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class BertAttention(nn.Module):
    """BERT self-attention with residual and post-norm; keys and values may be extended from a cache."""

    def __init__(self, dim: int, num_heads: int, dropout: float, eps: float = 1e-12) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.dense = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, N, D) -> two of (R, heads, N, D / heads)."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
        """x: (R, N, D); keys, values: (R, heads, N', D / heads); allowed: bool (N, N') or (R, 1, N or 1, N')."""
        dropout = self.dropout.p if self.training else 0.0
        out = attend(self._heads(self.query(x)), keys, values, allowed=allowed, dropout=dropout)
        return self.norm(x + self.dropout(self.dense(out.transpose(1, 2).flatten(2))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class BertLayer(nn.Module):
    """Attention, then Linear - GELU - Linear with residual and post-norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, attention_eps: float = 1e-12) -> None:
        super().__init__()
        self.attention = BertAttention(dim, num_heads, dropout, attention_eps)
        self.intermediate = nn.Linear(dim, ffn_dim)
        self.output = nn.Linear(ffn_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, allowed: Tensor | None, store: Store | None = None) -> Tensor:
        """(R, N, D) -> (R, N, D).

        Args:
            x: the tokens.
            allowed: see `BertAttention.forward`.
            store: is given the tokens' keys and values, and returns those to attend to; None: their own.
        """
        keys, values = self.attention.keys_values(x)
        if store is not None:
            keys, values = store(keys, values)
        x = self.attention(x, keys, values, allowed)
        return self.norm(x + self.dropout(self.output(F.gelu(self.intermediate(x)))))


class CaptionCache:
    """Keys and values of the tokens so far, one pair per layer, preallocated (R, heads, M + C + T, D / heads).

    Args:
        pairs: keys and values of region tokens and context, per layer.
        length: T, words that will be read.
        valid: bool (R, M + C), False at padding; None: there is none.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], length: int, valid: Tensor | None = None) -> None:
        self.length = pairs[0][0].shape[2]
        self.keys = [F.pad(keys, (0, 0, 0, length)) for keys, _ in pairs]
        self.values = [F.pad(values, (0, 0, 0, length)) for _, values in pairs]
        self.num_region_tokens = self.length
        self.valid = None if valid is None else F.pad(valid, (0, length), value=True)[:, None, None]  # R 1 1 M+C+T

    def allowed(self) -> Tensor | None:
        """Return what the next word, stored already, may attend to: bool (R, 1, 1, tokens so far)."""
        return None if self.valid is None else self.valid[..., : self.length + 1]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one token's keys and values and return those of all tokens so far."""
        end = self.length + 1
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order (finished rows leave, beams are reordered)."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.valid = None if self.valid is None else self.valid[rows]


class BertCaptioner(nn.Module):
    """Writes a sentence about a region.

    Args:
        region_dim: width of the region tokens given.
        vocab_size: V.
        dim: D.
        num_layers, num_heads, ffn_dim, dropout: of the layers.
        max_positions: rows of the position table.
        init_std: standard deviation of the weights' start; BERT's 0.02 belongs to a width of 768.
        tied: the output layer shares the word table's weights.
        attention_eps: of the norms behind the attentions.
        checkpoint: recompute the layers in the backward pass.
    """

    def __init__(
        self,
        *,
        region_dim: int,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        max_positions: int = 1024,
        init_std: float = 0.02,
        tied: bool = True,
        attention_eps: float = 1e-12,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.checkpoint = dim, checkpoint
        self.region_proj = nn.Sequential(nn.Linear(region_dim, dim), nn.LayerNorm(dim))
        self.words = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)
        self.embedding_norm = nn.LayerNorm(dim, eps=1e-8)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            BertLayer(dim, num_heads, ffn_dim, dropout, attention_eps) for _ in range(num_layers)
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=init_std)
        self.output = nn.Linear(dim, vocab_size)
        if tied:
            self.output.weight = self.words.weight
        else:
            nn.init.normal_(self.output.weight, std=init_std)

    def forward(
        self, region_tokens: Tensor, words: Tensor, context: Tensor | None = None, spoken: Tensor | None = None
    ) -> Tensor:
        """Return the states from which each next word is predicted.

        Args:
            region_tokens: (R, M, region_dim).
            words: int64 (R, T).
            context: int64 (R, C), an instruction read before the words.
            spoken: bool (R, C), False at the padding of the context; None: there is none.

        Returns:
            (R, T, D); `logits` maps any of them to the vocabulary.
        """
        memory, valid = self._memory(region_tokens, context, spoken)
        x = torch.cat((memory, self.embed(words)), 1)
        allowed = _sequence_mask(memory.shape[1], words.shape[1], x.device)
        if valid is not None:
            allowed = allowed & F.pad(valid, (0, words.shape[1]), value=True)[:, None, None]  # R 1 N N
        for layer in self.layers:
            x = recompute(layer, x, allowed, enabled=self.checkpoint)
        return x[:, memory.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.output(states)

    def prefill(
        self, region_tokens: Tensor, max_words: int, context: Tensor | None = None, spoken: Tensor | None = None
    ) -> CaptionCache:
        """Encode region tokens and context once; arguments as in `forward`."""
        x, valid = self._memory(region_tokens, context, spoken)
        allowed = None if valid is None else valid[:, None, None]
        pairs: list[tuple[Tensor, Tensor]] = []

        def keep(*pair: Tensor) -> tuple[Tensor, Tensor]:
            pairs.append(pair)
            return pair

        for layer in self.layers:
            x = layer(x, allowed, keep)
        return CaptionCache(pairs, max_words, valid)

    def advance(self, words: Tensor, cache: CaptionCache) -> Tensor:
        """Read one more word per region, int64 (R,), and return its states, (R, D)."""
        x = self.embed(words[:, None], cache.length - cache.num_region_tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, cache.allowed(), partial(cache.append, index))
        cache.length += 1
        return x[:, 0]

    def read(self, words: Tensor, cache: CaptionCache) -> tuple[Tensor, Tensor]:
        """Read one more word per region and return its states and the next one's logits, float32 (R, V)."""
        states = self.advance(words, cache)
        return states, self.logits(states).float()

    def step(self, words: Tensor, cache: CaptionCache) -> Tensor:
        """Read one more word per region, int64 (R,), and return the next one's logits, float32 (R, V)."""
        return self.read(words, cache)[1]

    def embed(self, words: Tensor, start: int = 0) -> Tensor:
        """Return words as they enter the layers, int64 (R, T) -> (R, T, D); the first stands at position ``start``."""
        positions = self.positions.weight[start : start + words.shape[1]]
        return self.dropout(self.embedding_norm(self.words(words) + positions))

    def _memory(
        self, region_tokens: Tensor, context: Tensor | None, spoken: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what words may always see, (R, M + C, D), and where it is no padding, bool (R, M + C)."""
        memory = self.region_proj(region_tokens)
        if context is None or not context.shape[1]:
            return memory, None
        memory = torch.cat((memory, self.embed(context)), 1)
        return memory, None if spoken is None else F.pad(spoken, (region_tokens.shape[1], 0), value=True)


def _sequence_mask(num_region_tokens: int, num_words: int, device: torch.device) -> Tensor:
    """Return bool (M + T, M + T), True = may attend."""
    total = num_region_tokens + num_words
    allowed = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    allowed[:num_region_tokens, :num_region_tokens] = True
    return allowed
