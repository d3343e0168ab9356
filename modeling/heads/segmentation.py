"""Segmentation inference: what the queries of one image add up to, in the modes asked for.

Shapes: Q queries, K classes, H x W the output size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .instances import Instances, find_instances
from .masks import QueryMasks
from .panoptic import PanopticMap, PanopticThresholds, keep_queries, panoptic_map
from .semantic import semantic_scores


@dataclass(frozen=True, slots=True)
class InferenceModes:
    """What is asked for.

    Attributes:
        panoptic: segments that share no pixel.
        instance: overlapping instances; of thing classes only while ``panoptic`` is on.
        semantic: a score per class and pixel; dense and therefore expensive.
        boxes: instances carry the predicted boxes.
        max_instances: see `find_instances`.
    """

    panoptic: bool = True
    instance: bool = False
    semantic: bool = False
    boxes: bool = False
    max_instances: int = 100


@dataclass(slots=True)
class Segmentation:
    """Attributes:
    panoptic: see `PanopticMap`.
    instances: see `Instances`.
    semantic: float32 (K, H, W), sums of class probability times mask probability, not normalised.

    What was not asked for is None.
    """

    panoptic: PanopticMap | None = None
    instances: Instances | None = None
    semantic: Tensor | None = None

    @property
    def queries(self) -> list[int]:
        """The queries that became something, each once: those of the panoptic segments, then of the instances."""
        segments = [segment.query for segment in self.panoptic.segments] if self.panoptic else []
        instances = self.instances.queries.tolist() if self.instances else []
        return list(dict.fromkeys(segments + instances))


def segment(
    class_logits: Tensor,
    masks: QueryMasks,
    boxes_cxcywh: Tensor,
    is_thing: Sequence[bool],
    modes: InferenceModes,
    thresholds: PanopticThresholds,
) -> Segmentation:
    """Segment one image.

    Args:
        class_logits: (Q, K + 1), the last column "no object".
        masks: of the Q queries; only those that matter are resized.
        boxes_cxcywh: (Q, 4), in units of the padded image.
        is_thing: per class.
        modes: what is asked for.
        thresholds: of the panoptic segments.
    """
    found = Segmentation()
    if modes.panoptic:
        kept, scores, labels = keep_queries(class_logits, thresholds.score)
        found.panoptic = panoptic_map(masks[kept], kept, scores, labels, is_thing, thresholds.overlap)
    if modes.instance:
        boxes, allowed = boxes_cxcywh if modes.boxes else None, is_thing if modes.panoptic else None
        found.instances = find_instances(class_logits, masks, boxes, max_instances=modes.max_instances, allowed=allowed)
    if modes.semantic:
        found.semantic = semantic_scores(class_logits, masks)
    return found
