"""Evaluation protocols on records: each knows no model and runs on stored predictions of any."""

from __future__ import annotations

from .attributes import CaptionAttributes
from .coco_ap import BoxAveragePrecision, KeypointAveragePrecision, MaskAveragePrecision
from .dense_captioning import DenseCaptioning
from .dlc_bench import DlcBench
from .image_captioning import ImageCaptioning
from .muse import MuseQuestions
from .narrative_trace import NarrativeTrace
from .panoptic import PanopticQuality
from .panoptic_captioning import PanopticCaptioning
from .reason_seg import ReasoningSegmentation
from .referring import ReferringExpressions
from .region_captioning import RegionCaptioning
from .region_class_similarity import RegionClassSimilarity
from .results import ImageEvaluator, ProtocolResult, Table
from .uniqueness import Uniqueness
from .vip_bench import VipBench

EVALUATORS: dict[str, type[ImageEvaluator]] = {
    "panoptic": PanopticQuality,
    "panoptic_captioning": PanopticCaptioning,
    "image_captioning": ImageCaptioning,
    "region_captioning": RegionCaptioning,
    "dense_captioning": DenseCaptioning,
    "narrative_trace": NarrativeTrace,
    "caption_attributes": CaptionAttributes,
    "referring": ReferringExpressions,
    "reason_seg": ReasoningSegmentation,
    "muse": MuseQuestions,
    "vip_bench": VipBench,
    "dlc_bench": DlcBench,
    "detection": BoxAveragePrecision,
    "instances": MaskAveragePrecision,
    "keypoints": KeypointAveragePrecision,
    "region_class_similarity": RegionClassSimilarity,
    "uniqueness": Uniqueness,
}

__all__ = ["EVALUATORS", "ImageEvaluator", "ProtocolResult", "Table"]
