"""An image as a query decoder sees it: all that may be said about it later starts here.

Shapes: Q queries (the last may be the class query), R of them, K classes, C mask width, H x W the output size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...datasets.batches import Batch
from ...datasets.records import Category
from ..region_encoders.image_queries import ImageQueries, split_images
from ..region_encoders.query_decoder import DecodedQueries
from .masks import Frame, QueryMasks
from .panoptic import PanopticThresholds
from .segmentation import InferenceModes, Segmentation, segment


@dataclass(slots=True)
class SeenImage:
    """The final prediction about one image.

    Attributes:
        image_id: of its record.
        objects: its object queries, those that a captioner reads.
        class_logits: (Q, K + 1).
        mask_embed: (Q, C).
        boxes_cxcywh: (Q, 4), in units of the padded image.
        frame: sizes.
    """

    image_id: int | str
    objects: ImageQueries
    class_logits: Tensor
    mask_embed: Tensor
    boxes_cxcywh: Tensor
    frame: Frame

    @property
    def masks(self) -> QueryMasks:
        """The masks of all queries."""
        return QueryMasks(self.mask_embed, self.objects.mask_features, self.frame)

    @property
    def object_logits(self) -> Tensor:
        """Class logits of the object queries alone, float32 (R, K + 1)."""
        return self.class_logits[: len(self.objects.hidden)].float()

    def segmented(
        self,
        categories: Sequence[Category],
        modes: InferenceModes,
        thresholds: PanopticThresholds,
        *,
        class_query: bool,
    ) -> Segmentation:
        """Return its segments; ``class_query``: let the class query become one, too."""
        rows = None if class_query else len(self.objects.hidden)
        masks = QueryMasks(self.mask_embed[:rows], self.objects.mask_features, self.frame)
        is_thing = [category.is_thing for category in categories]
        return segment(self.class_logits[:rows], masks, self.boxes_cxcywh[:rows], is_thing, modes, thresholds)


def seen_images(
    decoded: DecodedQueries, fine_features: Tensor, batch: Batch, *, padded: torch.Size, num_objects: int
) -> list[SeenImage]:
    """Return the images of a batch whose padded size is (height, width); fine_features: (B, C', h, w)."""
    last = decoded.points[-1]
    objects = split_images(last, decoded, fine_features, num_objects)
    frames = [
        Frame(tuple(padded), tuple(pixels.shape[-2:]), output)
        for pixels, output in zip(batch.images, batch.output_sizes, strict=True)
    ]
    rows = (batch.image_ids, objects, last.class_logits, last.mask_embed, last.boxes_cxcywh, frames)
    return [SeenImage(*image) for image in zip(*rows, strict=True)]
