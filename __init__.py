"""locap: train, evaluate and use region-level captioning models.

``locap.load(folder)`` returns a `Captioner`.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Captioner", "Result", "load"]
_PLACES = {"Captioner": "captioner", "load": "captioner", "Result": "results"}


def __getattr__(name):
    """Import what is public when it is first asked for: importing locap costs nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.inference.{_PLACES[name]}"), name)
