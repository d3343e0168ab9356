"""What of Pix2Cap reads images, as a module of tensors alone, to be exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .pix2cap import Pix2Cap
from .pixel_decoders.deformable import DeformableAttention
from .region_encoders.query_decoder import DecodedQueries
from .vision import VisionPart


class Pix2CapVision(nn.Module):
    """Backbone, pixel decoder and query decoder, with the classes' texts as constants.

    Args:
        model: the system, in evaluation mode, whose parts are used as they are.
    """

    def __init__(self, model: Pix2Cap) -> None:
        super().__init__()
        with torch.no_grad():
            texts = model.class_texts.ensemble(model.lang_encoder).clone()
        self.images, self.backbone = model.images, model.backbone
        self.pixel_decoder, self.decoder = model.pixel_decoder, model.decoder
        self.register_buffer("class_texts", texts)
        self.register_buffer("logit_scale", model.lang_encoder.logit_scale.detach().clone())

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Read images.

        Args:
            images: uint8 (B, 3, H, W), RGB, each in the upper left corner.
            sizes: int64 (B, 2), height and width of each.

        Returns:
            ``class_logits`` (B, Q, K + 1), ``mask_embed`` (B, Q, C), ``mask_features`` (B, C, H/4, W/4), whose product
            are the masks' logits, and ``boxes_cxcywh`` (B, Q, 4) in units of H and W; of the last prediction point.
        """
        pixels = self.pixel_decoder(self.backbone(self.images.padded(images, sizes)))
        decoded = self.decoder(pixels.multi_scale, pixels.mask_features, self.class_texts, self.logit_scale)
        return _last_point(decoded)


def _last_point(decoded: DecodedQueries) -> dict[str, Tensor]:
    last = decoded.points[-1]
    return {
        "class_logits": last.class_logits,
        "mask_embed": last.mask_embed,
        "mask_features": decoded.mask_features,
        "boxes_cxcywh": last.boxes_cxcywh,
    }


def vision_part(cfg: Any, model: Pix2Cap) -> VisionPart:
    """Return what reads landscape images at the test size, padded as the model pads them.

    The model's deformable attention is switched to operators of torch alone: what is exported is read without locap.
    """
    for part in model.modules():
        if isinstance(part, DeformableAttention):
            part.backend = "reference"
    inputs, divisor = cfg.COCO.INPUT, model.images.divisor
    height, width = (-(-side // divisor) * divisor for side in (inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST))

    def system(images: Sequence[Tensor]) -> dict[str, Tensor]:
        texts = model.class_texts.ensemble(model.lang_encoder)
        return _last_point(model.encode(model.images(images, canvas=(height, width)), texts)[0])

    return VisionPart(Pix2CapVision(model).eval(), height, width, system)
