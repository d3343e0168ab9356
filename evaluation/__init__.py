"""Evaluation protocols on records: each knows no model and runs on stored predictions of any."""

from __future__ import annotations

from .attributes import CaptionAttributes
from .dense_captioning import DenseCaptioning
from .narrative_trace import NarrativeTrace
from .panoptic import PanopticQuality
from .panoptic_captioning import PanopticCaptioning
from .results import ImageEvaluator, ProtocolResult, Table

EVALUATORS: dict[str, type[ImageEvaluator]] = {
    "panoptic": PanopticQuality,
    "panoptic_captioning": PanopticCaptioning,
    "dense_captioning": DenseCaptioning,
    "narrative_trace": NarrativeTrace,
    "caption_attributes": CaptionAttributes,
}

__all__ = ["EVALUATORS", "ImageEvaluator", "ProtocolResult", "Table"]
