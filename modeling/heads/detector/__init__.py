"""A class-agnostic two-stage detector on one feature map: CenterNet2 (Zhou et al., 2021) on ViTDet's simple pyramid."""
