"""The MODEL section of every system, by its NAME; free of torch, so that a configuration is checked at once."""

from __future__ import annotations

from ...utils.schema import ModelConfig
from .pix2cap import Pix2CapModelConfig
from .pixelllm import PixelLLMModelConfig

MODEL_SCHEMAS: dict[str, type[ModelConfig]] = {
    "pix2cap_model": Pix2CapModelConfig,
    "pixelllm_model": PixelLLMModelConfig,
}
