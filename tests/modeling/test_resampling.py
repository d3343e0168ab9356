"""Resampling against the definition of jax.image.resize written out, for every kind of shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from locap.modeling.layers.resampling import resize_grid, resize_map, resize_rows


def kernel(x: Tensor, mode: str) -> Tensor:
    x = x.abs()
    if mode == "bilinear":
        return (1 - x).clamp(min=0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # a = -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def weights(before: int, after: int, mode: str) -> Tensor:
    """(after, before), each row sums to 1."""
    scale = before / after
    centre = (torch.arange(after).double() + 0.5) * scale - 0.5
    rows = kernel((torch.arange(before)[None] - centre[:, None]) / max(scale, 1), mode)
    return rows / rows.sum(1, keepdim=True)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(((64, 64), (24, 24)), ((24, 24), (27, 27)), ((16, 16), (27, 27)), ((96, 96), (384, 384)), ((9, 20), (13, 7))),
        *(
            ((20, 5), (9, 1)),
            ((20, 1), (9, 1)),
            ((20, 1), (9, 7)),
            ((5, 5), (1, 1)),
            ((1, 1), (4, 4)),
            ((1, 9), (1, 4)),
        ),
    ],
)
def test_maps(before: tuple[int, int], after: tuple[int, int], channels: int, mode: str):
    x = torch.randn(2, channels, *before, generator=torch.Generator().manual_seed(0))
    rows, columns = (weights(a, b, mode) for a, b in zip(before, after, strict=True))
    expected = torch.einsum("bcij,hi,wj->bchw", x.double(), rows, columns)
    torch.testing.assert_close(resize_map(x, after, mode=mode).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [47, 127, 1, 200])
def test_tables_of_distances(length: int):
    table = torch.randn(127, 10).double()
    expected = weights(127, length, "bilinear") @ table
    torch.testing.assert_close(resize_rows(table, length), expected, atol=1e-5, rtol=0)


def test_tables_of_places_are_channels_last():
    table = torch.randn(1, 4, 6, 3)
    torch.testing.assert_close(resize_grid(table, (3, 5))[0, ..., 1], resize_map(table[None, ..., 1], (3, 5))[0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_kind_of_number_stays(dtype: torch.dtype):
    x = torch.randn(1, 2, 8, 8).to(dtype)
    found = resize_map(x, (5, 6))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), resize_map(x.float(), (5, 6)), atol=2e-2, rtol=0)
