"""The auxiliary head that names what every cell of the map shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from locap.datasets.batches import PromptTargets
from locap.modeling.heads.dense_words import DenseWords

CANVAS = (16, 16)
PAD, BEGIN, END = 0, 1, 2


def target(text: list[list[int]], boxes: list[list[float]], task: str = "region", **changes) -> PromptTargets:
    text, boxes = torch.tensor(text), torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    blank = PromptTargets.blank(16)
    places = torch.zeros(*text.shape, 4)
    learns = torch.tensor([[True, False, False]]).repeat(len(text), 1)
    own = {"text": text, "boxes_xyxy": boxes, "word_boxes": places, "learns": learns, "task": task}
    return replace(blank, **{**own, **changes})


@pytest.fixture
def head() -> DenseWords:
    torch.manual_seed(0)
    return DenseWords(4, 9, (PAD, BEGIN, END))


def cross_entropy(head: DenseWords, features: torch.Tensor, cells: dict[tuple[int, int], dict[int, float]]) -> float:
    """Mean over the cells of -sum of share times log-probability."""
    each = []
    for (row, column), wanted in cells.items():
        log_probs = head.predict(features[0, :, row, column]).log_softmax(-1)
        whole = sum(wanted.values())
        each.append(-sum(share / whole * log_probs[word] for word, share in wanted.items()))
    return float(torch.stack(each).mean().detach())


def test_cells_learn_the_words_of_the_boxes_that_cover_them(head):
    features = torch.randn(1, 4, 4, 4)  # cells of 4 pixels
    told = target([[BEGIN, 5, 6, END], [BEGIN, 7, END, PAD]], [[0, 0, 8, 4], [4, 0, 8, 4]])
    first = cross_entropy(head, features, {(0, 0): {5: 1.0, 6: 1.0}, (0, 1): {5: 1.0, 6: 1.0}})
    second = cross_entropy(head, features, {(0, 1): {7: 1.0}})  # a text counts as much as another, however small
    found = head.loss(features, [told], CANVAS).detach()
    assert float(found) == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_mask_says_it_better_than_its_box(head):
    features, mask = torch.randn(1, 4, 4, 4), torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, :4, 4:8] = True
    told = target([[BEGIN, 5, END]], [[0, 0, 8, 4]], "refer", learns=torch.tensor([[False, True, True]]))
    told.masks = torch.from_numpy(np.packbits(mask.numpy(), axis=-1))
    found = head.loss(features, [told], CANVAS).detach()
    assert float(found) == pytest.approx(cross_entropy(head, features, {(0, 1): {5: 1.0}}), rel=1e-5)


def test_a_text_that_teaches_nothing_is_left_out(head):
    features = torch.randn(1, 4, 4, 4)
    told = target([[BEGIN, 5, END], [BEGIN, 6, END]], [[0, 0, 4, 4], [4, 4, 8, 8]])
    told.learns[1] = False
    found = head.loss(features, [told], CANVAS).detach()
    assert float(found) == pytest.approx(cross_entropy(head, features, {(0, 0): {5: 1.0}}), rel=1e-5)


def test_words_of_a_narrative_count_where_they_were_spoken(head):
    features, places = torch.randn(1, 4, 4, 4), torch.zeros(1, 4, 4)
    places[0, 1], places[0, 2] = torch.tensor([0.0, 0, 4, 4]), torch.tensor([5.0, 9, 6, 10])
    told = target([[BEGIN, 5, 6, END]], [[0, 0, 16, 16]], "trace", word_boxes=places)
    cells = {(0, 0): {5: 1.0}, (2, 1): {6: 1.0}}  # a place smaller than a cell is the cell's
    found = head.loss(features, [told], CANVAS).detach()
    assert float(found) == pytest.approx(cross_entropy(head, features, cells), rel=1e-5)


def test_the_sum_over_images_and_nothing_to_learn(head):
    features = torch.randn(3, 4, 4, 4)
    some = [target([[BEGIN, 5, END]], [[0, 0, 9, 9]]), target([[BEGIN, 6, END]], [[3, 3, 16, 16]])]
    captions = target([[BEGIN, 7, END]], [[0, 0, 0, 0]], "caption")  # of no box
    together = head.loss(features, [*some, captions], CANVAS)
    apart = [head.loss(features[k : k + 1], [told], CANVAS) for k, told in enumerate([*some, captions])]
    torch.testing.assert_close(together, sum(apart))
    assert apart[2] == 0
    nothing = head.loss(features[:1], [PromptTargets.blank(16)], CANVAS)
    nothing.backward()
    assert nothing == 0
    assert all(not p.grad.any() for p in head.parameters())


def test_it_learns(head):
    features = torch.eye(4).view(1, 4, 2, 2)
    told = target([[BEGIN, 5, END], [BEGIN, 6, END]], [[0, 0, 8, 8], [8, 8, 16, 16]])
    optimizer = torch.optim.Adam(head.parameters(), 0.3)
    for _ in range(40):
        optimizer.zero_grad()
        head.loss(features, [told], CANVAS).backward()
        optimizer.step()
    words = head.predict(features.flatten(2).mT)[0].argmax(-1)
    assert words[[0, 3]].tolist() == [5, 6]
