"""Encoders that give one map, and several of them side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from locap.modeling.backbones.eva import ORIGINAL_NAMES as EVA_NAMES
from locap.modeling.backbones.eva import TimmViT
from locap.modeling.backbones.fused import CanvasEncoder, FusedEncoder
from locap.modeling.backbones.sam_encoder import ORIGINAL_NAMES, TRANSFORMERS_NAMES, SamEncoder
from locap.modeling.checkpoints.key_table import KeyTable
from locap.modeling.layers.resampling import resize_map
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


MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]


class Patches(nn.Module):
    """The mean of each patch; remembers what it was given."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch, self.out_dim, self.given = patch, 3, None
        self.scale = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.given = images
        return self.dropout(nn.functional.avg_pool2d(images, self.patch)) * self.scale


def canvas_encoder(patch: int, **options) -> CanvasEncoder:
    return CanvasEncoder(Patches(patch), mean=MEAN, std=STD, **options)


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((30, 48), (48, 20))
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.parametrize(("grid", "size"), [("largest", (7, 7)), ("first", (6, 6))])
def test_maps_are_concatenated_on_one_grid(grid: str, size: tuple[int, int]):
    fused = FusedEncoder({"sam": canvas_encoder(16), "eva": canvas_encoder(14)}, grid=grid).eval()
    found = fused(images(), canvas=(96, 96))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "sam": (2, 3, 6, 6),
        "eva": (2, 3, 7, 7),
        "fused": (2, 6, *size),
    }
    assert fused.out_dims == {"sam": 3, "eva": 3, "fused": 6}
    wanted = torch.cat([resize_map(found[name], size) for name in ("sam", "eva")], 1)
    assert torch.equal(found["fused"], wanted)


def test_some_maps_are_fused_in_the_order_asked_for():
    encoders = {name: canvas_encoder(patch) for name, patch in (("a", 8), ("b", 12), ("c", 16))}
    found = FusedEncoder(encoders, fuse=("c", "a")).eval()(images(), canvas=(48, 48))
    assert torch.equal(found["fused"][:, 3:], found["a"])
    assert list(found) == ["a", "b", "c", "fused"]
    with pytest.raises(ValueError, match="fused"):
        FusedEncoder({"fused": canvas_encoder(8)})


@pytest.mark.parametrize(
    ("canvas", "size"), [((384, 384), (378, 378)), ((48, 64), (42, 70)), ((5, 100), (14, 98)), ((28, 42), (28, 42))]
)
def test_patches_divide_what_an_encoder_gets(canvas: tuple[int, int], size: tuple[int, int]):
    assert canvas_encoder(14).input_size(canvas) == size
    assert canvas_encoder(14, remainder="unseen").input_size(canvas) == canvas
    assert canvas_encoder(14, image_size=(70, 28)).input_size(canvas) == (70, 28)


def test_the_same_place_on_every_map_unless_published():
    """A bright right edge: the encoder of 14 sees it when the canvas is resized, and not when the rest is left out."""
    image = torch.zeros(3, 96, 96)
    image[..., -4:] = 255
    columns = {}
    for remainder in ("resized", "unseen"):
        encoder = canvas_encoder(10, remainder=remainder).eval()
        columns[remainder] = encoder([image], canvas=(96, 96))[0, 0, 0]
    assert len(columns["resized"]) == 10
    assert columns["resized"][-1] > columns["resized"][0] + 1
    assert len(columns["unseen"]) == 9
    torch.testing.assert_close(columns["unseen"], columns["unseen"][:1].expand(9))


def test_padding_is_zero_after_normalisation_and_each_encoder_has_its_own_statistics():
    encoder = canvas_encoder(8)
    encoder(images(), canvas=(48, 48))
    given = encoder.encoder.given
    assert not given[0, :, 30:].any()
    assert not given[1, :, :, 20:].any()
    expected = (images()[0].float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(given[0, :, :30], expected)
    with pytest.raises(ValueError, match="do not fit"):
        encoder(images(), canvas=(40, 48))


def test_a_frozen_encoder_rests_and_learns_nothing():
    frozen, free = canvas_encoder(8, frozen=True), canvas_encoder(8)
    fused = FusedEncoder({"frozen": frozen, "free": free}).train()
    assert free.encoder.training
    assert not frozen.encoder.training
    found = fused(images(), canvas=(48, 48))
    assert torch.equal(found["frozen"], fused.eval()(images(), canvas=(48, 48))["frozen"])
    assert not found["frozen"].requires_grad
    found["fused"].sum().backward()
    assert frozen.encoder.scale.grad is None
    assert free.encoder.scale.grad is not None
    assert canvas_encoder(8, frozen=True, frozen_in_eval=False).train().encoder.training


def test_eva_and_sam_side_by_side():
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "num_heads": 2}
    eva = TimmViT("eva02_large_patch14_224", image_size=56, drop_path=0.5, **sizes)
    sam = SamEncoder(image_size=64, window=3, global_blocks=(1,), out_dim=8, drop_path=0.5, **sizes)
    fused = FusedEncoder(
        {
            "eva": CanvasEncoder(eva, mean=MEAN, std=STD),
            "sam": CanvasEncoder(sam, mean=MEAN, std=STD, frozen=True),
        }
    ).train()
    first, second = (fused(images(), canvas=(96, 96)) for _ in range(2))
    assert first["fused"].shape == (2, 40, 7, 7)
    assert torch.equal(first["sam"], second["sam"])
    assert not torch.equal(first["eva"], second["eva"])  # paths are dropped where it learns
    first["fused"].square().sum().backward()
    assert all(parameter.grad is None for parameter in sam.parameters())
    missing = [name for name, parameter in eva.named_parameters() if parameter.grad is None]
    assert not missing


def test_every_tensor_of_sam_has_its_original_name():
    encoder = SamEncoder(dim=16, depth=2, num_heads=2, image_size=32, window=2, global_blocks=(1,), out_dim=8)
    for names in (ORIGINAL_NAMES, TRANSFORMERS_NAMES):
        table = KeyTable(names)
        theirs = [table.theirs(name) for name in encoder.state_dict()]
        assert None not in theirs
        assert len(set(theirs)) == len(theirs)


def test_an_encoder_in_half_precision_beside_one_in_single():
    rough = canvas_encoder(8)
    rough.encoder.to(torch.bfloat16)
    fused = FusedEncoder({"rough": rough, "fine": canvas_encoder(8)}).eval()
    found = fused(images(), canvas=(48, 48))
    assert [x.dtype for x in found.values()] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(found["fused"][:, :3], found["fused"][:, 3:], atol=2e-2, rtol=0)


def test_tensors_of_the_published_encoders():
    with torch.device("meta"):
        eva = TimmViT("eva02_large_patch14_224")
        sam = SamEncoder(dim=1280, depth=32, num_heads=16)
    table = KeyTable(EVA_NAMES)
    shapes = {table.theirs(name): tuple(tensor.shape) for name, tensor in eva.state_dict().items()}
    assert shapes["pos_embed"] == (1, 257, 1024)
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 14, 14)
    assert shapes["blocks.23.mlp.w1.weight"] == shapes["blocks.23.mlp.w2.weight"] == (2730, 1024)
    assert shapes["blocks.23.attn.q_bias"] == shapes["blocks.23.attn.v_bias"] == shapes["ln_post.bias"] == (1024,)
    assert len(shapes) == 4 + 24 * 19 + 2
    shapes = {name: tuple(tensor.shape) for name, tensor in sam.state_dict().items()}
    assert shapes["pos_embed"] == (1, 64, 64, 1280)
    tables = [shapes[f"blocks.{index}.attn.rel_pos_h"] for index in range(32)]
    assert [index for index, shape in enumerate(tables) if shape == (127, 80)] == [7, 15, 23, 31]
    assert tables.count((27, 80)) == 28
    assert shapes["blocks.0.attn.qkv.weight"] == (3840, 1280)
    assert shapes["neck.2.weight"] == (256, 256, 3, 3)


@pytest.mark.parametrize("remainder", ["resized", "unseen"])
def test_published_grids_of_384_pixels(remainder: str):
    fused = FusedEncoder({"git": canvas_encoder(14, remainder=remainder), "sam": canvas_encoder(16)}).eval()
    found = fused([torch.zeros(3, 288, 384, dtype=torch.uint8)], canvas=(384, 384))
    assert {name: tuple(x.shape[2:]) for name, x in found.items()} == {
        "git": (27, 27),
        "sam": (24, 24),
        "fused": (27, 27),
    }
