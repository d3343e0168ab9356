"""Texts while they are written: what calls back, turned into an iterator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .engines import Watch


class _Closed(Exception):
    """Nobody reads on."""


def stream_texts(write: Callable[[Watch], Any]) -> Iterator[tuple[int, str]]:
    """Yield (region, text so far) of one image whenever a text has changed.

    Texts are written in a thread of their own, as fast as they can be: a slow reader holds nobody up. When the iterator
    is closed, the writing ends with its next step, and the thread with it.

    Args:
        write: writes; it calls what it is given after every step. What it raises is raised here.
    """
    changes: queue.SimpleQueue[Any] = queue.SimpleQueue()
    closed = threading.Event()
    told: dict[int, str] = {}

    def watch(texts: list[tuple[tuple[int, int], str]]) -> None:
        if closed.is_set():
            raise _Closed
        for (_, region), text in texts:
            if told.get(region) != text:
                told[region] = text
                changes.put((region, text))

    def run() -> None:
        try:
            write(watch)
        except _Closed:
            pass
        except BaseException as err:  # handed to the reader
            changes.put(err)
        changes.put(None)

    writer = threading.Thread(target=run, name="locap stream", daemon=True)
    writer.start()
    try:
        while (change := changes.get()) is not None:
            if isinstance(change, BaseException):
                raise change
            yield change
    finally:
        closed.set()
        writer.join()
