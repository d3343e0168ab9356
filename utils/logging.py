"""What the user reads while a command runs."""

from __future__ import annotations

import logging
import os
import sys
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def as_called(text: str) -> str:
    """Return a text with the commands it names as this user gives them: ``locap …`` where locap is installed."""
    return text.replace("python entry.py ", "locap ") if Path(sys.argv[0]).stem == "locap" else text


@lru_cache(maxsize=1)
def terminal() -> Console:
    """Return the console that messages and progress bars share, so that neither writes across the other."""
    return Console(stderr=True)


def set_up_logging(level: int = logging.INFO) -> None:
    """Send locap's messages to standard error: rank 0's all, other ranks' warnings only."""
    logger = logging.getLogger("locap")
    if logger.handlers:
        return
    rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0")
    if terminal().is_terminal:
        handler: logging.Handler = RichHandler(
            console=terminal(), show_path=False, show_level=False, markup=False, log_time_format="%H:%M:%S"
        )
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if rank == "0" else logging.WARNING)
    logger.propagate = False
