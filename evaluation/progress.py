"""A progress bar for what takes long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import Progress

SHOW_AFTER = 5.0  # seconds until a progress bar appears
Item = TypeVar("Item")


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items, with a progress bar once that has taken more than five seconds."""
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar = task = None
        for index, item in enumerate(items):
            if bar is None and time.monotonic() - start > SHOW_AFTER:
                bar = stack.enter_context(Progress(transient=True))
                task = bar.add_task(description, total=len(items), completed=index)
            yield item
            if bar is not None:
                bar.update(task, completed=index + 1)
