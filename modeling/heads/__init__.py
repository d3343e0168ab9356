"""Heads: hidden states and feature maps in, classes, masks, boxes and semantic maps out."""
