"""Pretrained encoders of texts and images, loaded when a figure asks for them."""
