"""Whatever legal targets a batch has, every loss is finite and every trained parameter gets a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from locap.datasets.batches import Batch

TASKS = ("region", "refer", "detect", "trace", "caption", "instruct", "")


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    counts = model.counts(batch)
    return sum(term.weight * term.total / max(counts[term.counted], 1) for term in model(batch).values())


def learnt(model: nn.Module, batch: Batch) -> None:
    """Assert that a batch gives every term a finite value and every trained parameter a finite gradient."""
    model.zero_grad()
    for name, term in model(batch).items():
        assert torch.isfinite(term.total), name
    objective(model, batch).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # processes wait for each other's gradients, whatever their images teach
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def poorer(target: Any, lost: str, rows: Sequence[int]) -> Any:
    """Return targets some of whose rows have lost something that records may lack."""
    at = torch.tensor([row for row in rows if row < len(target)], dtype=torch.int64)
    if lost == "mask" and hasattr(target, "id_map"):
        gone = torch.isin(target.id_map, target.segment_ids[at].to(target.id_map.dtype))
        return replace(target, id_map=target.id_map.masked_fill(gone, 0))
    if lost == "mask":
        return target if target.masks is None else replace(target, masks=target.masks.index_fill(0, at, 0))
    if lost == "box":
        return replace(target, boxes_xyxy=target.boxes_xyxy.index_fill(0, at, 0.0))
    if hasattr(target, "caption_tokens"):
        return replace(target, caption_tokens=target.caption_tokens.index_fill(0, at, 0))
    return replace(target, learns=target.learns.index_fill(0, at, False))


ROWS = st.lists(st.integers(0, 8), max_size=9, unique=True)
LOSSES = st.lists(st.tuples(st.sampled_from(["mask", "box", "words"]), ROWS), max_size=3)


@pytest.mark.fault("D4")
@pytest.mark.parametrize("aids", [False, True], ids=["published", "aids"])
def test_pix2cap_learns_from_every_legal_target(aids, tiny_pix2cap, scale):
    model = tiny_pix2cap.build("MODEL.MASK_HEAD_ENABLED", "true", aids=aids).train()

    @settings(max_examples=scale(8, 200), deadline=None, derandomize=True, database=None)
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=3), LOSSES, st.integers(0, 99))
    def check(segments: list[int], losses: list[tuple[str, list[int]]], seed: int) -> None:
        batch = tiny_pix2cap.make_batch(segments, seed=seed)
        for lost, rows in losses:
            batch.targets = [poorer(target, lost, rows) for target in batch.targets]
        learnt(model, batch)

    check()


@pytest.mark.fault("D4")
@pytest.mark.parametrize("aids", [False, True], ids=["published", "aids"])
def test_pixelllm_learns_from_every_legal_target(aids, tiny_pixelllm, scale):
    model = tiny_pixelllm.build(aids=aids).train()
    tasks = st.lists(st.sampled_from(TASKS), min_size=1, max_size=3)

    @settings(max_examples=scale(8, 200), deadline=None, derandomize=True, database=None)
    @given(tasks, LOSSES, st.integers(0, 99))
    def check(asked: list[str], losses: list[tuple[str, list[int]]], seed: int) -> None:
        batch = tiny_pixelllm.Drawn(seed=seed).lessons(*asked)
        for lost, rows in losses:
            batch.targets = [poorer(target, lost, rows) for target in batch.targets]
        learnt(model, batch)

    check()
