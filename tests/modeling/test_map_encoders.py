"""Encoders that give one map, and several of them side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from locap.modeling.backbones.eva import TimmViT
from locap.utils.errors import UsageError


@pytest.mark.parametrize(
    ("name", "patch", "norm"),
    [
        ("vit_tiny_patch16_224", 16, "norm"),
        ("vit_small_patch14_reg4_dinov2", 14, "norm"),
        ("eva02_tiny_patch14_224", 14, "fc_norm"),
    ],
)
def test_any_vit_gives_a_map_of_whole_patches_behind_its_last_norm(name: str, patch: int, norm: str):
    torch.manual_seed(0)
    encoder = TimmViT(name, dim=24, depth=1, num_heads=2, image_size=4 * patch).eval()
    image = torch.randn(2, 3, 5 * patch + 3, 3 * patch + 1)
    found = encoder(image)
    assert found.shape == (2, encoder.out_dim, 5, 3) == (2, 24, 5, 3)
    assert encoder.patch == patch
    torch.testing.assert_close(found, encoder(image[..., : 5 * patch, : 3 * patch]))
    assert found.mean(1).abs().max() < 1e-5  # normalised
    nn.init.constant_(getattr(encoder.body, norm).bias, 2.0)
    torch.testing.assert_close(encoder(image), found + 2, atol=1e-5, rtol=0)


def test_rows_and_columns_of_the_map_are_those_of_the_image():
    torch.manual_seed(0)
    encoder = TimmViT("vit_tiny_patch16_224", dim=24, depth=0, num_heads=2, image_size=64).eval()
    image = torch.zeros(1, 3, 64, 96)
    before = encoder(image)
    image[:, :, 16:32, 80:96] = 1
    assert ((encoder(image) - before).abs().amax(1)[0] > 0).nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize(("name", "near"), [("resnet18", None), ("vit_tiny_patch16_225", "vit_tiny_patch16_224")])
def test_models_that_are_none(name: str, near: str | None):
    with pytest.raises(UsageError, match=near or "no plain ViT"):
        TimmViT(name)
