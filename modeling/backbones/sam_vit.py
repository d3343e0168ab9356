"""SAM's image encoder (Kirillov et al., 2023) with a feature pyramid instead of its neck, as SEEM uses it.

timm's patch embedding and blocks; the pyramid is X-Decoder's. The position tables are never resized, as there: images
are 1024 x 1024, so that needs MODEL.DECODER.SIZE_DIVISIBILITY 1024 and no side longer than that.

Shapes: B batch, D width of the transformer.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...utils.errors import UsageError

SIZES = {  # width, depth, heads; every fourth part of the depth ends with a block that sees the whole image
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class SamViT(nn.Module):
    """A plain transformer at stride 16 and four maps made of its last one.

    Args:
        dim, depth, num_heads: of the transformer, see `SIZES`.
        image_size: side of the square images, pixels.
        window: side of the attention windows, tokens.
        out_dims: widths of res2 ... res5.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        image_size: int = 1024,
        window: int = 14,
        out_dims: tuple[int, int, int, int] = (128, 256, 512, 1024),
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer_sam import VisionTransformerSAM  # timm takes seconds to import

        body = VisionTransformerSAM(
            img_size=image_size,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            window_size=window,
            global_attn_indexes=tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4)),
            norm_layer=layer_norm,
            use_rel_pos=True,
            num_classes=0,
            neck_chans=0,
        )
        self.image_size = image_size
        self.channels = {f"res{i + 2}": out_dim for i, out_dim in enumerate(out_dims)}
        self.patch_embed, self.pos_embed, self.blocks = body.patch_embed, body.pos_embed, body.blocks
        self.neck = _pyramid(dim, *out_dims)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, 1024, 1024) -> {"res2": (B, 128, 256, 256), ..., "res5": (B, 1024, 32, 32)}.

        Raises:
            UsageError: the images are of another size.
        """
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise UsageError(
                "The SAM backbone's position table does not fit the images.",
                where="MODEL.BACKBONE.NAME vit",
                value=f"{images.shape[-1]} x {images.shape[-2]} pixels after padding",
                allowed=f"{self.image_size} x {self.image_size}",
                fix=f"--overrides MODEL.DECODER.SIZE_DIVISIBILITY {self.image_size}, images resized to at most that",
            )
        x = self.blocks(self.patch_embed(images) + self.pos_embed).permute(0, 3, 1, 2)  # B D H/16 W/16
        return {name: layers(x) for name, layers in self.neck.items()}


def layer_norm(dim: int, **kwargs: object) -> nn.LayerNorm:
    """Make SAM's layer norm."""
    return nn.LayerNorm(dim, eps=1e-6, **kwargs)


def _pyramid(dim: int, res2: int, res3: int, res4: int, res5: int) -> nn.ModuleDict:
    """Return the layers that turn the last map (B, D, H/16, W/16) into maps at strides 4, 8, 16, 32."""
    hidden2, hidden3, hidden5 = max(2 * res2, dim // 2), max(res3, dim // 2), max(res5, 2 * dim)
    return nn.ModuleDict(
        {
            "res2": nn.Sequential(
                *(nn.ConvTranspose2d(dim, hidden2, 2, 2), nn.GroupNorm(1, hidden2), nn.GELU()),
                *(nn.ConvTranspose2d(hidden2, hidden2 // 2, 2, 2), nn.GroupNorm(1, hidden2 // 2)),
                *_to_width(hidden2 // 2, res2),
            ),
            "res3": nn.Sequential(
                *(nn.ConvTranspose2d(dim, hidden3, 2, 2), nn.GroupNorm(1, hidden3)), *_to_width(hidden3, res3)
            ),
            "res4": nn.Sequential(*_to_width(dim, res4)),
            "res5": nn.Sequential(
                *(nn.Conv2d(dim, hidden5, 2, 2), nn.GroupNorm(1, hidden5)), *_to_width(hidden5, res5)
            ),
        }
    )


def _to_width(in_dim: int, out_dim: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_dim, out_dim, 1), nn.GroupNorm(1, out_dim), nn.GELU()


# SAM's own names and ours of what is before the neck; {} is an index, * is weight or bias
BODY_NAMES = (
    ("pos_embed", "pos_embed"),
    ("patch_embed.proj.*", "patch_embed.proj.*"),
    ("blocks.{}.norm{}.*", "blocks.{}.norm{}.*"),
    ("blocks.{}.attn.qkv.*", "blocks.{}.attn.qkv.*"),
    ("blocks.{}.attn.proj.*", "blocks.{}.attn.proj.*"),
    ("blocks.{}.attn.rel_pos_h", "blocks.{}.attn.rel_pos_h"),
    ("blocks.{}.attn.rel_pos_w", "blocks.{}.attn.rel_pos_w"),
    ("blocks.{}.mlp.lin{}.*", "blocks.{}.mlp.fc{}.*"),
)

# SEEM's names and ours, below "backbone."
ORIGINAL_NAMES = (
    *BODY_NAMES,
    *((f"neck.down_{stride}.{{}}.*", f"neck.res{i + 2}.{{}}.*") for i, stride in enumerate((4, 8, 16, 32))),
)
