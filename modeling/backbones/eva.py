"""EVA-02 (Fang et al., 2023) or any other plain ViT of timm as an encoder that gives one map.

The canvas may have any size: timm resamples the table of positions (bicubic, antialiased). EVA-02 also turns queries
and keys by their place (RoPE). Its authors stretch the places of a larger map onto the grid of the pretraining, which
suits public weights; published PixelLLM counts the patches 0, 1, 2, ... (``stretched_rope=False``).

Shapes: B batch, D width, h x w patches.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...utils.errors import UsageError, nearest


class TimmViT(nn.Module):
    """(B, 3, height, width) -> (B, D, h, w); pixels right and below of the last whole patch are not seen.

    Args:
        name: a ViT of timm, e.g. ``"eva02_large_patch14_224.mim_m38m"`` or ``"vit_base_patch16_224"``.
        pretrained: load timm's weights (needs the hub).
        dim, depth, num_heads, image_size: instead of the named model's.
        drop_path: rate of the last block, growing linearly from 0.
        stretched_rope: places of RoPE are relative to the grid of the pretraining; False: counted in patches.
        mlp_norm_eps: epsilon of the norm inside the MLPs, where there is one; timm has 1e-6, published PixelLLM 1e-5.
        recomputing: keep only the blocks' inputs for the backward pass.

    Raises:
        UsageError: timm has no such model, or it is no ViT that takes canvases of any size.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        image_size: int | None = None,
        drop_path: float = 0.0,
        stretched_rope: bool = True,
        mlp_norm_eps: float | None = None,
        recomputing: bool = False,
    ) -> None:
        super().__init__()
        changed = {"embed_dim": dim, "depth": depth, "num_heads": num_heads, "img_size": image_size}
        changed = {key: value for key, value in changed.items() if value is not None}
        self.body = _create(name, pretrained=pretrained, drop_path_rate=drop_path, **changed)
        self.body.set_grad_checkpointing(recomputing)
        self.patch, self.out_dim = self.body.patch_embed.patch_size[0], self.body.embed_dim
        rope = getattr(self.body, "rope", None)
        if rope is not None and not stretched_rope:
            rope.ref_feat_shape = None  # as an argument None would leave the named model's
        if mlp_norm_eps is not None:
            for block in self.body.blocks:
                if isinstance(getattr(block.mlp, "norm", None), nn.LayerNorm):
                    block.mlp.norm.eps = mlp_norm_eps

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, height, width) -> (B, D, height // patch, width // patch)."""
        height, width = (side // self.patch for side in images.shape[-2:])
        x = self.body.forward_features(images[..., : height * self.patch, : width * self.patch])
        x = self.body.fc_norm(x)  # timm has the last norm here or in `forward_features`, never in both
        return x[:, self.body.num_prefix_tokens :].transpose(1, 2).unflatten(2, (height, width)).contiguous()

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of patch embedding and position table, then of each block; the rest is above them."""
        table = getattr(self.body, "pos_embed", None)
        first = [*self.body.patch_embed.parameters(), *([] if table is None else [table])]
        return [first, *(list(block.parameters()) for block in self.body.blocks)]


def _create(name: str, **arguments: object) -> nn.Module:
    import timm  # takes seconds: only who needs it waits

    plain = name.split(".")[0]
    if not timm.is_model(plain):
        guess = nearest(plain, timm.list_models())
        raise UsageError(
            "timm has no such model.",
            where="the name of the encoder",
            value=name,
            allowed="a name that timm.list_models() lists",
            fix=f"write {guess}" if guess else None,
        )
    try:
        body = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
    except TypeError:
        body = None
    if body is None or not all(hasattr(body, part) for part in ("patch_embed", "num_prefix_tokens", "fc_norm")):
        raise UsageError(
            "This timm model is no plain ViT that takes images of any size.",
            where="the name of the encoder",
            value=name,
            allowed="models of timm's families vit_* and eva02_*",
        )
    body.attn_pool = None  # pooling that some have: parameters without a use
    return body


# PixelLLM's names of EVA-02 (its authors' own) and ours, below "git_backbone."; {} is an index, * is weight or bias
ORIGINAL_NAMES = (
    ("cls_token", "body.cls_token"),
    ("pos_embed", "body.pos_embed"),
    ("patch_embed.proj.*", "body.patch_embed.proj.*"),
    ("blocks.{}.norm{}.*", "body.blocks.{}.norm{}.*"),
    *((f"blocks.{{}}.attn.{part}_proj.weight", f"body.blocks.{{}}.attn.{part}_proj.weight") for part in "qkv"),
    *((f"blocks.{{}}.attn.{part}_bias", f"body.blocks.{{}}.attn.{part}_proj.bias") for part in "qv"),
    ("blocks.{}.attn.proj.*", "body.blocks.{}.attn.proj.*"),
    ("blocks.{}.mlp.w1.*", "body.blocks.{}.mlp.fc1_g.*"),
    ("blocks.{}.mlp.w2.*", "body.blocks.{}.mlp.fc1_x.*"),
    ("blocks.{}.mlp.ffn_ln.*", "body.blocks.{}.mlp.norm.*"),
    ("blocks.{}.mlp.w3.*", "body.blocks.{}.mlp.fc2.*"),
    ("ln_post.*", "body.fc_norm.*"),
)
