"""Images on a square canvas, and what goes along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locap.datasets.transforms.canvas import Canvas, draw_canvas, fit_canvas, longest_side_size


@pytest.mark.parametrize(
    ("size", "published", "corrected"),
    [
        ((480, 640), (288, 384), (288, 384)),
        ((427, 640), (256, 383), (256, 384)),
        ((640, 426), (383, 255), (384, 256)),
        ((333, 500), (255, 382), (256, 384)),
        ((612, 612), (384, 384), (384, 384)),
        ((1, 5000), (1, 5000), (1, 384)),  # the shorter side is as wanted: upstream leaves such an image as it is
    ],
)
def test_sizes(size, published, corrected):
    assert longest_side_size(*size, 384, published=True) == published
    assert longest_side_size(*size, 384) == corrected


def canvas_of(seed, height, width, **options):
    settings = {"side": 32, "min_scale": 0.5, "max_scale": 2.0, "flip": 0.5} | options
    return draw_canvas(np.random.default_rng(seed), height, width, **settings)


sizes = st.integers(1, 80)


@given(st.integers(0, 10**6), sizes, sizes, st.booleans())
def test_crops_lie_in_the_image(seed, height, width, published):
    canvas = canvas_of(seed, height, width, published=published)
    for offset, valid, resized in zip(canvas.offset, canvas.size, canvas.resized, strict=True):
        assert valid == min(32, resized) >= 1
        assert 0 <= offset <= resized - valid


@given(st.integers(0, 10**6), st.integers(8, 80), st.integers(8, 80))
def test_boxes_go_there_and_back(seed, height, width):
    canvas = canvas_of(seed, height, width)
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (4, 2, 2)), axis=1) * (width, height)
    boxes = corners.reshape(4, 4)
    np.testing.assert_allclose(canvas.undo_boxes(canvas.move_boxes(boxes)), boxes, atol=1e-9)


@pytest.mark.parametrize("flipped", [False, True])
def test_pixels_masks_and_boxes_move_together(flipped):
    canvas = Canvas((20, 30), flipped, (40, 60), (5, 9), 32)
    mask = np.zeros((20, 30), bool)
    mask[6:14, 8:20] = True
    image = np.repeat(mask[..., None] * np.uint8(255), 3, -1)
    box = canvas.clip(canvas.move_boxes(np.array([[8, 6, 20, 14]])))[0]
    x0, y0, x1, y1 = box.astype(int)
    expected = np.zeros((32, 32), bool)
    expected[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(np.unpackbits(canvas.apply_masks(mask[None]), axis=-1)[0].astype(bool), expected)
    np.testing.assert_array_equal(canvas.apply_image(image)[0].numpy() > 127, expected)


def test_padding_is_zero_and_nothing_is_smoothed_at_full_size():
    image = np.random.default_rng(0).integers(1, 256, (20, 32, 3), np.uint8)
    placed = fit_canvas(20, 32, side=32).apply_image(image)
    np.testing.assert_array_equal(placed[:, :20].permute(1, 2, 0).numpy(), image)
    assert not placed[:, 20:].any()
    placed.fill_(0)
    assert image.all()  # not aliased


def test_bilinear_has_half_pixel_centres_and_no_antialiasing():
    image = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)
    placed = fit_canvas(40, 64, side=32).apply_image(image)
    halves = torch.from_numpy(image).float().reshape(20, 2, 32, 2, 3).mean((1, 3)).permute(2, 0, 1)
    assert (placed[:, :20] - halves).abs().max() <= 1


def test_flips_scales_and_crops_are_drawn():
    drawn = [canvas_of(seed, 40, 60) for seed in range(200)]
    assert 70 < sum(canvas.flipped for canvas in drawn) < 130
    assert not any(canvas_of(seed, 40, 60, flip=0.0).flipped for seed in range(20))
    assert len({canvas.offset for canvas in drawn}) > 50
    assert min(canvas.resized[1] for canvas in drawn) < 20
    assert max(canvas.resized[1] for canvas in drawn) > 60
