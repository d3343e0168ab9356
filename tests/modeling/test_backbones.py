"""Feature maps of every kind of backbone, and what FocalNet promises about them."""

from __future__ import annotations

import pytest
import torch

from locap.modeling.backbones.davit import DaViT
from locap.modeling.backbones.focal import FocalNet
from locap.modeling.backbones.timm_backbone import TimmBackbone
from locap.utils.errors import UsageError

FOCAL = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_levels": [4] * 4, "windows": [3] * 4, "drop_path": 0.0}
BACKBONES = {
    "focal": lambda: FocalNet(**FOCAL),
    "focal_dw": lambda: FocalNet(**FOCAL, depthwise=True),
    "patches": lambda: FocalNet(**FOCAL, conv_embed=False, post_norm=False, layer_scale=False, patch_norm=False),
    "davit": lambda: DaViT(dims=[8, 16, 32, 64], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]),
    "timm": lambda: TimmBackbone("resnet18"),
    "timm, channels last": lambda: TimmBackbone("swin_tiny_patch4_window7_224"),
}


def sizes(features: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    assert list(features) == ["res2", "res3", "res4", "res5"]
    return [tuple(x.shape[-2:]) for x in features.values()]


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_at_strides_4_to_32(name: str):
    backbone = BACKBONES[name]().eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert sizes(features) == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert {key: x.shape[1] for key, x in features.items()} == backbone.channels


@pytest.mark.parametrize("name", ["focal", "focal_dw", "patches"])
def test_odd_sizes_are_halved_upwards(name: str):
    features = BACKBONES[name]()(torch.randn(1, 3, 100, 130))
    assert sizes(features) == [(25, 33), (13, 17), (7, 9), (4, 5)]


@pytest.mark.parametrize("name", ["focal", "focal_dw"])
def test_output_norms_do_not_feed_the_next_stage(name: str):
    backbone = BACKBONES[name]().eval()
    image = torch.randn(1, 3, 64, 64)
    before = backbone(image)
    torch.nn.init.constant_(backbone.norms[0].weight, 7.0)
    after = backbone(image)
    torch.testing.assert_close(after["res2"], 7 * before["res2"])
    assert torch.equal(after["res3"], before["res3"])


@pytest.mark.parametrize("post_norm", [True, False])
def test_depthwise_block_by_hand(post_norm: bool):
    torch.manual_seed(0)
    block = FocalNet(**FOCAL, depthwise=True, post_norm=post_norm).stages[0][0]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)

    def depthwise(conv: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return block.fc2(torch.nn.functional.gelu(block.fc1(x)))

    x = given = torch.randn(1, 6, 5, 8)
    if post_norm:  # the norm follows the residual sum, unlike in the plain variant
        x = x + depthwise(block.dw1, x)
        x = block.norm1(x + block.gamma_1 * block.modulation(x))
        x = x + depthwise(block.dw2, x)
        x = block.norm2(x + block.gamma_2 * mlp(x))
    else:
        x = x + depthwise(block.dw1, x)
        x = x + block.gamma_1 * block.modulation(block.norm1(x))
        x = x + depthwise(block.dw2, x)
        x = x + block.gamma_2 * mlp(block.norm2(x))
    torch.testing.assert_close(block(given), x, atol=1e-5, rtol=1e-5)


def test_stem_padding_tells_the_variants_apart():
    assert BACKBONES["focal"]().patch_embed.proj.padding == (2, 2)
    assert BACKBONES["focal_dw"]().patch_embed.proj.padding == (3, 3)


def test_stochastic_depth_grows_to_the_last_block_and_sleeps_in_evaluation():
    backbone = FocalNet(**FOCAL | {"drop_path": 0.4})
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in backbone.stages for block in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    image = torch.randn(2, 3, 32, 32)
    backbone.eval()
    assert torch.equal(backbone(image)["res5"], backbone(image)["res5"])


def test_unknown_timm_model_names_the_nearest():
    with pytest.raises(UsageError, match="write timm:resnet18") as caught:
        TimmBackbone("resnet81")
    assert caught.value.where == "MODEL.BACKBONE.NAME"


def test_timm_model_without_the_four_strides_is_refused():
    with pytest.raises(UsageError, match=r"no feature map at stride \[4, 8, 32\]"):
        TimmBackbone("vit_tiny_patch16_224")
