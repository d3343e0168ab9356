"""SAM's image encoder with its neck (Kirillov et al., 2023), for canvases of any size.

timm's patch embedding and blocks (window padding on the right side of maps of any shape), our attention: its tables of
relative positions are resampled to the map. Published PixelLLM antialiases there, SAM itself does not.

Shapes: B batch, D width of the transformer, h x w map at 1 / patch of the canvas, H heads, N = tokens of a window.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.recompute import recompute
from ..layers.resampling import resize_grid, resize_rows
from .sam_vit import BODY_NAMES, layer_norm

Tables = Literal["antialiased", "sam"]


class SamEncoder(nn.Module):
    """(B, 3, height, width) -> (B, out_dim, h, w); pixels right and below of the last whole patch are not seen.

    Args:
        dim, depth, num_heads: of the transformer, see `sam_vit.SIZES`.
        image_size: side of the square images that the tables of positions are made for, pixels.
        patch: side of a patch, pixels.
        window: side of the attention windows, tokens.
        global_blocks: blocks that see the whole image; None: every fourth part of the depth ends with one.
        out_dim: channels behind the neck.
        drop_path: rate of the last block, growing linearly from 0.
        tables: how tables of relative positions reach another size; ``"sam"`` is linear without antialiasing.
        recomputing: keep only the blocks' inputs for the backward pass.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        image_size: int = 1024,
        patch: int = 16,
        window: int = 14,
        global_blocks: tuple[int, ...] | None = None,
        out_dim: int = 256,
        drop_path: float = 0.0,
        tables: Tables = "antialiased",
        recomputing: bool = False,
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer_sam import VisionTransformerSAM  # timm takes seconds to import

        if global_blocks is None:
            global_blocks = tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))
        body = VisionTransformerSAM(
            img_size=image_size,
            patch_size=patch,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            window_size=window,
            global_attn_indexes=global_blocks,
            drop_path_rate=drop_path,
            norm_layer=layer_norm,
            num_classes=0,
            neck_chans=out_dim,
        )
        self.patch, self.out_dim, self.recomputing = patch, out_dim, recomputing
        self.patch_embed, self.pos_embed = body.patch_embed, body.pos_embed
        self.blocks, self.neck = body.blocks, body.neck
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            side = block.window_size or image_size // patch
            block.attn = RelativeAttention(dim, num_heads, side=side, tables=tables)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, height, width) -> (B, out_dim, height // patch, width // patch)."""
        height, width = (side // self.patch * self.patch for side in images.shape[-2:])
        x = self.patch_embed(images[..., :height, :width])  # B h w D
        x = x + resize_grid(self.pos_embed, tuple(x.shape[1:3]))
        for block in self.blocks:
            x = recompute(block, x, enabled=self.recomputing)
        return self.neck(x.permute(0, 3, 1, 2))


class RelativeAttention(nn.Module):
    """Self-attention of a map, with a bias per pair of places: q · (table of row distances + of column distances).

    Args:
        dim: width D.
        num_heads: H.
        side: height and width of the maps that the tables are made for; others resample them.
        tables: see `SamEncoder`.
    """

    def __init__(self, dim: int, num_heads: int, *, side: int, tables: Tables) -> None:
        super().__init__()
        self.num_heads, self.tables = num_heads, tables
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D)."""
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # B H N d
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q, height, width).to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))

    def _bias(self, q: Tensor, height: int, width: int) -> Tensor:
        """(B, H, N, d) -> (B, H, N, N); the queries are not scaled."""
        q = q.unflatten(2, (height, width))
        rows = torch.einsum("bnhwd,hkd->bnhwk", q, self._distances(self.rel_pos_h, height).to(q.dtype))
        columns = torch.einsum("bnhwd,wkd->bnhwk", q, self._distances(self.rel_pos_w, width).to(q.dtype))
        return (rows[..., None] + columns[..., None, :]).flatten(-2).flatten(2, 3)

    def _distances(self, table: Tensor, size: int) -> Tensor:
        """(L, d) -> (size, size, d): the row of the table for query minus key."""
        length = 2 * size - 1
        if self.tables == "antialiased" or len(table) == length:
            table = resize_rows(table, length)
        else:
            table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
        places = torch.arange(size, device=table.device)
        return table[places[:, None] - places + size - 1]


# transformers' names (SamModel, below "vision_encoder.") and ours; {} is an index, * is weight or bias
TRANSFORMERS_NAMES = (
    ("pos_embed", "pos_embed"),
    ("patch_embed.projection.*", "patch_embed.proj.*"),
    ("layers.{}.layer_norm{}.*", "blocks.{}.norm{}.*"),
    ("layers.{}.attn.qkv.*", "blocks.{}.attn.qkv.*"),
    ("layers.{}.attn.proj.*", "blocks.{}.attn.proj.*"),
    ("layers.{}.attn.rel_pos_h", "blocks.{}.attn.rel_pos_h"),
    ("layers.{}.attn.rel_pos_w", "blocks.{}.attn.rel_pos_w"),
    ("layers.{}.mlp.lin{}.*", "blocks.{}.mlp.fc{}.*"),
    *(
        (f"neck.{theirs}.*", f"neck.{index}.*")
        for index, theirs in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))
    ),
)

# PixelLLM's names (SAM's own) and ours, below "sam_backbone."
ORIGINAL_NAMES = (*BODY_NAMES, ("neck.{}.*", "neck.{}.*"))
