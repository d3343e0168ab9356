"""Where locap keeps what users may move or delete at any time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$LOCAP_CACHE``, else ``$XDG_CACHE_HOME/locap``, else ``~/.cache/locap``; it need not exist.

    Who has no home gets a folder among the temporary files.
    """
    if own := os.environ.get("LOCAP_CACHE"):
        return Path(own).expanduser()
    common = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(common) if common else Path.home() / ".cache") / "locap"
    except RuntimeError:  # neither $HOME nor an entry for this user
        return Path(tempfile.gettempdir()) / f"locap-{os.getuid()}"
