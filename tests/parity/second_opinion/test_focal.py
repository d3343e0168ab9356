"""FocalNet against timm's and transformers'.

Not compared, because the other side has no such thing:

* ``depthwise`` blocks (X-Decoder's ``focal_dw``) and ``patch_norm=False``: both libraries always have the stem's norm,
  neither has the extra convolutions.
* The output norms: both return the stages' maps without them. Here their maps go through a layer norm with our weights.
* timm pads nothing. Its stem drops up to 3 rows and columns that ours pads, so it is given the padded image. Without
  ``conv_embed`` its downsampling drops odd ones as well, so only multiples of 32 agree there.
* transformers' ``FocalNetBackbone`` returns the maps *after* downsampling, so stages are read inside ``FocalNetModel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from locap.modeling.backbones.focal import FocalNet

BASE = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_levels": [4] * 4, "windows": [3] * 4, "drop_path": 0.0}
FOCAL = {
    "published": BASE,
    "pre-norm": BASE | {"post_norm": False},
    "norm in the modulation": BASE | {"modulation_post_norm": True, "mlp_ratio": 2.0},
    "no layer scale": BASE | {"layer_scale": False, "post_norm": False},
    "sum of levels": BASE | {"scaling_modulator": False},
    "levels and windows": BASE | {"num_levels": [1, 2, 3, 4], "windows": [9, 7, 5, 3], "depths": [2, 1, 1, 1]},
    "patches": BASE | {"conv_embed": False, "layer_scale": False, "post_norm": False, "scaling_modulator": False},
}
ODD = (100, 130)
CASES = [(name, size) for name in FOCAL for size in ((64, 96), ODD)]
TIMM = (
    (r"^(head|norm)\..*", ""),
    (r"^stem", "patch_embed"),
    (r"^layers\.(\d)\.blocks", r"stages.\1"),
    (r"^layers\.1\.downsample", "downsamples.0"),
    (r"^layers\.2\.downsample", "downsamples.1"),
    (r"^layers\.3\.downsample", "downsamples.2"),
    (r"(norm\d)_post", r"\1"),
    (r"\.ls(\d)\.gamma", r".gamma_\1"),
    (r"\.mlp", ""),
    (r"(focal_layers\.\d)\.0", r"\1"),
)
TRANSFORMERS = (
    (r"^layernorm\..*", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^encoder\.stages\.(\d)\.layers", r"stages.\1"),
    (r"^encoder\.stages\.(\d)\.downsample", r"downsamples.\1"),
    (r"(downsamples\.\d)\.projection", r"\1.proj"),
    (r"projection_in", "f"),
    (r"projection_context", "h"),
    (r"projection_out", "proj"),
    (r"modulation\.layernorm", "modulation.norm"),
    (r"\.mlp", ""),
    (r"(focal_layers\.\d)\.0", r"\1"),
)


def through_output_norms(ours: FocalNet, maps: Iterable[Tensor]) -> list[Tensor]:
    """Normalise channels-last maps with our output norms' weights."""
    return [
        F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-5).permute(0, 3, 1, 2)
        for x, norm in zip(maps, ours.norms, strict=True)
    ]


@pytest.fixture
def focal_net(randomise: Callable[..., nn.Module]) -> Callable[[dict[str, Any]], FocalNet]:
    return lambda options: randomise(FocalNet(**options).double(), seed=5)


@pytest.mark.parametrize(("name", "size"), [case for case in CASES if case != ("patches", ODD)])
def test_with_timm(focal_net, other, randomise, copy_weights, assert_agree, noise, name: str, size: tuple[int, int]):
    options = FOCAL[name]
    theirs = other("timm.models.focalnet", "FocalNet")(
        embed_dim=options["embed_dim"],
        depths=options["depths"],
        mlp_ratio=options.get("mlp_ratio", 4.0),
        focal_levels=options["num_levels"],
        focal_windows=options["windows"],
        use_overlap_down=options.get("conv_embed", True),
        use_post_norm=options.get("post_norm", True),
        use_post_norm_in_modulation=options.get("modulation_post_norm", False),
        normalize_modulator=options.get("scaling_modulator", True),
        layerscale_value=1e-4 if options.get("layer_scale", True) else None,
    )
    theirs = randomise(theirs.double())
    ours = focal_net(options)
    copy_weights(ours, theirs, TIMM, own=("norms.",))
    padding = (0, -size[1] % 4, 0, -size[0] % 4)

    def run_theirs(image: Tensor) -> list[Tensor]:
        maps = theirs.forward_intermediates(F.pad(image, padding), intermediates_only=True)
        return through_output_norms(ours, (x.permute(0, 2, 3, 1) for x in maps))

    assert_agree(lambda image: ours(image).values(), run_theirs, [noise(2, 3, *size)], 1e-9)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_with_transformers(
    focal_net, other, randomise, copy_weights, assert_agree, noise, name: str, size: tuple[int, int]
):
    options = FOCAL[name]
    config = other("transformers", "FocalNetConfig")(
        embed_dim=options["embed_dim"],
        depths=options["depths"],
        mlp_ratio=options.get("mlp_ratio", 4.0),
        focal_levels=options["num_levels"],
        focal_windows=options["windows"],
        use_conv_embed=options.get("conv_embed", True),
        use_post_layernorm=options.get("post_norm", True),
        use_post_layernorm_in_modulation=options.get("modulation_post_norm", False),
        normalize_modulator=options.get("scaling_modulator", True),
        use_layerscale=options.get("layer_scale", True),
    )
    theirs = randomise(other("transformers", "FocalNetModel")(config).double())
    ours = focal_net(options)
    copy_weights(ours, theirs, TRANSFORMERS, own=("norms.",))
    maps: list[Tensor] = []
    for stage in theirs.encoder.stages:
        stage.register_forward_hook(lambda _, given, out: maps.append(out[1].unflatten(1, given[1])))

    def run_theirs(image: Tensor) -> list[Tensor]:
        maps.clear()
        theirs(image)
        return through_output_norms(ours, maps)

    assert_agree(lambda image: ours(image).values(), run_theirs, [noise(2, 3, *size)], 1e-9)
