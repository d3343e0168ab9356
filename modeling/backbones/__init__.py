"""Image encoders: normalised pixels in, feature maps at strides 4, 8, 16, 32 out.

All four of X-Decoder and SEEM are here and give their maps exactly: ``focal`` and ``focal_dw`` (`focal`, our own),
``davit`` (`davit`, timm's blocks; exact on multiples of 32) and ``vit`` (`sam_vit`, timm's blocks; 1024 x 1024 only).
"""
