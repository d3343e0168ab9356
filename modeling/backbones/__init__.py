"""Image encoders: normalised pixels in, feature maps at strides 4, 8, 16, 32 out."""
