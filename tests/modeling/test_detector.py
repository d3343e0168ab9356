"""The detector: pyramid, cells, proposals, regions, and what comes out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from locap.modeling.heads.detector.detector import Detector, DetectorMaps, DetectorNumbers
from locap.modeling.heads.detector.levels import pyramid_levels
from locap.modeling.heads.detector.proposals import ProposalMaps, boxes_of_cells, select_proposals
from locap.modeling.heads.detector.pyramid import SimplePyramid
from locap.modeling.heads.detector.rois import (
    decode_deltas,
    encode_deltas,
    level_of_boxes,
    roi_features,
    sample_rois,
)


def small(**changes) -> Detector:
    torch.manual_seed(0)
    sizes = {"in_dim": 12, "dim": 8, "deconv_dim": 6, "num_convs": 1, "hidden_dim": 16, "pooled": 3}
    return Detector(**sizes | changes).eval()


def test_levels_as_published():
    with torch.device("meta"):
        pyramid = SimplePyramid(in_dim=1280)
    assert pyramid.state_dict()["upsample.weight"].shape == (1280, 384, 2, 2)
    assert [tuple(x.shape) for x in SimplePyramid(in_dim=8, dim=4, deconv_dim=6)(torch.randn(1, 8, 27, 27))] == [
        (1, 4, side, side) for side in (54, 27, 13, 7, 4)
    ]
    levels = pyramid_levels((27, 27), (384, 384), published_strides=True)
    assert levels.sizes == tuple((side, side) for side in (54, 27, 13, 7, 4))
    assert len(levels.centres()) == sum(levels.counts) == 3879
    assert [s[0] for s in levels.strides] == [8, 16, 32, 64, 128]
    assert levels.centres()[: 54 * 54].amax() == 53 * 8 + 4  # beyond the canvas
    detector = small()
    shapes = detector(torch.randn(2, 12, 27, 27), (384, 384)).proposals
    assert shapes.heat.shape == (2, 3879)
    assert shapes.reach.shape == (2, 3879, 4)


def test_true_strides_follow_the_canvas():
    levels = pyramid_levels((27, 20), (384, 320), published_strides=False)
    assert levels.strides[1] == (384 / 27, 16)
    assert levels.strides[0] == (192 / 27, 8)
    assert levels.sizes[:3] == ((54, 40), (27, 20), (13, 10))
    centres = levels.centres()
    assert (centres > 0).all()
    assert (centres[: 54 * 40] < torch.tensor([320.0, 384])).all()
    assert centres[1].tolist() == pytest.approx([12, 96 / 27])
    with_sides_of_16 = (pyramid_levels((24, 24), (384, 384), published_strides=flag) for flag in (True, False))
    first, second = (levels.centres() for levels in with_sides_of_16)
    assert torch.equal(first, second)


def test_boxes_around_cells():
    levels = pyramid_levels((4, 4), (64, 64), published_strides=False)
    reach = torch.zeros(sum(levels.counts), 4)
    cell = 64 + 1 * 4 + 2  # second row, third column of p4
    reach[cell] = torch.tensor([1.0, 0.5, 0.25, 1])
    assert boxes_of_cells(reach, levels)[cell].tolist() == [24, 16, 44, 40]


def test_proposals_are_cut_suppressed_and_sorted():
    levels = pyramid_levels((4, 4), (64, 64), published_strides=False)
    heat, reach = torch.full((1, sum(levels.counts)), -9.0), torch.full((1, sum(levels.counts), 4), 0.5)
    at = 64
    heat[0, at], heat[0, at + 1], heat[0, at + 5] = 1, 3, 2
    reach[0, at] = torch.tensor([4.0, 4, 2, 2])  # leaves the canvas
    reach[0, at + 1] = torch.tensor([4.0, 4, 1, 2])  # the same box but for its better score
    [found] = select_proposals(ProposalMaps(heat, reach), levels, candidates=3, kept=5)
    assert found.xyxy.tolist() == [[0, 0, 40, 40], [16, 16, 32, 32]]
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 2]).sigmoid().tolist())
    [one] = select_proposals(ProposalMaps(heat, reach), levels, candidates=3, kept=1)
    assert one.xyxy.tolist() == [[0, 0, 40, 40]]


@pytest.mark.fault("D7")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out_and_counted(caplog, value: float):
    levels = pyramid_levels((4, 4), (64, 64), published_strides=False)
    heat, reach = torch.full((1, sum(levels.counts)), -9.0), torch.full((1, sum(levels.counts), 4), 0.5)
    heat[0, 64], heat[0, 69], heat[0, 70] = 1, 2, 3
    [sound] = select_proposals(ProposalMaps(heat, reach), levels, candidates=3, kept=5)
    reach[0, 70, 2] = value
    heat[0, 71:73] = float("nan")
    [found] = select_proposals(ProposalMaps(heat, reach), levels, candidates=3, kept=5)
    assert torch.equal(found.xyxy, sound.xyxy[1:])
    assert torch.equal(found.scores, sound.scores[1:])
    assert "1 of 3 boxes are left out" in caplog.text


def test_deltas_are_undone():
    torch.manual_seed(0)
    boxes, targets = (torch.cat((x, x + 1 + 50 * torch.rand(9, 2)), 1) for x in 99 * torch.rand(2, 9, 2))
    torch.testing.assert_close(decode_deltas(boxes, encode_deltas(boxes, targets)), targets)
    by_hand = encode_deltas(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 15, 20]]))
    assert by_hand.tolist() == [[5, 0, 0, 0]]  # 10 * half a width
    taller = encode_deltas(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[-5.0, -10, 15, 50]]))
    assert taller[0].tolist() == pytest.approx([0, 5, 5 * math.log(2), 5 * math.log(3)])
    grown = decode_deltas(torch.tensor([[0.0, 0, 2, 2]]), torch.full((1, 4), 1e9))
    assert grown.isfinite().all()


def test_regions_are_sampled_where_they_are():
    """Maps that hold their own coordinates: the mean over a region is the middle of its box."""
    levels = pyramid_levels((27, 20), (384, 320), published_strides=False)
    pyramid = [
        x.T.unflatten(1, size)[None]
        for x, size in zip(levels.centres().split(levels.counts), levels.sizes, strict=True)
    ]
    boxes = torch.tensor([[100.0, 80, 160, 120], [40, 60, 280, 300], [50, 50, 58, 62]])
    assert level_of_boxes(boxes).tolist() == [0, 1, 0]
    found = roi_features(pyramid, levels, [boxes], pooled=4)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(found.mean((2, 3)), middles, rtol=0, atol=1e-3)
    steps = (boxes[:, 2] - boxes[:, 0]) / 4
    torch.testing.assert_close(found[:, 0, 0, 1] - found[:, 0, 0, 0], steps, rtol=0, atol=1e-3)


def test_beyond_the_map_is_zero():
    levels = pyramid_levels((4, 4), (64, 64), published_strides=False)
    pyramid = [torch.randn(1, 5, *size) for size in levels.sizes]
    box = torch.tensor([[-20.0, -9, 25, 31]])  # of p3, whose stride is 8
    found = roi_features(pyramid, levels, [box], pooled=3)
    places = torch.linspace(1 / 12, 11 / 12, 6)  # two samples for each of three cells
    x, y = (box[0, :2, None] + (box[0, 2:] - box[0, :2])[:, None] * places) / 32 - 1
    grid = torch.stack((x.expand(6, 6), y[:, None].expand(6, 6)), -1)[None]
    samples = F.grid_sample(pyramid[0], grid, align_corners=False)
    torch.testing.assert_close(found, F.avg_pool2d(samples, 2), rtol=1e-4, atol=1e-5)


def test_regions_come_from_their_own_image():
    detector = small()
    maps = detector(torch.randn(2, 12, 4, 4), (64, 64))
    boxes = [torch.tensor([[0.0, 0, 30, 30]]), torch.tensor([[5.0, 5, 40, 60], [8, 8, 20, 20]])]
    both = detector.classify(maps, boxes)
    second = DetectorMaps([x[1:] for x in maps.pyramid], maps.levels, maps.proposals)
    torch.testing.assert_close(detector.classify(second, boxes[1:]).logits, both.logits[1:])
    assert both.logits.shape == (3, 2)
    assert detector.classify(maps, [boxes[0][:0], boxes[0][:0]]).deltas.shape == (0, 4)


def test_samples_are_objects_first_and_depend_on_the_seed_alone():
    truth = torch.tensor([[10.0, 10, 30, 30], [40, 40, 60, 60], [0, 0, 0, 0]])
    jitter = 0.5 * torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    proposals = torch.cat((truth[1] + jitter, torch.tensor([[0.0, 0, 9, 9]]).expand(60, 4)))
    first = sample_rois(proposals, truth, seed=3, num_samples=32)
    again = sample_rois(proposals, truth, seed=3, num_samples=32)
    other = sample_rois(proposals, truth, seed=4, num_samples=32)
    assert torch.equal(first.xyxy, again.xyxy)
    assert not torch.equal(first.xyxy, other.xyxy)
    assert first.positive.tolist() == [True] * 8 + [False] * 24
    assert set(first.objects[:8].tolist()) <= {0, 1}
    every = sample_rois(proposals, truth, seed=0, num_samples=512)
    assert every.positive.sum() == 42  # the objects themselves are among the candidates, the empty one is not
    assert len(every.xyxy) == 102


@pytest.mark.parametrize("truth", [torch.zeros(0, 4), torch.zeros(3, 4)])
def test_samples_without_objects(truth: torch.Tensor):
    proposals = torch.tensor([[0.0, 0, 9, 9], [5, 5, 5, 5]])
    found = sample_rois(proposals, truth, seed=0)
    assert len(found.xyxy) == 2
    assert not found.positive.any()
    assert found.objects.tolist() == [0, 0]


def test_detections():
    detector = small(numbers=DetectorNumbers(test_candidates=50, test_proposals=20, num_detections=5, least_score=0.0))
    maps = detector(torch.randn(2, 12, 4, 4), (64, 64))
    for found in detector.detect(maps):
        assert 0 < len(found.xyxy) <= 5
        assert (found.scores.diff() <= 0).all()
        assert (found.xyxy >= 0).all()
        assert (found.xyxy <= 64).all()
    detector.numbers = DetectorNumbers(least_score=1.0)
    assert [len(found.xyxy) for found in detector.detect(maps)] == [0, 0]


def test_scores_are_the_geometric_mean_of_both_stages():
    detector = small(numbers=DetectorNumbers(least_score=0.0, proposal_iou=1.0, nms_iou=1.0))
    maps = detector(torch.randn(1, 12, 4, 4), (64, 64))
    torch.nn.init.zeros_(detector.rois.logits.weight)
    torch.nn.init.zeros_(detector.rois.deltas.weight)
    detector.rois.logits.bias.data = torch.tensor([0.0, 2.0])
    n = detector.numbers
    [first] = select_proposals(
        maps.proposals, maps.levels, candidates=n.test_candidates, kept=n.num_detections, nms_iou=1
    )
    [found] = detector.detect(maps)
    torch.testing.assert_close(found.scores, (first.scores * torch.tensor(2.0).sigmoid()).sqrt())
