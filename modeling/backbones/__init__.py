"""Image encoders: normalised pixels in, feature maps out.

With maps at strides 4, 8, 16, 32: all four of X-Decoder and SEEM are here and give their maps exactly: ``focal`` and
``focal_dw`` (`focal`, our own), ``davit`` (`davit`, timm's blocks; exact on multiples of 32) and ``vit`` (`sam_vit`,
timm's blocks; 1024 x 1024 only).

With one map: `eva` (EVA-02 and any plain ViT of timm), `sam_encoder` (SAM with its neck, images of any size) and
`fused` (several of them on one grid, each with its own normalisation).
"""
