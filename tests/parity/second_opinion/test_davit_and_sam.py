"""DaViT and SAM's encoder (built of timm's blocks) against transformers' Florence-2 and SAM.

Not compared: SEEM's pyramid, which SAM's neck stands in for there (their last map goes through our pyramid here).
"""

from __future__ import annotations

import pytest
from torch import Tensor

from locap.modeling.backbones.davit import DaViT
from locap.modeling.backbones.sam_vit import SamViT

FLORENCE = (
    (r"^convs\.0", "stem"),
    (r"^convs\.(\d)", r"stages.\1.downsample"),
    (r"^blocks\.(\d)", r"stages.\1.blocks"),
    (r"(window|channel)_attn", "attn"),
    (r"block\.conv(\d)", r"block.cpe\1.proj"),
    (r"\.ffn\.", ".mlp."),
)
SAM = (
    (r"^neck\..*", ""),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"^layers", "blocks"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"mlp\.lin", "mlp.fc"),
)


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1)])
@pytest.mark.parametrize(("size", "window"), [((64, 96), 7), ((96, 64), 2), ((128, 32), 3)])
def test_davit(other, randomise, copy_weights, assert_agree, noise, kernel, padding, size, window):
    shape = {"depths": [1, 2, 1, 1], "num_heads": [2, 4, 4, 8]}
    config = other("transformers.models.florence2.configuration_florence2", "Florence2VisionConfig")(
        embed_dim=[16, 32, 64, 128],
        num_groups=shape["num_heads"],
        patch_size=[7, kernel, kernel, kernel],
        patch_padding=[3, padding, padding, padding],
        window_size=window,
        **shape,
    )
    theirs = other("transformers.models.florence2.modeling_florence2", "Florence2VisionBackbone")(config)
    theirs = randomise(theirs.double())
    ours = DaViT(dims=[16, 32, 64, 128], window=window, down_kernel=kernel, **shape).double()
    copy_weights(ours, theirs, FLORENCE)
    maps: list[Tensor] = []
    for blocks in theirs.blocks:
        blocks[-1].register_forward_hook(lambda _, __, out: maps.append(out))

    def run_theirs(image: Tensor) -> list[Tensor]:
        maps.clear()
        theirs(image)
        return maps

    assert_agree(lambda image: ours(image).values(), run_theirs, [noise(2, 3, *size)], 1e-10)


@pytest.mark.parametrize(("image_size", "window", "heads"), [(96, 4, 2), (64, 4, 4), (80, 3, 1)])
def test_sam(other, randomise, copy_weights, assert_agree, noise, image_size: int, window: int, heads: int):
    config = other("transformers", "SamVisionConfig")(
        hidden_size=24,
        output_channels=8,
        num_hidden_layers=8,
        num_attention_heads=heads,
        image_size=image_size,
        window_size=window,
        global_attn_indexes=[1, 3, 5, 7],
        mlp_dim=96,
    )
    theirs = randomise(other("transformers.models.sam.modeling_sam", "SamVisionEncoder")(config).double())
    ours = randomise(
        SamViT(
            dim=24, depth=8, num_heads=heads, image_size=image_size, window=window, out_dims=(8, 16, 32, 64)
        ).double(),
        seed=5,
    )
    copy_weights(ours, theirs, SAM, own=("neck.",))
    last: list[Tensor] = []
    theirs.neck.register_forward_pre_hook(lambda _, given: last.append(given[0].permute(0, 3, 1, 2)))

    def run_theirs(image: Tensor) -> list[Tensor]:
        theirs(image)
        return [layers(last[-1]) for layers in ours.neck.values()]

    assert_agree(lambda image: ours(image).values(), run_theirs, [noise(2, 3, image_size, image_size)], 1e-10)
