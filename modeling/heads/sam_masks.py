"""SAM's mask decoder (Kirillov et al., 2023) and what lets a language model steer it (PixelLLM, Xu et al., 2023).

Shapes: B images, R prompts, P prompt tokens, D width, h x w the image embedding, M masks per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import two_way
from ..layers.mlp import MLP
from ..layers.two_way import TwoWayTransformer

Size = tuple[int, int]


@dataclass(slots=True)
class SamMasks:
    """Masks of prompts.

    Attributes:
        logits: (R, M, 4 h, 4 w) over the padded canvas, inside above 0.
        quality: (R, M) predicted IoU with the truth.
    """

    logits: Tensor
    quality: Tensor


class SamMaskDecoder(nn.Module):
    """Mask tokens and prompt tokens exchange with the image embedding; each mask token becomes a mask.

    The first mask token answers clear prompts, the others the readings of an ambiguous one.

    Args:
        dim: D.
        depth, num_heads, mlp_dim: of the two-way transformer.
        num_masks: mask tokens.
        quality_dim, quality_depth: of the MLP that predicts the IoU.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        num_masks: int = 4,
        quality_dim: int = 256,
        quality_depth: int = 3,
    ) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.iou_token, self.mask_tokens = nn.Embedding(1, dim), nn.Embedding(num_masks, dim)
        self.transformer = TwoWayTransformer(depth, dim, num_heads, mlp_dim)
        self.upscale1 = nn.ConvTranspose2d(dim, dim // 4, 2, stride=2)
        self.upscale_norm = nn.LayerNorm(dim // 4, eps=1e-6)
        self.upscale2 = nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2)
        self.mask_mlps = nn.ModuleList(MLP((dim, dim, dim, dim // 8)) for _ in range(num_masks))
        self.quality = MLP((dim, *[quality_dim] * (quality_depth - 1), num_masks))

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        prompts: Tensor,
        *,
        counts: Sequence[int],
        dense_prompt: Tensor,
        ambiguous: bool = False,
    ) -> SamMasks:
        """Decode.

        Args:
            image: embeddings, (B, D, h, w).
            image_pe: their positions, (h w, D) or (1, h w, D).
            prompts: (R, P, D), points or corners of boxes; those of the first image, then of the second, ...
            counts: prompts of each image, sums to R.
            dense_prompt: D numbers, SAM's embedding of "no mask given".
            ambiguous: return the other masks instead of the first.

        Returns:
            M is 1, or all others.
        """
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((own.expand(len(prompts), -1, -1), prompts), 1)
        flat = (image + dense_prompt.view(-1, 1, 1)).flatten(2).mT  # B hw D
        tokens, read = self.transformer(flat, image_pe, tokens, counts=counts)
        masks = range(1, self.num_masks) if ambiguous else range(1)
        kernels = torch.stack([self.mask_mlps[i](tokens[:, 1 + i]) for i in masks], 1)  # R M D/8
        logits = torch.einsum("rmd,rdhw->rmhw", kernels, self._upscale(read, image.shape[-2:]))
        return SamMasks(logits, self.quality(tokens[:, 0])[:, masks.start : masks.stop])

    def _upscale(self, image: Tensor, size: torch.Size) -> Tensor:
        """(R, h w, D) -> (R, D / 8, 4 h, 4 w)."""
        x = self.upscale1(image.mT.unflatten(-1, tuple(size)))
        x = F.gelu(self.upscale_norm(x.movedim(1, -1)).movedim(-1, 1))
        return F.gelu(self.upscale2(x))


class MaskAdapter(nn.Module):
    """What the language model adds to the corners of a box: learned tokens look at prompt features and word states.

    Behind a gate that begins closed, so that training begins with pure box prompts. The published one looks at padding
    behind the words too, of which every text there has the same length in all; here no mask depends on other texts.

    Args:
        visual_dim: width of the prompt features.
        text_dim: width of the word states.
        dim: D.
        num_tokens: corners of a box.
        depth, num_heads, mlp_dim: of the two-way transformer.
        initial_gate: before training; what is added starts with the hyperbolic tangent of it.
    """

    def __init__(
        self,
        *,
        visual_dim: int,
        text_dim: int,
        dim: int = 256,
        num_tokens: int = 2,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        initial_gate: float = 0.0,
    ) -> None:
        super().__init__()
        self.visual, self.textual = (
            nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dim)) for width in (visual_dim, text_dim)
        )
        self.output_tokens = nn.Parameter(torch.randn(num_tokens, dim))
        self.gate = nn.Parameter(torch.full((num_tokens, dim), initial_gate))
        self.transformer = TwoWayTransformer(depth, dim, num_heads, mlp_dim)

    def forward(self, visual: Tensor, text: Tensor, spoken: Tensor) -> Tensor:
        """Return what is added to the embeddings of corners, (R, num_tokens, D).

        Args:
            visual: (R, V, visual_dim).
            text: (R, T, text_dim).
            spoken: bool (R, T), False for padding.
        """
        seen = torch.cat((self.visual(visual), self.textual(text)), 1)
        shown = F.pad(spoken, (visual.shape[1], 0), value=True)
        tokens = self.output_tokens.expand(len(seen), -1, -1)
        tokens, _ = self.transformer(seen, seen.new_zeros(1, 1, 1), tokens, shown=shown)
        return tokens * self.gate.tanh()


def masks_to_image(logits: Tensor, *, canvas: Size, size: Size, original: Size) -> Tensor:
    """Bring mask logits to the image as it was before it was resized and padded.

    Args:
        logits: (..., h, w) over the canvas.
        canvas: its (height, width), pixels.
        size: the part of it that the image fills.
        original: the image's own size.

    Returns:
        bool (..., original height, original width).
    """
    h, w = (max(1, side * cells // whole) for side, cells, whole in zip(size, logits.shape[-2:], canvas, strict=True))
    cropped = logits[..., :h, :w].float()
    flat = cropped.reshape(-1, 1, h, w)
    if not len(flat):
        return torch.zeros(*logits.shape[:-2], *original, dtype=torch.bool, device=logits.device)
    resized = F.interpolate(flat, size=original, mode="bilinear", align_corners=False)
    return (resized > 0).reshape(*logits.shape[:-2], *original)


_TOKENS = (("iou_token.weight", "iou_token.weight"), ("mask_tokens.weight", "mask_tokens.weight"))
_MLPS = (("output_hypernetworks_mlps.{}", "mask_mlps.{}"), ("iou_prediction_head", "quality"))

# transformers' names below "mask_decoder." and ours; {} is an index, * is weight or bias
TRANSFORMERS_NAMES = (
    *_TOKENS,
    *((f"transformer.{theirs}", f"transformer.{ours}") for theirs, ours in two_way.TRANSFORMERS_NAMES),
    ("upscale_conv1.*", "upscale1.*"),
    ("upscale_layer_norm.*", "upscale_norm.*"),
    ("upscale_conv2.*", "upscale2.*"),
    *(
        (f"{theirs}.{layer}.*", f"{ours}.layers.{index}.*")
        for theirs, ours in _MLPS
        for index, layer in enumerate(("proj_in", "layers.0", "proj_out"))
    ),
)

# SAM's own names, which are PixelLLM's, below "mask_decoder." and ours
ORIGINAL_NAMES = (
    *_TOKENS,
    *((f"transformer.{theirs}", f"transformer.{ours}") for theirs, ours in two_way.ORIGINAL_NAMES),
    ("output_upscaling.0.*", "upscale1.*"),
    ("output_upscaling.1.*", "upscale_norm.*"),
    ("output_upscaling.3.*", "upscale2.*"),
    *((f"{theirs}.layers.{{}}.*", f"{ours}.layers.{{}}.*") for theirs, ours in _MLPS),
)

# PixelLLM's names below "mask_adapter." and ours
ADAPTER_NAMES = (
    ("output_tokens.weight", "output_tokens"),
    ("alpha_output.weight", "gate"),
    *(
        (f"{part}_projection_mlp.{theirs}.*", f"{part}.{index}.*")
        for part in ("visual", "textual")
        for index, theirs in enumerate(("LayerNorm_0", "layers.0"))
    ),
    *((f"transformer.{theirs}", f"transformer.{ours}") for theirs, ours in two_way.ORIGINAL_NAMES),
)
