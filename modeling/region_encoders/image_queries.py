"""The object queries of one image, and the maps they refer to.

Shapes: B images, Q object queries, R of them, D width, C mask width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .query_decoder import DecodedQueries, QueryPrediction


@dataclass(slots=True)
class ImageQueries:
    """The object queries of one image at one prediction point.

    Attributes:
        hidden: (Q, D).
        mask_embed: (Q, C).
        mask_features: (C, h, w).
        fine_features: the backbone's finest map (C', h, w).
        global_feature: (D,).
    """

    hidden: Tensor
    mask_embed: Tensor
    mask_features: Tensor
    fine_features: Tensor
    global_feature: Tensor

    def masks(self, queries: Tensor | slice = slice(None)) -> Tensor:
        """Return mask logits, (R, h, w)."""
        return torch.einsum("qc,chw->qhw", self.mask_embed[queries], self.mask_features)


def split_images(
    prediction: QueryPrediction, decoded: DecodedQueries, fine_features: Tensor, num_objects: int
) -> list[ImageQueries]:
    """Return the first ``num_objects`` queries of each image; fine_features: (B, C', h, w)."""
    rows = (
        prediction.hidden[:, :num_objects],
        prediction.mask_embed[:, :num_objects],
        decoded.mask_features,
        fine_features,
        decoded.global_feature,
    )
    return [ImageQueries(*image) for image in zip(*(row.unbind() for row in rows), strict=True)]
