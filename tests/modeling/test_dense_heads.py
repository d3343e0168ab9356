import math

import pytest
import torch

from locap.datasets.batches import RegionTargets
from locap.modeling.heads.dense import WordHead, segment_shares, semantic_map


@pytest.fixture
def target() -> RegionTargets:
    """8 x 12 pixels, 2 x 3 cells: the left two columns are segment 5, the upper right cell is segment 7."""
    ids = torch.zeros(8, 12, dtype=torch.int32)
    ids[:, :8], ids[:4, 8:] = 5, 7
    return RegionTargets(
        labels=torch.tensor([1, 0]),
        segment_ids=torch.tensor([5, 7]),
        id_map=ids,
        boxes_xyxy=torch.zeros(2, 4),
        caption_tokens=torch.tensor([[1, 4, 5, 2], [1, 6, 6, 2]]),
        captions=["four five", "six six"],
    )


def test_cells_take_the_segment_in_their_middle(target: RegionTargets):
    assert semantic_map(target, 3, 3).tolist() == [[1, 1, 0], [1, 1, -1], [-1, -1, -1]]  # last row: padding
    shares = segment_shares(target, 3, 3)
    assert shares[0].tolist() == [[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]]
    assert shares[1].sum() == shares[1, 0, 2] == 1


def test_words_are_cross_entropies_over_a_segments_positions(target: RegionTargets):
    head, features = WordHead(4, 8, (0, 1, 2)), torch.randn(1, 4, 2, 3)
    log_probs = head.predict(features[0].permute(1, 2, 0)).log_softmax(-1)  # h w V
    left = -(log_probs[:, :2, 4] + log_probs[:, :2, 5]).mean() / 2
    right = -log_probs[0, 2, 6]
    torch.testing.assert_close(head.loss(features, [target]), left + right)
    assert head.count([target]) == 2


def test_segments_without_a_caption_or_a_cell_add_nothing(target: RegionTargets):
    head, features = WordHead(4, 8, (0, 1, 2)), torch.randn(1, 4, 2, 3)
    target.caption_tokens[0] = 0
    target.segment_ids[1] = 9
    loss = head.loss(features, [target])
    loss.backward()
    assert float(loss.detach()) == 0
    assert math.isclose(float(head.predict.weight.grad.abs().sum()), 0)
