"""Where PixelLLM's weights lie in files of other code bases."""

from __future__ import annotations

from .checkpoints.key_table import Layout

PIXELLLM_LAYOUTS: tuple[Layout, ...] = ()
