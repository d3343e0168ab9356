"""Several encoders of one map each, side by side (PixelLLM: EVA-02 and SAM).

Coordinates of prompts and boxes are pixels of one canvas, to which all images are padded; every encoder sees the whole
canvas at a size that its patches divide, so that a place of one map is the same place of the others. Published PixelLLM
feeds all of them the canvas as it is: of 384 pixels EVA-02 with patches of 14 sees 378, and its map is 1.6 % off.

Shapes: B images, H x W canvas, C channels, h x w map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from ..layers.images import ImageBatch
from ..layers.resampling import resize_map

FUSED = "fused"


class CanvasEncoder(nn.Module):
    """An encoder with the normalisation and the image size that it wants.

    Args:
        encoder: normalised (B, 3, H, W) -> (B, C, H // patch, W // patch), with ``patch`` and ``out_dim``.
        mean, std: per channel, RGB, 0-255.
        image_size: height and width that the canvas is resized to; None: see ``remainder``.
        remainder: of a canvas that the patches do not divide; ``"resized"``: the canvas becomes the nearest size that
            they do, ``"unseen"``: pixels right and below of the last whole patch are left out.
        frozen: no parameter learns, and nothing is kept for a backward pass.
        frozen_in_eval: when frozen, stay in evaluation mode during training; the published model drops paths there.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: tuple[int, int] | None = None,
        remainder: Literal["resized", "unseen"] = "resized",
        frozen: bool = False,
        frozen_in_eval: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.patch, self.out_dim = encoder, encoder.patch, encoder.out_dim
        self.images = ImageBatch(mean, std, encoder.patch)
        self.image_size, self.remainder = image_size, remainder
        self.frozen, self.rests = frozen, frozen and frozen_in_eval
        if frozen:
            encoder.requires_grad_(False)
        if self.rests:
            encoder.eval()

    def train(self, mode: bool = True) -> CanvasEncoder:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.rests:
            self.encoder.eval()
        return self

    def forward(self, images: Sequence[Tensor], *, canvas: tuple[int, int]) -> Tensor:
        """uint8 or float (3, H_i, W_i) each, 0-255, padded to the canvas -> (B, C, h, w), as precise as the encoder."""
        return self.encode(self.images(images, canvas=canvas), canvas)  # padding is 0 after normalisation

    def encode(self, x: Tensor, canvas: tuple[int, int]) -> Tensor:
        """Encode normalised images (B, 3, H, W) of the canvas's size."""
        x = resize_map(x, self.input_size(canvas), mode="bilinear").to(next(self.encoder.parameters()).dtype)
        with torch.no_grad() if self.frozen else nullcontext():
            return self.encoder(x)

    def input_size(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width at which the encoder gets the canvas."""
        if self.image_size is not None:
            return self.image_size
        if self.remainder == "unseen":
            return canvas
        return tuple(max(round(side / self.patch), 1) * self.patch for side in canvas)

    def map_size(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the map of a canvas."""
        stride = getattr(self.encoder, "stride", self.patch)
        return tuple(side // stride for side in self.input_size(canvas))


class FusedEncoder(nn.Module):
    """Encoders and the concatenation of their maps.

    Args:
        encoders: by name, in the order of the channels.
        fuse: names of those that are concatenated; None: all.
        grid: the maps are resized to the ``"largest"`` of their grids or to that of the ``"first"``.
    """

    def __init__(
        self,
        encoders: Mapping[str, CanvasEncoder],
        *,
        fuse: Sequence[str] | None = None,
        grid: Literal["largest", "first"] = "largest",
    ) -> None:
        super().__init__()
        if FUSED in encoders:
            raise ValueError(f"no encoder may be called {FUSED}: that is the name of the concatenation")
        self.encoders = nn.ModuleDict(encoders)
        self.fuse, self.grid = tuple(encoders if fuse is None else fuse), grid
        self.out_dims = {name: encoder.out_dim for name, encoder in encoders.items()}
        self.out_dims[FUSED] = sum(self.out_dims[name] for name in self.fuse)

    def forward(self, images: Sequence[Tensor], *, canvas: tuple[int, int]) -> dict[str, Tensor]:
        """Encode images.

        Args:
            images: uint8 or float (3, H_i, W_i) each, RGB 0-255, none larger than the canvas.
            canvas: height and width that they are padded to, right and below.

        Returns:
            Every encoder's map (B, C, h, w) under its name and their concatenation under ``"fused"``.
        """
        return self.fused({name: encoder(images, canvas=canvas) for name, encoder in self.encoders.items()}, canvas)

    def fused(self, maps: dict[str, Tensor], canvas: tuple[int, int]) -> dict[str, Tensor]:
        """Return every encoder's map and their concatenation."""
        size = self.map_size(canvas, FUSED)
        return {**maps, FUSED: torch.cat([resize_map(maps[name], size) for name in self.fuse], 1)}

    def map_size(self, canvas: tuple[int, int], name: str) -> tuple[int, int]:
        """Return the height and width of a map of `forward`."""
        if name != FUSED:
            return self.encoders[name].map_size(canvas)
        sizes = [self.encoders[part].map_size(canvas) for part in self.fuse]
        return max(sizes) if self.grid == "largest" else sizes[0]  # the largest by height, then by width
