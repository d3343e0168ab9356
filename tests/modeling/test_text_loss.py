"""The text loss: label smoothing in closed form, and which words count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from locap.modeling.losses import text as text_module
from locap.modeling.losses.text import smoothed_cross_entropy, spoken_words, text_loss

BEGIN, END, PAD = 2, 1, 0
TEXT = torch.tensor(
    [
        [BEGIN, 5, 6, END, PAD],
        [BEGIN, END, PAD, PAD, PAD],  # empty
        [BEGIN, 7, 8, 9, 4],  # cut off, without its end
        [BEGIN, END, 5, 6, END],  # empty too, whatever follows
        [PAD, PAD, PAD, PAD, PAD],
    ]
)


class Model:
    """An output layer."""

    def __init__(self, dim: int = 6, vocab: int = 11) -> None:
        torch.manual_seed(0)
        self.logits = nn.Linear(dim, vocab).double()
        self.dim, self.vocab_size = dim, vocab


def dense(logits: Tensor, words: Tensor, smoothing: float) -> Tensor:
    """Label smoothing with the labels written out."""
    labels = torch.full_like(logits, smoothing / (logits.shape[-1] - 1))
    labels[torch.arange(len(words)), words] = 1 - smoothing
    return -(labels * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_closed_form_is_the_dense_form(smoothing: float):
    torch.manual_seed(1)
    logits, words = torch.randn(50, 37) * 3, torch.randint(0, 37, (50,))
    slopes = []
    for function in (
        lambda x: smoothed_cross_entropy(x, words, smoothing=smoothing),
        lambda x: dense(x, words, smoothing),
    ):
        x = logits.clone().requires_grad_()
        losses = function(x)
        (losses * torch.linspace(0.5, 2, 50)).sum().backward()
        slopes.append((losses.detach(), x.grad))
    for found, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_which_words_count():
    spoken = spoken_words(TEXT, end_id=END, pad_id=PAD)
    assert spoken.int().tolist() == [[1, 1, 1, 0], [0] * 4, [1] * 4, [0] * 4, [0] * 4]


def test_t5_begins_with_its_padding():
    spoken = spoken_words(torch.tensor([[0, 5, 1, 0], [0, 1, 0, 0]]), end_id=1, pad_id=0)
    assert spoken.int().tolist() == [[1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("learns", [None, torch.tensor([True, True, False, True, True])], ids=["all", "some"])
def test_sum_over_words_in_pieces(monkeypatch, rows: int, learns: Tensor | None):
    monkeypatch.setattr(text_module, "ROWS", rows)
    model = Model()
    states = torch.randn(5, 5, 6, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    term = text_loss(model, states, TEXT, learns=learns, end_id=END, pad_id=PAD, smoothing=0.1, weight=0.5)
    at = [(0, 0, 5), (0, 1, 6), (0, 2, END), (2, 0, 7), (2, 1, 8), (2, 2, 9), (2, 3, 4)]
    at = [x for x in at if learns is None or learns[x[0]]]
    chosen = torch.stack([states[row, position] for row, position, _ in at])
    expected = dense(model.logits(chosen), torch.tensor([word for *_, word in at]), 0.1).sum()
    assert (term.counted, term.weight) == ("words", 0.5)
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = torch.autograd.grad(expected, [states, *model.logits.parameters()])
    found = torch.autograd.grad(term.total, [states, *model.logits.parameters()])
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


@pytest.mark.fault("D4")
def test_nothing_to_learn_is_zero_with_a_gradient():
    states = torch.randn(5, 5, 6).double().requires_grad_()
    learns = torch.zeros(5, dtype=torch.bool)
    term = text_loss(Model(), states, TEXT, learns=learns, end_id=END, pad_id=PAD, smoothing=0.1, weight=1.0)
    term.total.backward()
    assert term.total.item() == 0
    assert not states.grad.any()


@pytest.mark.fault("D4")
def test_rows_that_teach_nothing_may_hold_anything():
    states = torch.randn(5, 5, 6).double()
    states[1] = float("nan")  # an empty text
    term = text_loss(Model(), states, TEXT, learns=None, end_id=END, pad_id=PAD, smoothing=0.1, weight=1.0)
    assert torch.isfinite(term.total)
