"""Region encoders: geometry, queries or proposals in, a few vectors per region out."""
