"""Backbones of four levels from their configuration, for every system."""

from __future__ import annotations

from typing import Any

from torch import nn

from .backbones.davit import DaViT
from .backbones.focal import FocalNet
from .backbones.sam_vit import SIZES, SamViT
from .backbones.timm_backbone import TimmBackbone


def build_backbone(cfg: Any) -> nn.Module:
    """Return the image encoder that MODEL.BACKBONE names."""
    if cfg.NAME.startswith("timm:"):
        return TimmBackbone(cfg.NAME.removeprefix("timm:"), pretrained=cfg.LOAD_PRETRAINED)
    if cfg.NAME == "vit":
        dim, depth, num_heads = SIZES[cfg.VIT.SIZE]
        return SamViT(dim=dim, depth=depth, num_heads=num_heads)
    if cfg.NAME == "davit":
        return DaViT(
            dims=cfg.DAVIT.DIM_EMBED,
            depths=cfg.DAVIT.DEPTHS,
            num_heads=cfg.DAVIT.NUM_HEADS,
            window=cfg.DAVIT.WINDOW_SIZE,
            down_kernel=cfg.DAVIT.PATCH_SIZE[-1],
            drop_path=cfg.DAVIT.DROP_PATH_RATE,
        )
    return build_focal(cfg.FOCAL, depthwise=cfg.NAME == "focal_dw")


def build_focal(cfg: Any, *, depthwise: bool = False) -> FocalNet:
    """Return the FocalNet that a FOCAL section describes."""
    return FocalNet(
        embed_dim=cfg.EMBED_DIM,
        depths=cfg.DEPTHS,
        num_levels=cfg.FOCAL_LEVELS,
        windows=cfg.FOCAL_WINDOWS,
        mlp_ratio=cfg.MLP_RATIO,
        dropout=cfg.DROP_RATE,
        drop_path=cfg.DROP_PATH_RATE,
        conv_embed=cfg.USE_CONV_EMBED,
        patch_norm=cfg.PATCH_NORM,
        scaling_modulator=cfg.SCALING_MODULATOR,
        post_norm=cfg.USE_POSTLN,
        modulation_post_norm=cfg.USE_POSTLN_IN_MODULATION,
        layer_scale=cfg.USE_LAYERSCALE,
        depthwise=depthwise,
        checkpoint=cfg.USE_CHECKPOINT,
    )
