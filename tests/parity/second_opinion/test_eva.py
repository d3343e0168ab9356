"""EVA-02 through timm against its definition written out, as published PixelLLM runs it (RoPE counted in patches)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from locap.modeling.backbones.eva import ORIGINAL_NAMES, TimmViT
from locap.modeling.checkpoints.key_table import KeyTable

TINY = {"dim": 64, "depth": 2, "num_heads": 4, "image_size": 56}  # a table of 4 x 4 places


def encoder(randomise, **options) -> TimmViT:
    return randomise(TimmViT("eva02_large_patch14_224", **TINY, **options)).double()


def original(tensors: dict[str, Tensor], image: Tensor, heads: int) -> Tensor:
    """Return the map of a stack of EVA-02 blocks whose tensors have the original's names."""
    x = F.conv2d(image, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=14)
    height, width = x.shape[2:]
    x = torch.cat((tensors["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT), 1)
    table = tensors["pos_embed"]
    side = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].mT.unflatten(2, (side, side))
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True).flatten(2).mT
    x = x + torch.cat((table[:, :1], grid), 1)
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks"))
    for index in range(depth):
        block = {name.split(".", 2)[2]: x for name, x in tensors.items() if name.startswith(f"blocks.{index}.")}
        x = x + attention(block, norm(block, "norm1", x, 1e-6), heads, height, width)
        y = norm(block, "norm2", x, 1e-6)
        y = norm(block, "mlp.ffn_ln", F.silu(linear(block, "mlp.w1", y)) * linear(block, "mlp.w2", y), 1e-5)
        x = x + linear(block, "mlp.w3", y)
    return norm(tensors, "ln_post", x, 1e-6)[:, 1:].mT.unflatten(2, (height, width))


def attention(block: dict[str, Tensor], x: Tensor, heads: int, height: int, width: int) -> Tensor:
    q, k, v = (F.linear(x, block[f"attn.{part}_proj.weight"]) for part in "qkv")
    q, v = q + block["attn.q_bias"], v + block["attn.v_bias"]
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    q, k = (torch.cat((part[:, :, :1], rotated(part[:, :, 1:], height, width)), 2) for part in (q, k))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return linear(block, "attn.proj", (weights @ v).transpose(1, 2).flatten(2))


def rotated(x: Tensor, height: int, width: int) -> Tensor:
    """Turn pairs of channels: the first half by the row, the second by the column."""
    per_axis = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(0, per_axis, 2).double() / per_axis)
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * frequencies for place in (rows, columns)], 1)  # places x d/2
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def norm(tensors: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def linear(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def named(model: TimmViT) -> dict[str, Tensor]:
    table = KeyTable(ORIGINAL_NAMES)
    return {table.theirs(name): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("size", [(77, 77), (90, 60), (56, 56)])
def test_published_eva(randomise, noise, size: tuple[int, int]):
    ours = encoder(randomise, stretched_rope=False, mlp_norm_eps=1e-5)
    image = noise(2, 3, *size)
    expected = original(named(ours), image, heads=4)
    torch.testing.assert_close(ours(image), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("options", "least"), [({"mlp_norm_eps": 1e-5}, 0.1), ({"stretched_rope": False}, 1e-7)], ids=["rope", "epsilon"]
)
def test_each_switch_changes_the_result(randomise, noise, options: dict, least: float):
    image = noise(2, 3, 77, 77)
    published = encoder(randomise, stretched_rope=False, mlp_norm_eps=1e-5)(image)
    assert (encoder(randomise, **options)(image) - published).abs().max() > least


def test_stretched_rope_is_that_of_timm(other, randomise, noise):
    timm_eva = other("timm.models.eva", "Eva")
    ours = encoder(randomise)
    theirs = timm_eva(
        **{"img_size": 70, "patch_size": 14, "num_classes": 0, "embed_dim": 64, "depth": 2, "num_heads": 4},
        **{"mlp_ratio": 8 / 3, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True},
        ref_feat_shape=(16, 16),
    ).double()
    state = {name.removeprefix("body."): tensor for name, tensor in ours.state_dict().items()}
    grid = state["pos_embed"][:, 1:].mT.unflatten(2, (4, 4))
    grid = F.interpolate(grid, size=(5, 5), mode="bicubic", antialias=True).flatten(2).mT
    theirs.load_state_dict({**state, "pos_embed": torch.cat((state["pos_embed"][:, :1], grid), 1)})
    image = noise(2, 3, 70, 70)
    expected = theirs.eval().fc_norm(theirs.forward_features(image))[:, 1:].mT.unflatten(2, (5, 5))
    torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=0)
