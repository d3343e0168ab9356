"""One captioner for many users: a thread of its own around the model, and a bounded queue before it."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ...datasets.records import Narrative, Region
from ...utils.endings import explain
from ...utils.errors import LocapError, shortened
from ..asks import Ask
from ..captioner import Captioner, Seen
from ..engines import NARRATIVE
from ..results import Result
from ..streams import Follow
from .limits import MAX_WAITING

logger = logging.getLogger(__name__)
TELL_SECONDS = 0.15  # between two looks at an answer that is being written: each costs the page more than a word


class BusyError(LocapError):
    """The queue is full."""


class LeftError(LocapError):
    """The writing was ended because nobody waits for it."""


class FailedError(LocapError):
    """A request failed through no fault of its user; the message carries the id under which it was logged."""


class Service:
    """Answers requests one after the other, in the order they came, whichever way.

    Only decoding an image and the system's own work are done in a turn; drawing and encoding an answer are not.

    Args:
        captioner: the system.
        name: what it is called.
        max_waiting: requests under way and waiting, the next is refused with `BusyError`.
    """

    def __init__(self, captioner: Captioner, name: str = "locap", max_waiting: int = MAX_WAITING) -> None:
        self.captioner, self.name = captioner, name
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="locap-model")
        self._free, self._lock = max_waiting, threading.Lock()

    @property
    def takes(self) -> frozenset[str]:
        """The kinds of questions the system answers."""
        return self.captioner.takes

    @property
    def places(self) -> int:
        """How many more requests find a place now."""
        return self._free

    def see(self, decode: Callable[[], np.ndarray]) -> Seen:
        """Decode and encode an image; waits for its turn, so that few images are decoded at a time."""
        return self.submit(lambda: self.captioner.see(decode())).result()

    def ask(self, seen: Seen, asks: Sequence[Ask] = ()) -> Result:
        """Answer questions about an encoded image; waits for its turn."""
        return self.submit(self.captioner.ask, seen, asks).result()

    def stream(self, seen: Seen, asks: Sequence[Ask] = ()) -> Iterator[Result]:
        """Yield the answer as it is written, then whole; closing the iterator ends the writing with its next step."""
        pieces: queue.SimpleQueue[list[tuple[int, str]] | None] = queue.SimpleQueue()
        left = threading.Event()
        future = self.submit(self.captioner.ask, seen, asks, until(left, pieces.put))
        future.add_done_callback(lambda _: pieces.put(None))
        texts: dict[int, str] = {}
        told = time.monotonic()
        try:
            while (changes := pieces.get()) is not None:
                texts.update(changes)
                if any(texts.values()) and time.monotonic() >= told + TELL_SECONDS:
                    told = time.monotonic()
                    yield _written(seen, asks, texts, self.captioner.categories)
            yield future.result()
        finally:
            left.set()
            future.cancel()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a function in the model's thread.

        Raises:
            BusyError: the queue is full.
        """
        with self._lock:
            if not self._free:
                raise BusyError("The demo is busy.", allowed="try again in a moment")
            self._free -= 1
        future = self._worker.submit(_guarded, function, arguments)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._free += 1

    def close(self) -> None:
        """Answer what has begun, and no more."""
        self._worker.shutdown(wait=True, cancel_futures=True)


def until(left: threading.Event, tell: Follow | None = None) -> Follow:
    """Return what ends the writing of an answer with its next step, once nobody waits for it."""

    def watch(changes: list[tuple[int, str]]) -> None:
        if left.is_set():
            raise LeftError("Nobody waits for the answer.")
        if tell is not None:
            tell(changes)

    return watch


def _written(seen: Seen, asks: Sequence[Ask], texts: Mapping[int, str], categories: Sequence[Any]) -> Result:
    """Return what is written so far: regions without what only the whole answer has."""
    count = len(asks) or 1 + max(texts)
    regions = [ask.to_region(number) for number, ask in enumerate(asks, 1)] or [Region(k + 1) for k in range(count)]
    regions = [replace(region, captions=(texts.get(k) or "…",)) for k, region in enumerate(regions)]
    narratives = (Narrative(texts[NARRATIVE]),) if texts.get(NARRATIVE) else ()
    record = replace(seen.record, regions=regions, narratives=narratives)
    return Result(record, tuple(categories), seen.record.read_image(), tuple(asks))


def _guarded(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call a function; what is no mistake of the user is logged under an id, and only the id is told."""
    try:
        return function(*arguments)
    except LocapError:
        raise
    except Exception as err:
        failure = _logged(err)
    _free_memory()  # after the frames that held it are gone
    raise failure


def _logged(err: Exception) -> FailedError:
    number = uuid.uuid4().hex[:8]
    logger.error("request %s failed", number, exc_info=err)
    known = explain(err)
    what = known.what.rstrip(".") if known else "The system failed on this request"
    return FailedError(f"{what} (request {number}).")


def _free_memory() -> None:
    """Give back what a failed request held on a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def friendly(err: LocapError) -> str:
    """Return an error in one line for a user's browser: without places on this machine."""
    allowed = f" Allowed: {err.allowed}." if err.allowed else ""
    return shortened(f"{err.what}{allowed}", 300)
