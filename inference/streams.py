"""Texts while they are written: what calls back, turned into an iterator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .engines import Watch

Follow = Callable[[list[tuple[int, str]]], None]  # what has changed with a step: (region, text so far)


class _Closed(Exception):
    """Nobody reads on."""


def changed_texts(follow: Follow) -> Watch:
    """Return what an engine tells the texts of one image after every step, of which ``follow`` hears the changes."""
    told: dict[int, str] = {}

    def watch(texts: list[tuple[tuple[int, int], str]]) -> None:
        changes = [(region, text) for (_, region), text in texts if told.get(region) != text]
        told.update(changes)
        follow(changes)

    return watch


def stream_texts(write: Callable[[Follow], Any]) -> Iterator[tuple[int, str]]:
    """Yield (region, text so far) of one image whenever a text has changed.

    Texts are written in a thread of their own, as fast as they can be: a slow reader holds nobody up. When the iterator
    is closed, the writing ends with its next step, and the thread with it.

    Args:
        write: writes; it calls what it is given after every step. What it raises is raised here.
    """
    changes: queue.SimpleQueue[Any] = queue.SimpleQueue()
    closed = threading.Event()

    def follow(changed: list[tuple[int, str]]) -> None:
        if closed.is_set():
            raise _Closed
        for change in changed:
            changes.put(change)

    def run() -> None:
        try:
            write(follow)
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
