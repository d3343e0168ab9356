"""Multi-scale deformable attention (Zhu et al., 2021, "Deformable DETR", equation 3), compiled and in plain PyTorch."""

from .functions import ms_deform_attn, ms_deform_attn_fused

__all__ = ["ms_deform_attn", "ms_deform_attn_fused"]
