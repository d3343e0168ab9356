"""Evaluation protocols on records: each knows no model and runs on stored predictions of any."""

from __future__ import annotations

from .attributes import CaptionAttributes
from .image_captioning import ImageCaptioning
from .panoptic import PanopticQuality
from .panoptic_captioning import PanopticCaptioning
from .region_captioning import RegionCaptioning
from .results import ImageEvaluator, ProtocolResult, Table

EVALUATORS: dict[str, type[ImageEvaluator]] = {
    "panoptic": PanopticQuality,
    "panoptic_captioning": PanopticCaptioning,
    "image_captioning": ImageCaptioning,
    "region_captioning": RegionCaptioning,
    "caption_attributes": CaptionAttributes,
}

__all__ = ["EVALUATORS", "ImageEvaluator", "ProtocolResult", "Table"]
