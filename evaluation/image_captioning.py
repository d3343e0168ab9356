"""Protocol ``image_captioning``: COCO-caption on the captions of whole images.

The first caption of each prediction is scored against all captions of its image: `caption_figures`. An image must be
predicted, but its caption may be empty; an image without captions in the ground truth is left out.
"""

from __future__ import annotations

from typing import Any

from ..datasets.records import Record
from .caption_figures import CaptionEvaluator, CaptionItem, add_caption_figures, require_texts
from .results import ProtocolResult


class ImageCaptioning(CaptionEvaluator):
    """METEOR, CIDEr, ROUGE-L, BLEU-1 … 4 and on request SPICE of image captions."""

    protocol = "image_captioning"

    def compute(self) -> ProtocolResult:
        """Return the figures over all images; METEOR is missing where Java is."""
        result = ProtocolResult(self.protocol, self.variant, counts={"images": len(self._entries)})
        items = [CaptionItem((image_id,), *entry) for image_id, entry in self._ordered()]
        add_caption_figures(result, items, ("image_id",), self.extra)
        return result

    def _measure(self, record: Record, prediction: Record) -> list[Any]:
        where = f"image_id {record.image_id}"
        candidates = require_texts(prediction.captions, f"{where}, prediction")
        return [candidates[0] if candidates else "", require_texts(record.captions, where)]
