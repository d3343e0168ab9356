"""Caption, class, mask and box losses, and the points they look at."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from locap.datasets.batches import Batch
from locap.modeling.losses.box import box_giou, box_l1
from locap.modeling.losses.caption import smoothed_caption_loss
from locap.modeling.losses.criterion import SegmentTargets, SegmentWeights, SetCriterion
from locap.modeling.losses.mask import mask_bce, mask_dice
from locap.modeling.losses.points import SeededPoints, SequentialPoints, sample_points, uncertain_points
from locap.modeling.losses.segment_maps import SegmentMap
from locap.modeling.losses.vocabulary import projected_caption_loss
from locap.modeling.matching.hungarian import Match, MatchingCosts


def criterion(num_points: int = 32) -> SetCriterion:
    costs = MatchingCosts(class_weight=2.0, mask_weight=5.0, dice_weight=5.0)
    weights = SegmentWeights(mask_ce=2.0, mask_bce=5.0, mask_dice=5.0)
    ratios = {"oversample_ratio": 3.0, "importance_ratio": 0.75}
    return SetCriterion(costs, weights, num_points=num_points, no_object_weight=0.1, **ratios)


@pytest.mark.parametrize("vocab", [3, 50])
def test_caption_loss_is_the_divergence_from_the_smoothed_target(vocab: int):
    torch.manual_seed(0)
    logits, words = 3 * torch.randn(6, vocab), torch.randint(0, vocab, (6,))
    target = torch.full((6, vocab), 0.1 / (vocab - 1)).scatter(1, words[:, None], 0.9)
    expected = F.kl_div(logits.log_softmax(-1), target, reduction="sum")
    torch.testing.assert_close(smoothed_caption_loss(logits, words).sum(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.fault("D4")
def test_caption_loss_vanishes_at_the_target_and_without_words():
    target = torch.full((1, 4), 0.1 / 3)
    target[0, 2] = 0.9
    assert smoothed_caption_loss(target.log(), torch.tensor([2])).item() == pytest.approx(0, abs=1e-6)
    none = torch.zeros(0, 4, requires_grad=True)
    loss = smoothed_caption_loss(none, torch.zeros(0, dtype=torch.long)).sum()
    loss.backward()
    assert loss.item() == 0


def test_caption_gradient_is_that_of_the_dense_divergence():
    torch.manual_seed(0)
    words, factors = torch.randint(0, 50, (40,)), torch.rand(40)  # more rows than are worked on at once
    logits = (3 * torch.randn(40, 50)).requires_grad_()
    target = torch.full((40, 50), 0.1 / 49).scatter(1, words[:, None], 0.9)
    dense = F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(1)
    [expected] = torch.autograd.grad(dense @ factors, logits)
    [found] = torch.autograd.grad(smoothed_caption_loss(logits, words) @ factors, logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caption_loss_allocates_nothing_as_large_as_the_logits_but_their_gradient(dtype: torch.dtype):
    logits, words = torch.randn(400, 50).to(dtype).requires_grad_(), torch.randint(0, 50, (400,))
    large: set[int] = set()

    class Large(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= logits.nbytes:
                large.add(out.data_ptr() if out.numel() == logits.numel() else 0)
            return out

    with Large():
        loss = smoothed_caption_loss(logits, words).sum()
        before = set(large)
        loss.backward()
    assert len(large - {0, logits.data_ptr()}) == 1
    assert not before - {0, logits.data_ptr()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caption_loss_from_states_is_that_of_their_logits(dtype: torch.dtype, smoothing: float):
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in ((300, 24), (50, 24), (50,))]  # several pieces of rows
    words, factors = torch.randint(0, 50, (300,)), torch.rand(300)
    states, weight, bias = inputs
    logits = states.to(dtype).float() @ weight.to(dtype).float().t() + bias
    expected = smoothed_caption_loss(logits, words, smoothing=smoothing)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = projected_caption_loss(*inputs, words, smoothing=smoothing)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(found, expected, **near)
    ours, theirs = (torch.autograd.grad(loss @ factors, inputs) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, **near)


def test_caption_loss_from_states_keeps_one_array_of_words_times_vocabulary():
    states, weight, bias = (torch.randn(shape).requires_grad_() for shape in ((400, 4), (50, 4), (50,)))
    large: set[int] = set()

    class Large(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= 400 * 50 * 4:
                large.add(out.untyped_storage().data_ptr())
            return out

    with Large():
        projected_caption_loss(states, weight, bias, torch.randint(0, 50, (400,))).sum().backward()
    assert len(large) == 1


def test_caption_loss_from_no_states_is_zero():
    states, weight, bias = (torch.randn(shape).requires_grad_() for shape in ((0, 4), (50, 4), (50,)))
    projected_caption_loss(states, weight, bias, torch.zeros(0, dtype=torch.long)).sum().backward()
    assert not weight.grad.any()
    assert not bias.grad.any()


def test_caption_loss_is_computed_in_float32():
    logits = torch.randn(5, 40).bfloat16()
    words = torch.randint(0, 40, (5,))
    assert smoothed_caption_loss(logits, words).dtype == torch.float32
    assert torch.equal(smoothed_caption_loss(logits, words), smoothed_caption_loss(logits.float(), words))


def test_class_loss_over_its_count_is_a_weighted_mean(make_batch):
    torch.manual_seed(0)
    batch: Batch = make_batch([3, 0, 9])
    targets = SegmentTargets.from_regions(batch.targets, 64, 64)
    logits = torch.randn(3, 6, 13)
    pairs = [([0, 2, 5], [1, 0, 2]), ([], []), (range(6), [8, 1, 2, 3, 4, 0])]  # at last more segments than queries
    matches = [Match(*(torch.tensor(list(x), dtype=torch.int64) for x in (*pair, pair[1]))) for pair in pairs]
    wanted = torch.full((3, 6), 12)
    wanted[0, [0, 2, 5]] = targets.labels[0][[1, 0, 2]]
    wanted[2] = targets.labels[2][[8, 1, 2, 3, 4, 0]]
    weight = torch.ones(13)
    weight[12] = 0.1
    expected = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)
    rule = criterion()
    found = rule.class_loss(logits, targets, matches) / rule.class_weight_count(batch.targets, 6)
    torch.testing.assert_close(found, expected)


def test_mask_losses_are_sums_over_masks_of_means_over_points():
    torch.manual_seed(0)
    logits, masks = torch.randn(4, 30), torch.rand(4, 30).round()
    bce = sum(F.binary_cross_entropy_with_logits(x, y) for x, y in zip(logits, masks, strict=True))
    torch.testing.assert_close(mask_bce(logits, masks), bce)
    p = logits.sigmoid()
    dice = sum(1 - (2 * a @ b + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, masks, strict=True))
    torch.testing.assert_close(mask_dice(logits, masks), dice)


def test_box_losses_are_sums_over_pairs():
    a, b = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.4]]), torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 2)
    assert box_l1(a, b).item() == pytest.approx(0.2 + 0.2 + 0.2)
    assert box_giou(a[:1], b[:1]).item() == pytest.approx(0, abs=1e-4)
    assert 1 < box_giou(a, b).item() < 2


def test_targets_are_padded_right_and_below(make_batch):
    batch = make_batch([2], [(40, 50)])
    targets = SegmentTargets.from_regions(batch.targets, 64, 96)
    x0, y0, x1, y1 = batch.targets[0].boxes_xyxy[0].tolist()
    expected = [(x0 + x1) / 2 / 96, (y0 + y1) / 2 / 64, (x1 - x0) / 96, (y1 - y0) / 64]
    assert targets.boxes_cxcywh[0][0].tolist() == pytest.approx(expected)


def test_maps_are_sampled_and_shrunk_as_their_masks_would_be(make_batch):
    torch.manual_seed(0)
    (target,) = make_batch([3], [(40, 50)]).targets
    target.id_map[10:20, 7:30] = int(target.segment_ids[1])
    segments = SegmentMap(target.id_map, target.segment_ids, (64, 96))
    masks = F.pad(target.masks().float(), (0, 46, 0, 24))
    shared, own = torch.rand(500, 2) * 1.2 - 0.1, torch.rand(2, 500, 2)
    torch.testing.assert_close(segments.at_shared(shared), sample_points(masks[None], shared[None])[0])
    wanted = sample_points(masks[[2, 0], None], own)[:, 0]
    torch.testing.assert_close(segments.at_own(torch.tensor([2, 0]), own), wanted)
    for size in ((16, 24), (21, 17), (64, 96), (70, 100)):
        small = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0] > 0
        assert torch.equal(segments.shrunk(*size).bool(), small)


def test_points_sample_between_pixels_and_zero_outside():
    maps = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.25, 0.5], [0.0, 0.25]]])
    assert sample_points(maps, points)[0, 0].tolist() == [1.0, 3.0, 4.0, 3.0, 0.5]


def test_seeded_points_depend_on_the_image_alone():
    alone, batch = SeededPoints([7], "cpu"), SeededPoints([3, 7, 9], "cpu")
    assert torch.equal(alone.shared(2, 0, 5), batch.shared(2, 1, 5))
    assert torch.equal(alone.per_mask(2, 1, [4], 5), batch.per_mask(2, 1, [2, 4, 1], 5)[2:6])


def test_seeded_points_differ_by_layer_purpose_and_image():
    points = SeededPoints([7, 8], "cpu")
    draws = [points.shared(layer, image, 5) for layer in range(3) for image in range(2)]
    draws += [points.per_mask(layer, purpose, [1, 0], 5)[0] for layer in range(3) for purpose in range(2)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)
    assert all(draw.min() >= 0 and draw.max() < 1 for draw in draws)


def test_sequential_points_follow_the_global_generator():
    """Per layer: each image's shared points, then all masks' candidates, then all masks' points anywhere."""
    torch.manual_seed(4)
    points = SequentialPoints("cpu", counts=[1, 2], num_layers=2, num_points=8)
    torch.manual_seed(4)
    for layer in range(2):
        for image in range(2):
            assert torch.equal(points.shared(layer, image, 8), torch.rand(1, 8, 2)[0])
        assert torch.equal(points.per_mask(layer, 0, [1, 2], 24), torch.rand(3, 24, 2))
        assert torch.equal(points.per_mask(layer, 1, [1, 2], 2), torch.rand(3, 2, 2))


def test_three_quarters_of_the_points_are_the_least_certain_candidates():
    source = SeededPoints([1, 2], "cpu")
    logits = torch.randn(3, 8, 8)
    options = {"num_points": 20, "oversample_ratio": 3.0, "importance_ratio": 0.75}
    found = uncertain_points(logits, [1, 2], source, 0, **options)
    assert found.shape == (3, 20, 2)
    candidates = source.per_mask(0, 0, [1, 2], 60)
    certainty = sample_points(logits[:, None], candidates)[:, 0].abs().sort(dim=1).values
    torch.testing.assert_close(
        sample_points(logits[:, None], found)[:, 0, :15].abs().sort(dim=1).values, certainty[:, :15]
    )
    assert torch.equal(found[:, 15:], source.per_mask(0, 1, [1, 2], 5))
