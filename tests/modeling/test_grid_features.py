"""Tokens of a grid under a prompt, against sampling by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from locap.modeling.region_encoders.grid_features import GridFeatures
from locap.modeling.region_encoders.location_prompts import LocationPrompts

CANVAS = (40, 60)


@pytest.fixture
def prompts() -> LocationPrompts:
    torch.manual_seed(0)
    return LocationPrompts(dim=8)


def make(**cells: int) -> GridFeatures:
    torch.manual_seed(1)
    return GridFeatures(image_dim=5, prompt_dim=8, out_dim=6, **{"cells": 2, "whole_cells": 3, **cells})


def sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read (C, h, w) at pixels of the canvas, bilinearly; (N,) -> (N, C)."""
    height, width = CANVAS
    places = torch.stack((2 * x / width - 1, 2 * y / height - 1), -1)[None, None]
    found = F.grid_sample(image[None], places, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def by_hand(model: GridFeatures, image: Tensor, box: Tensor, prompts: LocationPrompts, k: int) -> Tensor:
    """Two samples each way in every one of the k x k cells, their mean, and where the middle of the cell is."""
    (left, top, right, bottom), tokens = box.tolist(), []
    for row in range(k):
        for column in range(k):
            steps = torch.tensor([0.25, 0.75])
            x = left + (right - left) * (column + steps) / k
            y = top + (bottom - top) * (row + steps) / k
            ys, xs = torch.meshgrid(y, x, indexing="ij")
            seen = sample(image, xs.flatten(), ys.flatten()).mean(0)
            middle = torch.stack((x.mean(), y.mean()))
            place = model.place_proj(prompts.places(middle, canvas=CANVAS))
            tokens.append(model.norm(F.gelu(model.image_proj(seen) + place)))
    return torch.stack(tokens)


@pytest.mark.parametrize(("whole", "cells"), [(False, 2), (True, 3)])
def test_tokens_are_those_of_the_cells_row_by_row(prompts, whole: bool, cells: int):
    model, image = make(), torch.randn(2, 5, 10, 15)
    boxes = torch.tensor([[3.0, 4, 27, 32], [0, 0, 60, 40], [30, 10, 54, 38]])
    found = model(image, boxes, prompts, counts=[1, 2], canvas=CANVAS, whole=whole)
    expected = [by_hand(model, image[i], box, prompts, cells) for i, box in zip((0, 1, 1), boxes, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_point_is_the_map_around_it(prompts):
    """RoIAlign gives a box without area no width: every cell reads the same place."""
    model, image = make(), torch.randn(1, 5, 10, 15)
    point = torch.tensor([[20.0, 12, 20, 12]])
    found = model(image, point, prompts, counts=[1], canvas=CANVAS, whole=False)
    torch.testing.assert_close(found[0], by_hand(model, image[0], point[0], prompts, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_no_cells_and_no_prompts_have_zero_gradients(prompts, whole: bool):
    for model, boxes in ((make(cells=0, whole_cells=0), torch.rand(2, 4)), (make(), torch.zeros(0, 4))):
        found = model(torch.randn(1, 5, 4, 4), boxes, prompts, counts=[len(boxes)], canvas=CANVAS, whole=whole)
        assert found.numel() == 0
        assert (len(found), found.shape[2]) == (len(boxes), 6)
        found.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
