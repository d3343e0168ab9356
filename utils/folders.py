"""Where locap keeps what users may move or delete at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$LOCAP_CACHE``, else ``$XDG_CACHE_HOME/locap``, else ``~/.cache/locap``; it need not exist."""
    if own := os.environ.get("LOCAP_CACHE"):
        return Path(own).expanduser()
    common = os.environ.get("XDG_CACHE_HOME")
    return (Path(common) if common else Path.home() / ".cache") / "locap"
