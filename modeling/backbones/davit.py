"""DaViT (Ding et al., 2022, "DaViT: Dual Attention Vision Transformers"), as X-Decoder d3 and d5 use it.

timm's blocks, arranged as X-Decoder's: the same convolutions, norms and attentions, and stage maps that leave without a
norm. timm pads odd maps where X-Decoder drops a row or column, so the two agree on multiples of 32, which the pipeline
pads images to.

Shapes: B batch, H x W the image, C the stage's width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DaViT(nn.Module):
    """Four stages at strides 4, 8, 16, 32; blocks attend within windows, then across channels.

    Args:
        dims: widths of the stages.
        depths: pairs of blocks per stage.
        num_heads: heads of the window attention and groups of the channel attention, per stage.
        window: side of the windows, tokens; they neither shift nor mask the padding at the border.
        down_kernel: kernel of the convolutions between stages, 2 (d3) or 3 (d5).
        drop_path: stochastic depth of the last block; it grows linearly from 0.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int = 7,
        down_kernel: int = 2,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        from timm.layers import DropPath  # timm takes seconds to import: only who needs it waits
        from timm.models.davit import DaVit

        body = DaVit(
            embed_dims=tuple(dims),
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window,
            down_kernel_size=down_kernel,
            channel_attn_v2=True,  # queries scaled by the number of tokens, as X-Decoder does
            named_blocks=True,
            num_classes=0,
        )
        self.channels = {f"res{stage + 2}": dim for stage, dim in enumerate(dims)}
        self.stem, self.stages = body.stem, body.stages
        blocks = [block for stage in self.stages for pair in stage.blocks for block in pair]
        rates = torch.linspace(0, drop_path, len(blocks), device="cpu").tolist()
        for block, rate in zip(blocks, rates, strict=True):
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ..., "res5": (B, C', H/32, W/32)}."""
        features = {}
        x = self.stem(images)
        for name, stage in zip(self.channels, self.stages, strict=True):
            x = features[name] = stage(x)
        return features


def _rows() -> tuple[tuple[str, str], ...]:
    rows = [("convs.0.proj.*", "stem.conv.*"), ("convs.0.norm.*", "stem.norm.*")]
    for stage in (1, 2, 3):
        rows.append((f"convs.{stage}.proj.*", f"stages.{stage}.downsample.conv.*"))
        rows.append((f"convs.{stage}.norm.*", f"stages.{stage}.downsample.norm.*"))
    for kind, attention in (("spatial_block", "window_attn"), ("channel_block", "channel_attn")):
        rows += [
            (f"blocks.{{}}.{{}}.{kind}.{theirs}", f"stages.{{}}.blocks.{{}}.{kind}.{ours}")
            for theirs, ours in (
                ("conv{}.fn.dw.*", "cpe{}.proj.*"),
                (f"{attention}.norm.*", "norm1.*"),
                (f"{attention}.fn.qkv.*", "attn.qkv.*"),
                (f"{attention}.fn.proj.*", "attn.proj.*"),
                ("ffn.norm.*", "norm2.*"),
                ("ffn.fn.net.fc{}.*", "mlp.fc{}.*"),
            )
        ]
    return tuple(rows)


# X-Decoder's names and ours, below "backbone."; {} is an index, * is weight or bias
ORIGINAL_NAMES = _rows()
