"""The generation loop: batched over regions, cached, stopping early. It serves every decoder.

Ties are broken as the device's ``max`` and ``topk`` break them: the same for the same input on the same device, not
between devices.

Shapes: R regions, K beams, V vocabulary, D width of the decoder's states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FORBIDDEN = -10000.0  # the published search overwrites a forbidden word's logit with this
Repetition = Literal["words", "always", "never"]
Place = tuple[int, int]  # position of an image in its batch, and of one of its regions
WatchRegions = Callable[[list[tuple[Place, str]]], None]  # is shown the text so far of every region
Watch = Callable[[Tensor], None]  # is shown the best texts so far, int64 (R, T), see `search_texts`


class StepDecoder(Protocol):
    """What `generate` needs of a decoder; `Recomputed` makes one of any that reads whole sequences.

    Attributes:
        dim: D.
    """

    dim: int

    def prefill(self, region_tokens: Tensor, max_words: int) -> Any:
        """Return a cache with ``select(rows)``."""

    def read(self, words: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Return the states of the words read, (R, D), and the next words' logits, float32 (R, V)."""


class SequenceDecoder(Protocol):
    """What `Recomputed` needs of a decoder; ``dim`` is D."""

    dim: int

    def __call__(self, region_tokens: Tensor, words: Tensor) -> Tensor:
        """(R, M, region_dim), int64 (R, T) -> states (R, T, D)."""

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""


@dataclass(slots=True)
class _Prefix:
    """Everything read so far."""

    region_tokens: Tensor
    words: Tensor

    def select(self, rows: Tensor) -> None:
        self.region_tokens, self.words = self.region_tokens[rows], self.words[rows]


class Recomputed:
    """Reads the whole sequence anew for every word, and scores the vocabulary at every position, as the published code.

    The result is that of the decoder's own cache, for many times the work: a reference to measure and to test against.
    """

    def __init__(self, decoder: SequenceDecoder) -> None:
        self.decoder, self.dim = decoder, decoder.dim

    def prefill(self, region_tokens: Tensor, max_words: int) -> _Prefix:
        """See `StepDecoder`."""
        words = torch.zeros(len(region_tokens), 0, dtype=torch.long, device=region_tokens.device)
        return _Prefix(region_tokens, words)

    def read(self, words: Tensor, cache: _Prefix) -> tuple[Tensor, Tensor]:
        """See `StepDecoder`."""
        cache.words = torch.cat((cache.words, words[:, None]), 1)
        states = self.decoder(cache.region_tokens, cache.words)
        return states[:, -1], self.decoder.logits(states)[:, -1].float()


@dataclass(slots=True)
class GeneratedText:
    """Attributes:
    tokens: int64 (R, T), start token first, ``end_id`` after the end.
    scores: float32 (R,), summed log-probability over the number of generated tokens, or what the search divides by.
    states: (R, T, D), the decoder's state where it read each token, zero for ``end_id`` after the start, which is
        never read; None unless asked for.
    """

    tokens: Tensor
    scores: Tensor
    states: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """How one text per region is looked for.

    Attributes:
        start_id, end_id: first and last token of every text.
        max_length: tokens, start token included.
        beam_size: K; 1 is greedy search.
        rollouts: GRiT's "beam" search, which continues the K best first words greedily; else a true beam search.
        length_penalty: with beams, T5X's search: finished texts compete by log-probability / ((5 + n) / 6) ** penalty,
            n tokens after the start; else beams compete by summed log-probability.
        forbid_repeat: immediate repetition of a token is forbidden: "words" as in GRiT, which lets the first word
            repeat the start, "always" as in PixelLLM's greedy search, or "never".
        count_end: the end counts among the tokens that a score is divided by; PixelLLM counts words alone.
        keep_states: return the states of the tokens read, one further reading for texts cut off at ``max_length``.
    """

    start_id: int
    end_id: int
    max_length: int = 40
    beam_size: int = 1
    rollouts: bool = False
    length_penalty: float | None = None
    forbid_repeat: Repetition = "words"
    count_end: bool = True
    keep_states: bool = False


def generate(decoder: StepDecoder, region_tokens: Tensor, **options: Any) -> GeneratedText:
    """Write one text per region.

    Args:
        decoder: see `StepDecoder`.
        region_tokens: (R, M, D).
        options: the fields of `Search`; ``start_id`` and ``end_id`` have no default.

    Returns:
        `GeneratedText`; with beams, the text with the largest score of the search.
    """
    return search_texts(decoder, region_tokens, Search(**options))


@torch.no_grad()
def search_texts(
    decoder: StepDecoder, region_tokens: Tensor, search: Search, watch: Watch | None = None
) -> GeneratedText:
    """`generate` with its options in one value.

    Args:
        decoder, region_tokens: as there.
        search: the options.
        watch: called after every step with the texts so far, start first, ``end_id`` after the end; with beams the one
            of each region that would be taken if the search ended here, so that words may change until it does. The
            last call sees the result. What it raises ends the search.
    """
    if not len(region_tokens):
        return _nothing(region_tokens, decoder.dim, search)
    cache = decoder.prefill(region_tokens, search.max_length)
    start = torch.full((len(region_tokens),), search.start_id, dtype=torch.long, device=region_tokens.device)
    reader = _Reader(decoder, cache, search)
    if search.beam_size == 1:
        return _greedy(reader, start, search, watch)
    if search.length_penalty is not None and not search.rollouts:
        return _penalised_beam(reader, start, search, watch)
    return _beam(reader, start, search, watch)


def watch_words(
    watch: WatchRegions | None, places: Sequence[Sequence[Place]], decode: Callable[[list[int]], str]
) -> Watch | None:
    """Return what shows ``watch`` the words of all regions after every step of a search; None: nobody looks.

    Args:
        watch: who looks.
        places: of the regions that each text of the search is about.
        decode: token ids, the end among them, to text.
    """
    if watch is None:
        return None

    def look(tokens: Tensor) -> None:
        texts = zip(places, tokens.tolist(), strict=True)
        watch([(place, text) for own, row in texts for text in [decode(row[1:])] for place in own])

    return look


class _Reader:
    """A decoder, its cache and the states of what it read."""

    def __init__(self, decoder: StepDecoder, cache: Any, search: Search) -> None:
        self.decoder, self.cache, self.search = decoder, cache, search
        self.num_read = 0
        self.last: Tensor | None = None

    def next_log_probs(self, words: Tensor) -> Tensor:
        """Read one more word per row and return log-probabilities of the next, float32 (rows, V)."""
        self.last, logits = self.decoder.read(words, self.cache)
        self.num_read += 1
        repetition = self.search.forbid_repeat
        if repetition == "always" or (repetition == "words" and self.num_read > 1):
            logits = logits.scatter(1, words[:, None], FORBIDDEN)
        return logits.log_softmax(-1)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the cache, in this order."""
        self.cache.select(rows)


def _nothing(region_tokens: Tensor, dim: int, search: Search) -> GeneratedText:
    empty = torch.full((0, 1), search.start_id, dtype=torch.long, device=region_tokens.device)
    states = region_tokens.new_zeros(0, 1, dim) if search.keep_states else None
    return GeneratedText(empty, region_tokens.new_zeros(0, dtype=torch.float32), states)


def _greedy(reader: _Reader, start: Tensor, search: Search, watch: Watch | None) -> GeneratedText:
    num_regions, device, end_id = len(start), start.device, search.end_id
    tokens = torch.full((num_regions, search.max_length), end_id, dtype=torch.long, device=device)
    tokens[:, 0] = start
    total = torch.zeros(num_regions, device=device)
    rows = torch.arange(num_regions, device=device)  # regions still being written
    words, kept, position = start, None, 0
    for position in range(1, search.max_length):
        log_probs = reader.next_log_probs(words)
        kept = _keep(kept, reader.last, rows, position - 1, tokens.shape) if search.keep_states else None
        best, words = log_probs.max(-1)
        tokens[rows, position] = words
        total[rows] += best
        if watch is not None:
            watch(tokens[:, : position + 1])
        alive = (words != end_id).nonzero()[:, 0]
        if len(alive) < len(rows):
            rows, words = rows[alive], words[alive]
            if not len(alive):
                break
            reader.select(alive)
    if search.keep_states and len(rows):  # cut off: the last word was written, not read
        reader.next_log_probs(words)
        kept = _keep(kept, reader.last, rows, position, tokens.shape)
    tokens = tokens[:, : position + 1]
    return GeneratedText(tokens, total / _lengths(tokens, search), None if kept is None else kept[:, : position + 1])


def _keep(kept: Tensor | None, states: Tensor, rows: Tensor, position: int, shape: torch.Size) -> Tensor:
    """Write states (rows, D) into those of all texts, (R, T, D)."""
    kept = states.new_zeros(*shape, states.shape[-1]) if kept is None else kept
    kept[rows, position] = states
    return kept


def _lengths(tokens: Tensor, search: Search) -> Tensor:
    """Return what each score is divided by, int64 (R,): words, and the end where it counts; at least 1."""
    written = tokens[:, 1:]
    words = (written != search.end_id).sum(1)
    return (words + (written == search.end_id).any(1) if search.count_end else words).clamp(min=1)


def _beam(reader: _Reader, start: Tensor, search: Search, watch: Watch | None) -> GeneratedText:
    num_regions, beams, end_id = len(start), search.beam_size, search.end_id
    first_row = torch.arange(num_regions, device=start.device)[:, None]
    total, first = reader.next_log_probs(start).topk(beams, -1)  # R K
    states = reader.last[:, None, None].expand(-1, beams, -1, -1) if search.keep_states else None  # R K 1 D
    reader.select(first_row.expand(-1, beams).flatten())
    tokens = torch.stack((start[:, None].expand_as(first), first), -1)  # R K 2
    if watch is not None:
        watch(tokens[first_row[:, 0], total.argmax(1)])
    while tokens.shape[-1] < search.max_length and not bool((tokens[..., -1] == end_id).all()):
        words = tokens[..., -1].flatten()
        log_probs = reader.next_log_probs(words)
        if states is not None:
            states = _append(states, reader.last, words != end_id)
        finished = words == end_id
        log_probs[finished] = float("-inf")
        log_probs[finished, end_id] = 0.0
        total, origin, chosen = _extend(total, log_probs.view(num_regions, beams, -1), search.rollouts)
        reader.select((origin + first_row * beams).flatten())
        tokens = torch.cat((tokens[first_row, origin], chosen[..., None]), -1)
        if watch is not None:
            watch(tokens[first_row[:, 0], total.argmax(1)])
        states = None if states is None else states[first_row, origin]
    if states is not None:
        words = tokens[..., -1].flatten()
        reader.next_log_probs(words)
        states = _append(states, reader.last, words != end_id)
    best = total.argmax(1)
    rows = first_row[:, 0]
    tokens, total = tokens[rows, best], total[rows, best]
    return GeneratedText(tokens, total / _lengths(tokens, search), None if states is None else states[rows, best])


@dataclass(slots=True)
class _Texts:
    """K texts per region: tokens (R, K, T), scores (R, K), states (R, K, T, D) or None."""

    tokens: Tensor
    scores: Tensor
    states: Tensor | None

    def pick(self, index: Tensor, scores: Tensor) -> _Texts:
        """Return texts ``index``, int64 (R, K'), of each region with other scores."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return _Texts(self.tokens[rows, index], scores, None if self.states is None else self.states[rows, index])

    def joined(self, other: _Texts, end_id: int) -> _Texts:
        """Return these and those, the shorter ones padded."""
        room = other.tokens.shape[-1] - self.tokens.shape[-1]
        tokens = torch.cat((F.pad(self.tokens, (0, room), value=end_id), other.tokens), 1)
        scores = torch.cat((self.scores, other.scores), 1)
        if self.states is None or other.states is None:
            return _Texts(tokens, scores, None)
        return _Texts(tokens, scores, torch.cat((F.pad(self.states, (0, 0, 0, room)), other.states), 1))


def _penalised_beam(reader: _Reader, start: Tensor, search: Search, watch: Watch | None) -> GeneratedText:
    """T5X's beam search: K texts go on, the K best finished ones wait, by log-probability over a length penalty.

    Every step looks at 2 K continuations, so that K go on even if each beam ends. It stops where no text that goes on
    can still beat a finished one. A region with no finished text gets its best unfinished one and that one's plain
    log-probability.
    """
    num_regions, beams, end_id, none = len(start), search.beam_size, search.end_id, float("-inf")
    first_row = torch.arange(num_regions, device=start.device)[:, None]
    reader.select(first_row.expand(-1, beams).flatten())
    scores = torch.full((num_regions, beams), none, device=start.device)
    live = _Texts(start[:, None, None].expand(-1, beams, -1), scores.index_fill(1, start.new_zeros(1), 0.0), None)
    done = _Texts(torch.full_like(live.tokens, end_id), scores, None)
    for position in range(1, search.max_length):
        log_probs = reader.next_log_probs(live.tokens[..., -1].flatten()).view(num_regions, beams, -1)
        _remember(live, done, reader, search)
        total, flat = (live.scores[..., None] + log_probs).flatten(1).topk(2 * beams, -1)
        origin, chosen = flat // log_probs.shape[-1], flat % log_probs.shape[-1]
        grown = live.pick(origin, total)
        grown.tokens = torch.cat((grown.tokens, chosen[..., None]), -1)
        ends = chosen == end_id
        finished = _Texts(grown.tokens, (total / _penalty(position, search)).masked_fill(~ends, none), None)
        if grown.states is not None:
            finished.states = F.pad(grown.states, (0, 0, 0, 1))  # the end is never read
        pool = done.joined(finished, end_id)
        done = pool.pick(*reversed(pool.scores.topk(beams, -1)))
        scores, kept = total.masked_fill(ends, none).topk(beams, -1)
        live = grown.pick(kept, scores)
        if watch is not None:
            watch(_leading(live, done))
        reader.select((origin.gather(1, kept) + first_row * beams).flatten())
        bound = scores[:, 0] / _penalty(search.max_length, search)
        if bool((bound <= done.scores[:, -1]).all()):
            break
    return _best(reader, live, done, search)


def _leading(live: _Texts, done: _Texts) -> Tensor:
    """Return what `_best` would: the best finished text of each region, or the best unfinished one."""
    unfinished = done.scores[:, :1] == float("-inf")
    return torch.where(unfinished, live.tokens[:, 0], done.tokens[:, 0])


def _penalty(length: int, search: Search) -> float:
    assert search.length_penalty is not None
    return ((5 + length) / 6) ** search.length_penalty


def _remember(live: _Texts, done: _Texts, reader: _Reader, search: Search) -> None:
    """Append the states of the words just read to the texts that go on."""
    if not search.keep_states:
        return
    last = reader.last.view(*live.tokens.shape[:2], 1, -1)
    live.states = last if live.states is None else torch.cat((live.states, last), 2)
    if done.states is None:
        done.states = torch.zeros_like(last)


def _best(reader: _Reader, live: _Texts, done: _Texts, search: Search) -> GeneratedText:
    """Return the best finished text of each region, or the best unfinished one."""
    unfinished = done.scores[:, 0] == float("-inf")
    if search.keep_states and live.tokens.shape[-1] > 1 and bool(unfinished.any()):
        reader.next_log_probs(live.tokens[..., -1].flatten())
        _remember(live, done, reader, search)
    elif live.states is not None:
        live.states = F.pad(live.states, (0, 0, 0, 1))
    pool = done.joined(live, search.end_id)
    index = unfinished.long()[:, None] * search.beam_size
    best = pool.pick(index, pool.scores.gather(1, index))
    return GeneratedText(best.tokens[:, 0], best.scores[:, 0], None if best.states is None else best.states[:, 0])


def _append(states: Tensor, last: Tensor, read: Tensor) -> Tensor:
    """Append states (R K, D), zero where not ``read``, bool (R K,), to those so far, (R, K, T, D)."""
    last = last * read[:, None]
    return torch.cat((states, last.view(*states.shape[:2], 1, -1)), 2)


def _extend(total: Tensor, log_probs: Tensor, rollouts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return new scores, the beam each text continues and its next word, all (R, K)."""
    num_regions, beams, vocab = log_probs.shape
    if rollouts:
        best, chosen = log_probs.max(-1)
        return total + best, torch.arange(beams, device=total.device).expand(num_regions, -1), chosen
    total, flat = (total[..., None] + log_probs).flatten(1).topk(beams, -1)
    return total, flat // vocab, flat % vocab
