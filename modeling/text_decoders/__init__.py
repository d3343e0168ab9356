"""Text decoders: region tokens in, words out."""
