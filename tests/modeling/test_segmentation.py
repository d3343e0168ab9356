"""Instance and semantic inference, and the sizes masks go through, against plain restatements of their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from locap.modeling.heads.instances import Instances, find_instances, place_boxes
from locap.modeling.heads.masks import Frame, QueryMasks, resize_masks
from locap.modeling.heads.panoptic import PanopticThresholds
from locap.modeling.heads.segmentation import InferenceModes, segment
from locap.modeling.heads.semantic import semantic_scores

QUERIES, CLASSES = 6, 4
FRAME = Frame(padded=(32, 64), image=(28, 50), output=(21, 37))
IS_THING = [True, False, True, False]


def draw(seed: int = 0) -> tuple[Tensor, QueryMasks, Tensor]:
    """Class logits, masks and boxes of a few queries; the last mask is empty."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(QUERIES, CLASSES + 1, generator=generator)
    embed, features = torch.randn(QUERIES, 3, generator=generator), torch.randn(3, 8, 16, generator=generator)
    features[0], embed[:, 0] = 1, torch.tensor([0.0, 0, 0, 0, 0, -50])
    return logits, QueryMasks(embed, features, FRAME), torch.rand(QUERIES, 4, generator=generator)


def resized(masks: QueryMasks) -> Tensor:
    """All masks by the definition: to the padded size, cut, to the output size."""
    options = {"mode": "bicubic", "align_corners": False, "antialias": True}
    logits = torch.einsum("qc,chw->qhw", masks.embed, masks.features)[None]
    cut = F.interpolate(logits, size=FRAME.padded, **options)[..., :28, :50]
    return F.interpolate(cut, size=FRAME.output, **options)[0]


def test_masks_are_resized_cut_and_resized_again():
    _, masks, _ = draw()
    torch.testing.assert_close(masks[:], resized(masks))
    torch.testing.assert_close(masks[torch.tensor([4, 1])], resized(masks)[[4, 1]])
    logits = torch.randn(2, 8, 16)
    same = resize_masks(logits, replace(FRAME, output=FRAME.image))
    torch.testing.assert_close(same, resize_masks(logits, Frame((32, 64), (32, 64), (32, 64)))[:, :28, :50])
    assert resize_masks(logits[:0], FRAME).shape == (0, 21, 37)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_semantic_scores_sum_over_all_queries(chunk: int):
    logits, masks, _ = draw()
    expected = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], resized(masks).sigmoid())
    torch.testing.assert_close(semantic_scores(logits, masks, chunk), expected)


def instances_by_hand(logits: Tensor, masks: QueryMasks, limit: int, things_only: bool) -> list[tuple]:
    """Return (score, query, label, area), best first."""
    pairs = [(float(p), q, k) for q, row in enumerate(logits.softmax(-1)) for k, p in enumerate(row[:-1])]
    found = []
    for probability, query, label in sorted(pairs, key=lambda pair: -pair[0])[:limit]:
        if things_only and not IS_THING[label]:
            continue
        mask = resized(masks)[query]
        inside = mask.sigmoid()[mask > 0].sum() / ((mask > 0).sum() + 1e-6)
        found.append((float(probability * inside), query, label, int((mask > 0).sum())))
    return sorted(found, key=lambda row: -row[0])


def rows_of(found: Instances) -> list[tuple]:
    areas = found.masks.sum((1, 2)).tolist()
    return list(zip(found.scores.tolist(), found.queries.tolist(), found.labels.tolist(), areas, strict=True))


@pytest.mark.parametrize("limit", [5, 20, 100])
@pytest.mark.parametrize("things_only", [False, True])
def test_instances_are_the_best_pairs_of_query_and_class(limit: int, things_only: bool):
    logits, masks, _ = draw()
    found = find_instances(logits, masks, None, max_instances=limit, allowed=IS_THING if things_only else None)
    expected = instances_by_hand(logits, masks, limit, things_only)
    assert len(expected) == len(found.queries) > 1
    for got, wanted in zip(rows_of(found), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-6)
    assert limit < 20 or (found.scores == 0).any()  # the empty mask: kept, worth nothing
    assert found.boxes_xyxy is None


def test_equal_pairs_come_in_the_order_of_queries_and_classes():
    _, masks, _ = draw()
    masks.embed[:] = masks.embed[0].clone()
    found = find_instances(torch.zeros(QUERIES, CLASSES + 1), masks, None, max_instances=7)
    assert found.queries.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_boxes_are_scaled_clipped_and_rescaled():
    boxes = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.75, 0.9, 0.5, 0.5]])  # of 64 x 32 padded, 50 x 28 the image
    expected = torch.tensor([[24, 8, 40, 24], [32, 20.8, 50, 28]])
    expected *= torch.tensor([37 / 50, 21 / 28, 37 / 50, 21 / 28])
    torch.testing.assert_close(place_boxes(boxes, FRAME), expected)


def test_boxes_follow_their_queries():
    logits, masks, boxes = draw()
    found = find_instances(logits, masks, boxes, max_instances=9)
    torch.testing.assert_close(found.boxes_xyxy, place_boxes(boxes, FRAME)[found.queries])


def test_modes_are_independent_but_for_stuff_instances():
    logits, masks, boxes = draw()
    inputs = (logits, masks, boxes, IS_THING)
    thresholds = PanopticThresholds(score=0.0, overlap=0.0)
    nothing = segment(*inputs, InferenceModes(panoptic=False), thresholds)
    assert (nothing.panoptic, nothing.instances, nothing.semantic, nothing.queries) == (None, None, None, [])
    everything = segment(*inputs, InferenceModes(instance=True, semantic=True), thresholds)
    assert set(everything.instances.labels.tolist()) == {0, 2}
    alone = segment(*inputs, InferenceModes(panoptic=False, instance=True, boxes=True), thresholds)
    assert set(alone.instances.labels.tolist()) == {0, 1, 2, 3}
    assert alone.instances.boxes_xyxy is not None
    segments = [part.query for part in everything.panoptic.segments]
    assert everything.queries[: len(segments)] == segments
    assert sorted(everything.queries) == sorted({*segments, *everything.instances.queries.tolist()})


def test_only_the_masks_that_matter_are_resized(monkeypatch: pytest.MonkeyPatch):
    logits, masks, boxes = draw()
    sizes = []
    made = QueryMasks.__getitem__
    monkeypatch.setattr(QueryMasks, "__getitem__", lambda self, rows: sizes.append(len(rows)) or made(self, rows))
    thresholds = PanopticThresholds(score=0.6, overlap=0.0)
    kept = int(((logits.softmax(-1).max(-1).values > 0.6) & (logits.argmax(-1) != CLASSES)).sum())
    found = segment(logits, masks, boxes, IS_THING, InferenceModes(instance=True, max_instances=2), thresholds)
    assert sizes == [kept, len(set(found.instances.queries.tolist()))]
    assert max(sizes) < QUERIES


@pytest.mark.fault("D7")
@pytest.mark.parametrize("part", ["logits", "boxes", "masks"])
def test_queries_that_are_not_finite_are_left_out(caplog, part: str):
    logits, masks, boxes = draw()
    sound = find_instances(logits, masks, boxes, max_instances=QUERIES * CLASSES)
    {"logits": logits, "boxes": boxes, "masks": masks.embed}[part][2, 0] = float("nan")
    found = find_instances(logits, masks, boxes, max_instances=QUERIES * CLASSES)
    assert all(bool(x.isfinite().all()) for x in (found.scores, found.boxes_xyxy))
    if part == "masks":  # the mask is empty and worth nothing
        assert found.scores[found.queries == 2].tolist() == [0] * CLASSES
    else:
        assert f"1 of {QUERIES} queries are left out" in caplog.text
        others = sound.queries != 2
        torch.testing.assert_close(found.scores, sound.scores[others])
        assert torch.equal(found.queries, sound.queries[others])
