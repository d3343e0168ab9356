"""locap: train, evaluate and use region-level captioning models."""

__version__ = "0.1.0"
