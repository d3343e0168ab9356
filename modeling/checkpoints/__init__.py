"""Weights from files: which fit, which are missing, and what to do about it."""
