"""What the user reads while a command runs."""

from __future__ import annotations

import logging
import os
import sys

from rich.logging import RichHandler


def set_up_logging(level: int = logging.INFO) -> None:
    """Send locap's messages to standard error: rank 0's all, other ranks' warnings only."""
    logger = logging.getLogger("locap")
    if logger.handlers:
        return
    rank = next((os.environ[name] for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK") if name in os.environ), "0")
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(show_path=False, show_level=False, markup=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if rank == "0" else logging.WARNING)
    logger.propagate = False
