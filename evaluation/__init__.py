"""Evaluation protocols on records: each knows no model and runs on stored predictions of any."""

from __future__ import annotations

from .attributes import CaptionAttributes
from .coco_ap import BoxAveragePrecision, KeypointAveragePrecision, MaskAveragePrecision
from .panoptic import PanopticQuality
from .panoptic_captioning import PanopticCaptioning
from .region_class_similarity import RegionClassSimilarity
from .results import ImageEvaluator, ProtocolResult, Table
from .uniqueness import Uniqueness

EVALUATORS: dict[str, type[ImageEvaluator]] = {
    "panoptic": PanopticQuality,
    "panoptic_captioning": PanopticCaptioning,
    "caption_attributes": CaptionAttributes,
    "detection": BoxAveragePrecision,
    "instances": MaskAveragePrecision,
    "keypoints": KeypointAveragePrecision,
    "region_class_similarity": RegionClassSimilarity,
    "uniqueness": Uniqueness,
}

__all__ = ["EVALUATORS", "ImageEvaluator", "ProtocolResult", "Table"]
