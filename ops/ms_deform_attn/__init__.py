"""Multi-scale deformable attention (Zhu et al., 2021, "Deformable DETR", equation 3)."""
