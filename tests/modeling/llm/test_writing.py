"""All language models: what they may see, and that writing with a cache is reading everything again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from locap.modeling.llm.adapter import write_texts
from locap.modeling.text_decoders.generation import GeneratedText, Search

END = 1
SEARCH = Search(start_id=2, end_id=END, max_length=9, keep_states=True)
SEARCHES = {
    "greedy": SEARCH,
    "greedy, as PixelLLM": replace(SEARCH, forbid_repeat="always", count_end=False),
    "beams": replace(SEARCH, beam_size=3, forbid_repeat="never"),
    "rollouts": replace(SEARCH, beam_size=3, rollouts=True),
    "beams with a penalty": replace(SEARCH, beam_size=3, length_penalty=0.6, forbid_repeat="never"),
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Everything:
    """A cache that remembers what was read, for a model that reads it all again."""

    def __init__(self, visual: Tensor, context: Tensor | None) -> None:
        self.visual, self.context = visual, context
        self.text = torch.zeros(len(visual), 0, dtype=torch.long)

    def select(self, rows: Tensor) -> None:
        self.visual, self.text = self.visual[rows], self.text[rows]
        self.context = None if self.context is None else self.context[rows]


class Uncached:
    """A language model without a cache."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.logits, self.dim = model, model.logits, model.dim

    def start(self, visual: Tensor, context: Tensor | None, max_words: int) -> Everything:
        return Everything(visual, context)

    def step(self, tokens: Tensor, cache: Everything) -> Tensor:
        cache.text = torch.cat((cache.text, tokens[:, None]), 1)
        return self.model.states(cache.visual, cache.context, cache.text)[:, -1]


def likely_end(model: nn.Module, visual: Tensor, context: Tensor | None, search: Search = SEARCH) -> nn.Module:
    """Lower the end's score from far too likely until some texts go on, so that they end early and late."""
    plain, end = model.logits, torch.nn.functional.one_hot(torch.tensor(END), model.vocab_size)
    for bias in torch.linspace(16, -16, 65).tolist():
        model.logits = lambda states, bias=bias: 3 * plain(states) + bias * end
        lengths = (write_texts(model, visual, context, replace(search, keep_states=False)).tokens != END).sum(1)
        if lengths.min() < lengths.max():
            return model
    raise AssertionError("all texts are of one length")


@pytest.mark.parametrize("name", list(SEARCHES))
@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_cached_is_uncached_token_for_token(model, visual, context, name: str, told: bool):
    context = context if told else None
    likely_end(model, visual, context, SEARCHES[name])
    cached = write_texts(model, visual, context, SEARCHES[name])
    anew = write_texts(Uncached(model), visual, context, SEARCHES[name])
    assert torch.equal(cached.tokens, anew.tokens)
    torch.testing.assert_close(cached.scores, anew.scores, **CLOSE)
    torch.testing.assert_close(cached.states, anew.states, **CLOSE)


@pytest.mark.parametrize("name", list(SEARCHES))
def test_collected_states_are_those_of_reading_the_text(model, visual, context, name: str):
    likely_end(model, visual, context, SEARCHES[name])
    found = write_texts(model, visual, context, SEARCHES[name])
    with torch.no_grad():
        read = model.states(visual, context, found.tokens)
    words = found.tokens != END
    assert words.any(1).all()
    assert found.states.shape == read.shape
    torch.testing.assert_close(found.states[words], read[words], **CLOSE)
    assert not found.states[~words].any()
    lengths = words.sum(1)
    assert lengths.min() < lengths.max()  # texts ended early and late


def test_without_states_the_same_words(model, visual, context):
    for search in SEARCHES.values():
        with_states = write_texts(model, visual, context, search)
        without = write_texts(model, visual, context, replace(search, keep_states=False))
        assert without.states is None
        assert torch.equal(with_states.tokens, without.tokens)


def test_padding_of_a_context_changes_nothing(model, visual, context):
    text = torch.randint(3, 23, (7, 6), generator=torch.Generator().manual_seed(5))
    longer = torch.cat((context, torch.zeros(7, 4, dtype=torch.long)), 1)
    with torch.no_grad():
        before, after = model.states(visual, context, text), model.states(visual, longer, text)
        alone = torch.cat(
            [
                model.states(visual[i : i + 1], context[i : i + 1, : int((context[i] != 0).sum())], text[i : i + 1])
                for i in range(7)
            ]
        )
    torch.testing.assert_close(before, after, **CLOSE)
    torch.testing.assert_close(before, alone, **CLOSE)


def test_text_sees_what_came_before_it(model, visual, context):
    text = torch.randint(3, 23, (7, 6), generator=torch.Generator().manual_seed(5))
    other = text.clone()
    other[:, 3] = (text[:, 3] - 2) % 20 + 3
    with torch.no_grad():
        before, after = model.states(visual, context, text), model.states(visual, context, other)
        seen = model.states(visual + torch.randn(7, 3, 6), context, text)
        told = model.states(visual, context.roll(1, 0), text)
    torch.testing.assert_close(before[:, :3], after[:, :3], **CLOSE)
    assert (after[:, 3:] - before[:, 3:]).abs().amax(-1).min() > 1e-4
    assert (seen - before).abs().amax((1, 2)).min() > 1e-4
    assert (told - before).abs().amax((1, 2)).min() > 1e-4


def test_nothing_to_write_about(model, visual):
    for search in SEARCHES.values():
        found = write_texts(model, visual[:0], None, search)
        assert found.tokens.shape == (0, 1)
        assert found.scores.shape == (0,)
        assert found.states.shape == (0, 1, model.dim)


def test_no_text_is_read_with_zero_gradients(model, visual, context):
    states = model.train().states(visual[:0], context[:0], context[:0])
    assert states.shape == (0, context.shape[1], model.dim)
    model.logits(states).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def enumerate_texts(model: nn.Module, visual: Tensor, length: int, penalty: float) -> tuple[float, list[int]]:
    """Return the best finished text of at most ``length`` tokens by T5X's score."""
    best, texts = (float("-inf"), [SEARCH.start_id]), [(0.0, [SEARCH.start_id])]
    for position in range(1, length):
        rows = torch.tensor([words for _, words in texts])
        states = model.states(visual.expand(len(rows), -1, -1), None, rows)[:, -1]
        log_probs = model.logits(states).float().log_softmax(-1).tolist()
        grown = [
            (total + step, [*words, word])
            for (total, words), row in zip(texts, log_probs, strict=True)
            for word, step in enumerate(row)
        ]
        scale = ((5 + position) / 6) ** penalty
        best = max([best, *((total / scale, words) for total, words in grown if words[-1] == END)])
        texts = [text for text in grown if text[1][-1] != END]
    return best


@torch.no_grad()
def test_wide_penalised_beams_find_the_best_text(model, visual):
    likely_end(model, visual, None)
    search = replace(SEARCH, beam_size=23 * 22, length_penalty=0.6, max_length=4, forbid_repeat="never")
    found = write_texts(model, visual[:2], None, search)
    for image, row, score in zip(visual, found.tokens.tolist(), found.scores.tolist(), strict=False):
        best, words = enumerate_texts(model, image[None], 4, 0.6)
        assert row[: len(words)] == words
        assert score == pytest.approx(best, abs=1e-4)


def test_a_penalised_search_that_finishes_nothing_returns_what_it_has(model, visual):
    plain = model.logits
    model.logits = lambda states: plain(states).index_fill(-1, torch.tensor([END]), -1e9)
    found = write_texts(model, visual, None, replace(SEARCH, beam_size=2, length_penalty=0.6))
    assert found.tokens.shape == (7, 9)
    assert not (found.tokens == END).any()
    with torch.no_grad():
        states = model.states(visual, None, found.tokens)
        log_probs = model.logits(states[:, :-1]).log_softmax(-1)
    torch.testing.assert_close(found.states, states, **CLOSE)
    assert torch.isfinite(found.scores).all()
    assert log_probs.shape[1] == 8


def test_the_published_greedy_search_never_repeats_the_start(model, visual):
    plain = model.logits
    model.logits = lambda states: plain(states).index_fill(-1, torch.tensor([SEARCH.start_id]), 1e3)
    free = write_texts(model, visual, None, replace(SEARCH, forbid_repeat="never"))
    banned = write_texts(model, visual, None, replace(SEARCH, forbid_repeat="always"))
    assert (free.tokens == SEARCH.start_id).all()
    assert (banned.tokens[:, 1] != SEARCH.start_id).all()
    assert not ((banned.tokens[:, 1:] == banned.tokens[:, :-1]) & (banned.tokens[:, 1:] != END)).any()


def test_scores_divide_by_words_or_by_tokens(model, visual):
    likely_end(model, visual, None)
    tokens, words = (write_texts(model, visual, None, replace(SEARCH, count_end=x)) for x in (True, False))
    ended = (tokens.tokens == END).any(1)
    count = (tokens.tokens[:, 1:] != END).sum(1)
    torch.testing.assert_close(tokens.scores * (count + ended), words.scores * count.clamp(min=1))
    assert isinstance(words, GeneratedText)
