"""Four levels as one map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locap.modeling.backbones.pyramid_map import LEVELS, PyramidMap


class Pooled(nn.Module):
    """Levels that are means of the image's patches, so that each is known."""

    channels = dict.fromkeys(LEVELS, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: F.avg_pool2d(images, 4 * 2**k) for k, name in enumerate(LEVELS)}


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_levels_are_projected_resized_added_mixed_and_normed(stride: int):
    torch.manual_seed(0)
    model, images = PyramidMap(Pooled(), dim=6, stride=stride), torch.randn(2, 3, 64, 96)
    found = model(images)
    size = (64 // stride, 96 // stride)
    assert found.shape == (2, 6, *size)
    assert (model.out_dim, model.stride, model.patch) == (6, stride, 32)
    added = 0
    for name, level in Pooled()(images).items():
        lateral = model.laterals[name]
        shrink = max(level.shape[-1] // size[1], 1)
        patches = F.unfold(level, shrink, stride=shrink)  # a finer level's patch is a cell's channels
        projected = lateral.weight.flatten(1) @ patches + lateral.bias[:, None]
        projected = projected.unflatten(-1, (level.shape[-2] // shrink, level.shape[-1] // shrink))
        added = added + F.interpolate(projected, size, mode="bilinear", align_corners=False, antialias=True)
    mixed = F.gelu(added)
    for conv, last in ((model.mix[1], False), (model.mix[3], True)):
        mixed = F.conv2d(mixed, conv.weight, conv.bias, padding=1)
        mixed = mixed if last else F.gelu(mixed)
    mixed = added + mixed
    centred = mixed - mixed.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_level_matters_and_learns():
    torch.manual_seed(0)
    model = PyramidMap(Pooled(), dim=6, stride=8)
    (model(torch.randn(1, 3, 64, 64)) * torch.randn(1, 6, 8, 8)).sum().backward()
    assert all(p.grad.any() for p in model.parameters())
