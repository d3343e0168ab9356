"""The caption decoder and its search: caching, independence of regions, no repetition, beams."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from locap.modeling.text_decoders import generation
from locap.modeling.text_decoders.bert_captioner import BertCaptioner
from locap.modeling.text_decoders.generation import GeneratedText, Recomputed, generate

START, END, VOCAB = 1, 2, 23
SEARCHES = [{}, {"beam_size": 3}, {"beam_size": 3, "rollouts": True}, {"beam_size": 3, "length_penalty": 0.6}]


def make(vocab: int = VOCAB, end_bias: float = 0.0) -> BertCaptioner:
    """A captioner whose random words are well apart."""
    torch.manual_seed(0)
    captioner = BertCaptioner(region_dim=6, vocab_size=vocab, dim=16, num_layers=2, num_heads=4, ffn_dim=24).eval()
    for name, parameter in captioner.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        captioner.output.bias[END] += end_bias
    return captioner


def regions(count: int = 12, tokens: int = 2) -> Tensor:
    return torch.randn(count, tokens, 6, generator=torch.Generator().manual_seed(3))


def search(captioner: BertCaptioner, region_tokens: Tensor, **kwargs) -> GeneratedText:
    return generate(captioner, region_tokens, start_id=START, end_id=END, **{"max_length": 12, **kwargs})


@torch.no_grad()
def next_log_probs(captioner: BertCaptioner, region: Tensor, words: list[int]) -> Tensor:
    """Read everything again, without a cache: (V,)."""
    logits = captioner.logits(captioner(region[None], torch.tensor([words]))[0, -1])
    if len(words) > 1:
        logits[words[-1]] = -10000
    return logits.log_softmax(-1)


def slow_greedy(captioner: BertCaptioner, region: Tensor, words: list[int], max_length: int) -> tuple[list[int], float]:
    """Continue ``words`` greedily; return them and the log-probability of what was added."""
    words, total = list(words), 0.0
    while len(words) < max_length and words[-1] != END:
        best, word = next_log_probs(captioner, region, words).max(-1)
        words.append(int(word))
        total += float(best)
    return words, total


def without_padding(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


@pytest.mark.parametrize("end_bias", [0.0, 6.0])
def test_cached_greedy_equals_reading_everything_again(end_bias: float):
    captioner, tokens = make(end_bias=end_bias), regions()
    found = search(captioner, tokens)
    lengths = set()
    for region, row, score in zip(tokens, found.tokens.tolist(), found.scores.tolist(), strict=True):
        words, total = slow_greedy(captioner, region, [START], 12)
        assert without_padding(row) == words
        assert set(row[len(words) :]) <= {END}
        assert score == pytest.approx(total / (len(words) - 1), abs=1e-4)
        lengths.add(len(words))
    assert end_bias == 0 or len(lengths) > 3  # the early stop was tried


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_reading_everything_anew_for_every_word_finds_the_same(options: dict):
    captioner, tokens = make(end_bias=6.0), regions()
    cached, anew = search(captioner, tokens, **options), search(Recomputed(captioner), tokens, **options)
    assert torch.equal(cached.tokens, anew.tokens)
    torch.testing.assert_close(cached.scores, anew.scores)


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_a_text_does_not_depend_on_the_other_regions(options: dict):
    captioner, tokens = make(end_bias=6.0), regions()
    together = search(captioner, tokens, **options).tokens.tolist()
    for order in ([5], [11, 5, 0], list(reversed(range(12))), [3, 3, 7, 3]):
        for index, row in zip(order, search(captioner, tokens[order], **options).tokens.tolist(), strict=True):
            assert without_padding(row) == without_padding(together[index])


@pytest.mark.parametrize("end_bias", [0.0, 6.0])
@pytest.mark.parametrize("rollouts", [False, True])
def test_one_beam_is_greedy(monkeypatch: pytest.MonkeyPatch, end_bias: float, rollouts: bool):
    captioner, tokens = make(end_bias=end_bias), regions()
    greedy = search(captioner, tokens)
    monkeypatch.setattr(generation, "_greedy", generation._beam)
    beam = search(captioner, tokens, beam_size=1, rollouts=rollouts)
    assert torch.equal(beam.tokens, greedy.tokens)
    torch.testing.assert_close(beam.scores, greedy.scores)


@pytest.mark.parametrize("options", [{}, {"beam_size": 3, "rollouts": True}], ids=str)
def test_texts_that_are_cut_off_begin_as_those_that_are_not(options: dict):
    """No search stops before all texts have ended, and none goes on for longer than it has to."""
    captioner, tokens = make(end_bias=6.0), regions()
    free = [without_padding(row) for row in search(captioner, tokens, max_length=60, **options).tokens.tolist()]
    assert len({len(row) for row in free}) > 3
    longest = search(captioner, tokens, max_length=60, **options).tokens.shape[1]
    for length in range(2, 60, 7):
        cut = search(captioner, tokens, max_length=length, **options).tokens
        assert cut.shape[1] == min(length, longest)
        if not options:
            assert [without_padding(row) for row in cut.tolist()] == [row[:length] for row in free]


def test_no_word_twice_in_a_row_and_no_text_too_long():
    captioner = make()
    with torch.no_grad():
        captioner.output.bias[5] += 30  # it would say nothing else
        captioner.output.bias[6] += 25
    found = search(captioner, regions(), max_length=9).tokens
    assert found.shape == (12, 9)
    assert not (found[:, 1:-1] == found[:, 2:]).any()
    assert found[:, 1:].unique().tolist() == [5, 6]


def test_the_first_word_may_repeat_the_start():
    captioner = make()
    with torch.no_grad():
        captioner.output.bias[START] += 50
    assert search(captioner, regions(2)).tokens[:, 1].tolist() == [START, START]


def test_all_texts_empty():
    captioner = make(end_bias=100.0)
    found = search(captioner, regions(3))
    assert found.tokens.tolist() == [[START, END]] * 3
    assert found.scores.tolist() == pytest.approx([0.0] * 3, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_no_regions(beam_size: int):
    found = search(make(), regions(0), beam_size=beam_size)
    assert found.tokens.shape == (0, 1)
    assert found.scores.shape == (0,)


@pytest.mark.parametrize("end_bias", [0.0, 6.0])
def test_rollouts_are_the_best_of_k_greedy_texts(end_bias: float):
    captioner, tokens = make(end_bias=end_bias), regions(6)
    found = search(captioner, tokens, beam_size=3, rollouts=True)
    for region, row, score in zip(tokens, found.tokens.tolist(), found.scores.tolist(), strict=True):
        first = next_log_probs(captioner, region, [START]).topk(3)
        texts = [
            (start + total, words)
            for start, word in zip(first.values.tolist(), first.indices.tolist(), strict=True)
            for words, total in [slow_greedy(captioner, region, [START, word], 12)]
        ]
        total, words = max(texts)
        assert without_padding(row) == words
        assert score == pytest.approx(total / (len(words) - 1), abs=1e-4)


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_text():
    captioner, tokens = make(vocab=7, end_bias=1.0), regions(5)
    found = search(captioner, tokens, beam_size=7, max_length=3)
    for region, row in zip(tokens, found.tokens.tolist(), strict=True):
        first = next_log_probs(captioner, region, [START]).tolist()
        second = [next_log_probs(captioner, region, [START, word]).tolist() for word in range(7)]
        totals = {(a, b): first[a] + second[a][b] for a, b in itertools.product(range(7), repeat=2) if a != END}
        totals[END, END] = first[END]
        assert tuple(row[1:]) == max(totals, key=totals.get)


def test_a_beam_is_no_worse_than_greedy_here():
    captioner, tokens = make(end_bias=1.0), regions()
    sums = []
    for beams in (1, 5):
        found = search(captioner, tokens, beam_size=beams)
        lengths = [len(without_padding(row)) - 1 for row in found.tokens.tolist()]
        sums.append(found.scores * torch.tensor(lengths))
    assert (sums[1] >= sums[0] - 1e-4).all()
    assert (sums[1] > sums[0] + 1e-3).any()


def test_words_see_regions_and_earlier_words_only():
    captioner, tokens = make(), regions(1)
    words = torch.tensor([[START, 5, 6, 7]])
    before = captioner(tokens, words)
    later = captioner(tokens, torch.tensor([[START, 5, 9, 7]]))
    assert torch.equal(before[:, :2], later[:, :2])
    assert not torch.allclose(before[:, 3], later[:, 3])
    assert not torch.allclose(before[:, 0], captioner(tokens + torch.randn(1, 2, 6), words)[:, 0])


def test_region_tokens_have_no_order():
    captioner, tokens = make(), regions(1, tokens=3)
    words = torch.tensor([[START, 5, 6]])
    torch.testing.assert_close(captioner(tokens, words), captioner(tokens[:, [2, 0, 1]], words), atol=1e-5, rtol=1e-5)


def test_epsilons_tied_words_and_initial_spread():
    captioner = BertCaptioner(region_dim=6, vocab_size=500, dim=48, num_layers=1, num_heads=4, ffn_dim=64)
    assert captioner.output.weight is captioner.words.weight
    assert captioner.output.bias is not None
    assert captioner.embedding_norm.eps == 1e-8
    assert captioner.region_proj[1].eps == 1e-5
    assert captioner.layers[0].norm.eps == captioner.layers[0].attention.norm.eps == 1e-12
    assert captioner.words.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert captioner.positions.weight.shape == (1024, 48)
