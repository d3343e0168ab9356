"""Words that choose cells of the map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locap.modeling.heads.word_pointer import WordPointer, covered_cells, pointing_loss


def test_cells_whose_centres_a_box_holds_or_that_of_its_middle():
    boxes = torch.tensor([[0.0, 0, 8, 4], [5, 1, 6, 2], [3, 4, 13, 5], [-9, -9, -1, -1], [20, 20, 30, 40]])
    found = covered_cells(boxes, (2, 4), (8, 16)).view(-1, 2, 4)
    expected = [
        [[1, 1, 0, 0], [0, 0, 0, 0]],
        [[0, 1, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 1, 1, 0]],  # no centre is as high as the box
        [[1, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 1]],
    ]
    assert found.int().tolist() == expected


@given(
    cells=st.integers(1, 70), side=st.sampled_from([64, 96, 384, 518]), edge=st.integers(0, 70), nudge=st.floats(-1, 1)
)
def test_a_place_is_in_a_cell_even_on_the_edge_between_two(cells: int, side: int, edge: int, nudge: float):
    place = torch.tensor([edge * side / cells, edge * side / cells + nudge * 1e-4])[:, None].expand(2, 4)
    covered = covered_cells(place, (cells, cells), (side, side))
    assert (covered.sum(1) == 1).all()
    assert torch.isfinite(pointing_loss(torch.zeros(2, cells**2), covered))


def test_the_loss_is_the_cross_entropy_of_equally_likely_cells():
    scores = torch.randn(2, 6)
    inside = torch.tensor([[0.0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    log = scores.log_softmax(-1)
    torch.testing.assert_close(pointing_loss(scores, inside), -(log[0, 1] + log[0, 2]) / 2 - log[1, 0])
    assert pointing_loss(scores[:0], inside[:0]) == 0


@pytest.mark.parametrize("counts", [[2, 0, 1], [0, 3, 0]])
def test_texts_point_into_their_own_image(counts: list[int]):
    torch.manual_seed(0)
    pointer = WordPointer(dim=6, image_dim=4, place_dim=5, hidden_dim=8)
    states, image, places = torch.randn(3, 2, 6), torch.randn(3, 4, 2, 3), torch.randn(6, 5)
    found = pointer(states, image, places, counts=counts)
    owners = [i for i, count in enumerate(counts) for _ in range(count)]
    for row, owner in enumerate(owners):
        cells = image[owner].flatten(1).T
        keys = pointer.key(cells) + pointer.place_key(places)
        scores = pointer.query(states[row]) @ keys.T / 8**0.5
        torch.testing.assert_close(found.scores[row], scores)
        read = scores.softmax(-1) @ (pointer.value(cells) + pointer.place_value(places))
        torch.testing.assert_close(found.read[row], read)
