"""DaViT and SAM's encoder against numbers measured on X-Decoder's code, through the tables of its names.

Weights: entry n of the sorted original names, flat index i: 0.2 sin(0.37 i + n), and 1 more for vectors called weight.
Image: sin(0.013 i). All in float64. Numbers: the unbiased standard deviation, then the values at j/6 of the flat map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from locap.modeling.backbones import davit, sam_vit
from locap.modeling.build_backbones import build_backbone
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config
from locap.utils.errors import UsageError

DAVIT = {"dims": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "num_heads": [2, 4, 4, 8]}
SAM = {"dim": 24, "depth": 8, "num_heads": 2, "image_size": 96, "window": 4, "out_dims": (8, 16, 32, 64)}
MEASURED = {  # original tensors, image size, numbers per map
    "d3": (
        176,
        (64, 96),
        {
            "res2": [1.71143135, 1.054775, -0.11869467, 0.5305074, -0.51790765, -0.43650179, 2.48355846],
            "res3": [6.36724873, -1.25664784, 2.55474844, 15.58937382, -4.336379, -1.12947392, -1.47365371],
            "res4": [4.9811334, -2.61764119, 0.05917647, 1.83540356, 4.58447189, 0.97171799, -3.79789223],
            "res5": [6.38831923, -5.37807354, -4.61596994, 1.16629978, 5.14587968, -13.21445429, -4.64819383],
        },
    ),
    "d5": (
        176,
        (96, 64),
        {
            "res2": [1.11950725, -0.88674182, -1.77025004, 0.21277756, 1.09102564, 2.78604655, 1.12296438],
            "res3": [2.46451496, -3.77357718, 1.7546149, -1.67031747, -8.16921111, -0.6057514, -2.2035785],
            "res4": [4.16716623, -3.6789795, 1.9037871, 1.9856582, 6.87530828, 0.94503842, -3.98018206],
            "res5": [11.4144216, -7.93050482, 12.63974283, 3.81952226, 1.42866623, -14.96736605, -0.18293596],
        },
    ),
    "sam": (
        147,
        (96, 96),
        {
            "res2": [0.40838391, 0.50443489, -0.16882529, 0.08434153, -0.16522635, 0.47889935, -0.10971861],
            "res3": [0.57398579, 0.07307468, -0.10150363, -0.09212775, -0.16049169, 1.63799129, 1.50855398],
            "res4": [0.54676297, -0.12388327, 0.00975904, 0.2000428, -0.10343209, -0.14339533, -0.16452363],
            "res5": [0.52975891, -0.15618295, 0.16026824, -0.16724125, 1.11218371, 0.16991678, 0.01693675],
        },
    ),
}
PUBLISHED = {  # parameters and tensors of the original's full models
    "davit": ("", 86_927_360, 400),
    "davit, d5": (
        "MODEL.BACKBONE.DAVIT.DIM_EMBED [256,512,1024,2048] MODEL.BACKBONE.DAVIT.NUM_HEADS [8,16,32,64] "
        "MODEL.BACKBONE.DAVIT.NUM_GROUPS [8,16,32,64] MODEL.BACKBONE.DAVIT.PATCH_SIZE [7,3,3,3] "
        "MODEL.BACKBONE.DAVIT.PATCH_PADDING [3,1,1,1]",
        360_632_320,
        400,
    ),
    "vit": ("MODEL.DECODER.SIZE_DIVISIBILITY 1024", 98_358_464, 203),
}


def small(name: str) -> tuple[nn.Module, Sequence[tuple[str, str]]]:
    if name == "sam":
        return sam_vit.SamViT(**SAM), sam_vit.ORIGINAL_NAMES
    return davit.DaViT(**DAVIT, down_kernel={"d3": 2, "d5": 3}[name]), davit.ORIGINAL_NAMES


def original_names(model: nn.Module, rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return original name -> ours for every tensor; each must be in exactly one row."""
    names = {}
    for name in model.state_dict():
        found = []
        for theirs, ours in rows:
            pattern = re.escape(ours).replace(r"\{\}", r"(\d+)").replace(r"\*", "(weight|bias)")
            if match := re.fullmatch(pattern, name):
                found.append(re.sub(r"\{\}|\*", "{}", theirs).format(*match.groups()))
        assert len(found) == 1, name
        names[found[0]] = name
    return names


def fill(model: nn.Module, names: dict[str, str]) -> nn.Module:
    tensors = model.double().state_dict()
    for n, original in enumerate(sorted(names)):
        tensor = tensors[names[original]]
        values = 0.2 * torch.sin(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + n)
        shifted = tensor.dim() == 1 and original.endswith("weight")
        tensor.copy_(values.view(tensor.shape) + shifted)
    return model.eval()


def summary(x: Tensor) -> list[float]:
    flat = x.flatten()
    return [float(flat.std()), *(float(flat[j * len(flat) // 6]) for j in range(6))]


@pytest.mark.parametrize("name", MEASURED)
@torch.no_grad()
def test_maps_are_the_originals(name: str):
    num_tensors, (height, width), expected = MEASURED[name]
    model, rows = small(name)
    names = original_names(model, rows)
    assert len(names) == num_tensors
    image = torch.sin(0.013 * torch.arange(3 * height * width, dtype=torch.float64)).view(1, 3, height, width)
    found = fill(model, names)(image)
    assert {key: x.shape[1] for key, x in found.items()} == model.channels
    for key, numbers in expected.items():
        assert summary(found[key]) == pytest.approx(numbers, abs=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_from_the_configuration(name: str, tmp_path):
    overrides, num_parameters, num_tensors = PUBLISHED[name]
    cfg = configured(tmp_path, "MODEL.BACKBONE.NAME", name.split(",")[0], *overrides.split())
    with torch.device("meta"):
        backbone = build_backbone(cfg.MODEL.BACKBONE)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == num_parameters
    rows = sam_vit.ORIGINAL_NAMES if name == "vit" else davit.ORIGINAL_NAMES
    assert len(original_names(backbone, rows)) == num_tensors


@pytest.mark.parametrize(("size", "depth", "last"), [("base", 12, 11), ("large", 24, 23), ("huge", 32, 31)])
def test_every_fourth_part_of_sams_blocks_ends_globally(size: str, depth: int, last: int):
    dim, found, num_heads = sam_vit.SIZES[size]
    assert found == depth
    with torch.device("meta"):
        blocks = sam_vit.SamViT(dim=dim, depth=depth, num_heads=num_heads).blocks
    step = depth // 4
    assert [i for i, block in enumerate(blocks) if not block.window_size] == list(range(step - 1, last + 1, step))


def test_stochastic_depth_of_davit_grows_over_all_blocks():
    model = davit.DaViT(**DAVIT, drop_path=0.9)
    rates = [block.drop_path2.drop_prob for stage in model.stages for pair in stage.blocks for block in pair]
    assert rates == pytest.approx([i / 10 for i in range(10)])
    image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(image)["res5"], model(image)["res5"])
    model.eval()
    assert torch.equal(model(image)["res5"], model(image)["res5"])


def test_sam_refuses_images_that_its_positions_do_not_fit():
    with pytest.raises(UsageError, match="SIZE_DIVISIBILITY 96") as caught:
        sam_vit.SamViT(**SAM)(torch.zeros(1, 3, 64, 96))
    assert caught.value.value == "96 x 64 pixels after padding"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["MODEL.BACKBONE.NAME", "vit"], "takes images of 1024 x 1024 only"),
        (["MODEL.BACKBONE.NAME", "davit", "MODEL.BACKBONE.DAVIT.NUM_GROUPS", "[1,1,1,1]"], r"only \[4, 8, 16, 32\]"),
        (["MODEL.BACKBONE.NAME", "davit", "MODEL.BACKBONE.DAVIT.PATCH_SIZE", "[7,3,3,3]"], r"only \[3, 1, 1, 1\]"),
        (["MODEL.BACKBONE.NAME", "davit", "MODEL.BACKBONE.DAVIT.DEPTHS", "[1,1]"], "2 entries for four stages"),
        (
            ["MODEL.BACKBONE.NAME", "davit", "MODEL.BACKBONE.DAVIT.DIM_EMBED", "[130,256,512,1024]"],
            "130 is not a multiple of NUM_HEADS 4",
        ),
    ],
)
def test_what_cannot_be_built_is_said(overrides: list[str], reason: str, tmp_path):
    with pytest.raises(UsageError, match=reason):
        configured(tmp_path, *overrides)


def configured(folder, *overrides: str):
    path = folder / "model.yaml"
    path.write_text("MODEL: {NAME: pix2cap_model}")
    return load_config([path], overrides, model_schemas=MODEL_SCHEMAS)
