"""The detector's targets and losses, against loops over cells and objects and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from locap.modeling.heads.detector.detector import Detector, DetectorNumbers
from locap.modeling.heads.detector.levels import Levels, pyramid_levels
from locap.modeling.heads.detector.proposals import ProposalMaps
from locap.modeling.heads.detector.rois import RoiOutputs, RoiSamples
from locap.modeling.losses.detection import LEVEL_RANGES, centre_losses, centre_targets, heat_focal, roi_losses

BOXES = torch.tensor([[3.0, 5, 45, 38], [10, 8, 30, 40], [0, 0, 200, 150], [60, 60, 60, 90], [150, 100, 158, 104]])


def loop_targets(boxes: list[list[float]], levels: Levels) -> tuple[list[float], list[list[float]], list[bool]]:
    """The published rules, one cell and one object at a time."""
    heats, reaches, regressed = [], [], []
    for (h, w), (sy, sx), (low, high) in zip(levels.sizes, levels.strides, LEVEL_RANGES, strict=True):
        for y, x in ((i, j) for i in range(h) for j in range(w)):
            px, py = (x + 0.5) * sx, (y + 0.5) * sy
            heat, best, reach = 0.0, math.inf, [0.0] * 4
            for x0, y0, x1, y1 in boxes:
                area = (x1 - x0) * (y1 - y0)
                if not area:
                    continue
                cx, cy = min(int((x0 + x1) / 2 / sx), w - 1), min(int((y0 + y1) / 2 / sy), h - 1)
                distance = (px - (cx + 0.5) * sx) ** 2 + (py - (cy + 0.5) * sy) ** 2
                distance /= max((0.2 / 1.8) ** 2 * 2 * area, 16)
                fits = low <= math.hypot(x1 - x0, y1 - y0) / 2 <= high
                heat = max(heat, 1.0 if fits and (x, y) == (cx, cy) else math.exp(-max(distance, 1e-6)))
                sides = [px - x0, py - y0, x1 - px, y1 - py]
                if fits and abs(x - cx) <= 1 and abs(y - cy) <= 1 and min(sides) > 0 and distance < best:
                    best, reach = distance, [sides[0] / sx, sides[1] / sy, sides[2] / sx, sides[3] / sy]
            heats.append(heat)
            reaches.append(reach)
            regressed.append(best < math.inf)
    return heats, reaches, regressed


@pytest.mark.parametrize("published", [True, False])
def test_targets_against_a_loop(published: bool):
    levels = pyramid_levels((11, 14), (160, 210), published_strides=published)
    found = centre_targets(BOXES, levels)
    heat, reach, regressed = loop_targets(BOXES.tolist(), levels)
    torch.testing.assert_close(found.heat, torch.tensor(heat), rtol=1e-4, atol=1e-6)
    assert ((found.heat == 1) == (torch.tensor(heat) == 1)).all()
    assert torch.equal(found.regressed, torch.tensor(regressed))
    torch.testing.assert_close(found.reach, torch.tensor(reach), rtol=1e-4, atol=1e-4)
    peaks, cells = found.counts
    assert peaks == sum(x == 1 for x in heat) >= 4
    assert cells == sum(regressed) > peaks


def test_targets_without_objects():
    levels = pyramid_levels((4, 4), (64, 64), published_strides=False)
    for boxes in (torch.zeros(0, 4), torch.zeros(3, 4)):
        found = centre_targets(boxes, levels)
        assert found.heat.shape == (sum(levels.counts),)
        assert not found.heat.any()
        assert not found.regressed.any()
        assert found.counts == (1, 1)


def test_focal_loss_by_hand():
    logits = torch.tensor([0.0, 0.0, 0.0, 50.0, -50.0])
    heat = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0])
    log2 = math.log(2)
    surprise = -math.log(1e-4) * (1 - 1e-4) ** 2
    expected = [0.25 * 0.25 * log2, 0.75 * 0.25 * log2, 0.75 * 0.5**4 * 0.25 * log2, 0.75 * surprise, 0.25 * surprise]
    assert heat_focal(logits, heat).tolist() == pytest.approx(expected, rel=1e-3)


def test_perfect_predictions_cost_nothing():
    levels = pyramid_levels((11, 14), (160, 210), published_strides=False)
    targets = centre_targets(BOXES, levels)
    heat = torch.where(targets.heat == 1, 50.0, -50.0)[None]
    losses = centre_losses(ProposalMaps(heat, targets.reach[None]), [targets], torch.tensor([True]))
    assert losses.heat < 1e-4
    assert losses.reach.abs() < 1e-4


def test_only_images_that_learn_count():
    levels = pyramid_levels((4, 4), (64, 64), published_strides=False)
    torch.manual_seed(0)
    maps = ProposalMaps(torch.randn(2, sum(levels.counts)), torch.rand(2, sum(levels.counts), 4))
    targets = [centre_targets(torch.tensor([box]), levels) for box in ([3.0, 3, 50, 50], [8.0, 8, 20, 20])]
    both = centre_losses(maps, targets, torch.tensor([True, True]))
    parts = [centre_losses(maps, targets, torch.tensor(learns)) for learns in ([True, False], [False, True])]
    for name in ("heat", "reach"):
        torch.testing.assert_close(getattr(both, name), sum(getattr(part, name) for part in parts))
    none = centre_losses(maps, targets, torch.tensor([False, False]))
    assert none.heat == none.reach == 0


def test_region_losses_by_hand():
    xyxy = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20], [5, 5, 5, 9]])
    samples = [RoiSamples(xyxy, torch.tensor([1, 0, 0]), torch.tensor([True, False, False]))]
    truth = [torch.tensor([[50.0, 50, 60, 60], [1, 0, 11, 10]])]
    outputs = RoiOutputs(torch.tensor([[0.0, 1], [0, 1], [9, 9]]), torch.full((3, 4), 3.0))
    found = roi_losses(outputs, samples, truth, num_samples=4)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2  # the empty region does not count
    assert found.objects.item() == pytest.approx(expected)
    assert found.boxes.item() == pytest.approx((2 + 3 + 3 + 3) / 4)  # wanted: 10 * 0.1, 0, 0, 0


def all_losses(detector: Detector, images: torch.Tensor, truth: list[torch.Tensor], learns: list[bool]) -> torch.Tensor:
    maps = detector(images, (64, 64))
    targets = [centre_targets(boxes, maps.levels) for boxes in truth]
    centres = centre_losses(maps.proposals, targets, torch.tensor(learns))
    truth = [boxes if known else None for boxes, known in zip(truth, learns, strict=True)]
    samples = detector.sample(maps, truth, [7] * len(truth))
    outputs = detector.classify(maps, [s.xyxy for s in samples])
    regions = roi_losses(outputs, samples, truth, num_samples=detector.numbers.num_samples)
    return centres.heat + centres.reach + regions.objects + regions.boxes


def tiny() -> Detector:
    torch.manual_seed(0)
    numbers = DetectorNumbers(num_samples=24, train_proposals=30)
    sizes = {"in_dim": 12, "dim": 8, "deconv_dim": 6, "num_convs": 1, "hidden_dim": 16, "pooled": 3}
    return Detector(**sizes, initial_reach=2.0, numbers=numbers)


def test_every_parameter_learns():
    detector, images = tiny(), torch.randn(2, 12, 4, 4, requires_grad=True)
    truth = [torch.tensor([[3.0, 3, 30, 40], [40, 40, 60, 62]]), torch.tensor([[10.0, 10, 20, 20]])]
    all_losses(detector, images, truth, [True, True]).backward()
    still = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert images.grad.abs().sum((1, 2, 3)).all()


@pytest.mark.fault("D4")
def test_an_image_whose_objects_are_unknown_teaches_nothing():
    detector, images = tiny(), torch.randn(2, 12, 4, 4, requires_grad=True)
    boxes = torch.tensor([[3.0, 3, 30, 40]])
    loss = all_losses(detector, images, [boxes, boxes], [False, True])
    loss.backward()
    assert images.grad.abs().sum((1, 2, 3)).bool().tolist() == [False, True]
    alone = all_losses(detector, images.detach()[1:], [boxes], [True])
    torch.testing.assert_close(alone, loss)


@pytest.mark.fault("D4")
@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.zeros(2, 4)])
@pytest.mark.parametrize("learns", [True, False])
def test_losses_without_objects_are_finite(boxes: torch.Tensor, learns: bool):
    detector = tiny()
    loss = all_losses(detector, torch.randn(2, 12, 4, 4), [boxes, boxes], [learns, learns])
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in detector.parameters())  # and none is missing
    assert learns or loss == 0


def test_learns_one_image():
    torch.manual_seed(0)
    detector, images = tiny(), torch.randn(1, 12, 4, 4)
    truth = [torch.tensor([[3.0, 3, 30, 40], [40, 40, 60, 62]])]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        all_losses(detector, images, truth, [True]).backward()
        optimizer.step()
    [found] = detector.eval().detect(detector(images, (64, 64)))
    errors = (truth[0][:, None] - found.xyxy[:2]).abs().amax(-1).amin(1)
    assert errors.max() < 3  # pixels
