"""Targets of prompts: packed masks, moving, a batch for a rank without samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locap.datasets.batches import Batch, PromptTargets


@pytest.mark.parametrize("width", [1, 7, 8, 21])
def test_masks_unpack_to_what_was_packed(width):
    masks = np.random.default_rng(width).random((3, 5, width)) < 0.5
    targets = PromptTargets.blank(5)
    targets.masks = torch.from_numpy(np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(targets.unpacked_masks(width).numpy(), masks)
    targets.masks = None
    with pytest.raises(ValueError, match="mask"):
        targets.unpacked_masks(width)


def test_what_is_cut_by_tokens_stays_on_the_host():
    targets = PromptTargets.blank(8)
    targets.masks = torch.zeros(0, 8, 1, dtype=torch.uint8)
    moved = Batch([], [targets], [], []).to("meta").targets[0]
    for name in ("text", "context", "learns", "word_boxes"):
        assert getattr(moved, name) is getattr(targets, name)
    names = ("prompt_points", "prompt_labels", "boxes_xyxy", "masks")
    devices = {name: getattr(moved, name).device.type for name in names}
    assert set(devices.values()) == {"meta"}
    assert moved.size == (8, 8)


def test_a_blank_batch_of_prompts():
    batch = Batch.blank(16, PromptTargets)
    assert batch.images[0].shape == (3, 16, 16)
    assert isinstance(batch.targets[0], PromptTargets)
    assert len(batch.targets[0]) == 0
