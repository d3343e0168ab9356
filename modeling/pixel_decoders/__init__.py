"""Pixel decoders: backbone maps in, mask features at stride 4 and three memory maps out."""
