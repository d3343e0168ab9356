"""A judging model with a memory: an endpoint and the file of its answers, or that file alone."""

from __future__ import annotations

import math
import os
import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...utils.errors import MissingDependencyError, UsageError
from ...utils.folders import cache_folder
from ...utils.untrusted import shown
from ..progress import track
from .answers import AnswerFile
from .requests import DEFAULT_KEY_VARIABLE, Reply, Request

if TYPE_CHECKING:
    from .client import Endpoint

URL_VARIABLE = "OPENAI_BASE_URL"
JUDGE_OPTIONS = {
    "judge": "name of the judging model",
    "judge_url": f"its OpenAI-compatible endpoint, such as http://localhost:8000/v1; default: ${URL_VARIABLE}",
    "judge_file": "stored answers to replay; nothing is asked",
    "judge_cache": "JSON lines of answers, read and appended to; default: judges/<judge>.jsonl in $LOCAP_CACHE",
    "judge_key_variable": f"environment variable with the API key; default: {DEFAULT_KEY_VARIABLE}",
    "judge_timeout": "seconds for one answer; default: 120",
    "judge_parallel": "requests at a time; default: 8",
}
MAX_PARALLEL = 256
Item = TypeVar("Item")
Result = TypeVar("Result")


class Judge:
    """Answers requests from its file, else from its endpoint; what it learns is in the file at once.

    Args:
        name: the model asked.
        answers: the file.
        endpoint: None to replay the file.
        parallel: requests at a time.
    """

    def __init__(self, name: str, answers: AnswerFile, endpoint: Endpoint | None = None, *, parallel: int = 8) -> None:
        self.name, self.answers, self.endpoint = name, answers, endpoint
        self.parallel = parallel if endpoint is not None else 1

    def ask(self, request: Request) -> Reply:
        """Return the reply to a request; only functions given to `map` may ask.

        Raises:
            MissingDependencyError: the endpoint gave none.
        """
        reply = self.answers.get(self.name, request)
        if reply is not None:
            return reply
        if self.endpoint is None:
            raise _NotStored
        return self.answers.add(self.name, request, self.endpoint.ask(request))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
        """Return ``function(item)`` of every item, several at a time; the function asks the judge.

        Args:
            function: asks and reads the replies; called from several threads.
            items: what to ask about.
            what: what the items are, for messages: "questions".

        Raises:
            MissingDependencyError: the endpoint failed, or a replayed file lacks answers (to how many items is said).
        """
        results: list[Any] = [_NotStored] * len(items)
        outcomes = self._start(function, items)
        try:
            for _ in track(range(len(items)), "asking the judge"):
                index, outcome = outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                results[index] = outcome
        except MissingDependencyError as err:
            raise self._with_place(err) from None
        finally:
            if self.endpoint is not None:
                self.endpoint.stopped.set()
            self.answers.close()
        missing = sum(result is _NotStored for result in results)
        if missing:
            raise self._incomplete(missing, len(items), what)
        return results

    def _start(self, function: Callable[[Item], Result], items: Sequence[Item]) -> queue.SimpleQueue[tuple[int, Any]]:
        """Start threads that put (index, result or exception) into the queue; they end with the program."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        outcomes: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for index in range(len(items)):
            todo.put(index)
        stopped = threading.Event() if self.endpoint is None else self.endpoint.stopped
        stopped.clear()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    outcomes.put((index, function(items[index])))
                except _NotStored:
                    outcomes.put((index, _NotStored))
                except Exception as err:
                    stopped.set()  # before another item is taken
                    outcomes.put((index, err))

        for _ in range(min(self.parallel, len(items))):
            threading.Thread(target=work, daemon=True).start()
        return outcomes

    def _with_place(self, err: MissingDependencyError) -> MissingDependencyError:
        where = f"answers so far are kept in {shown(self.answers.path)}"
        return MissingDependencyError(err.what, where=where, fix=err.fix or "the same command goes on from there")

    def _incomplete(self, missing: int, count: int, what: str) -> MissingDependencyError:
        return MissingDependencyError(
            f"The judge file lacks answers of {self.name!r} to {missing} of {count} {what}.",
            where=shown(self.answers.path),
            value=f"answers of {', '.join(sorted(self.answers.models)) or 'nobody'}",
            allowed="the answers to exactly these predictions, by this judge and prompt",
            fix="ask for the rest: judge=NAME judge_url=URL judge_cache=FILE instead of judge_file=FILE",
        )


class _NotStored(Exception):
    """A replayed file lacks the answer; also the mark of an item without a result."""


def open_judge(
    *,
    judge: str | None = None,
    judge_url: str | None = None,
    judge_file: str | None = None,
    judge_cache: str | None = None,
    judge_key_variable: str | None = None,
    judge_timeout: str | float = 120.0,
    judge_parallel: str | int = 8,
) -> Judge:
    """Return the judge that a protocol's options describe (`JUDGE_OPTIONS`); nothing is asked or written yet.

    Raises:
        UsageError: it is not said which judge, options exclude each other, or one is malformed.
        DataError: a file of answers is malformed.
    """
    timeout = _number(judge_timeout, "judge_timeout", 1, 86400)
    parallel = int(_number(judge_parallel, "judge_parallel", 1, MAX_PARALLEL))
    if judge_file is not None:
        _refuse_with_file(judge_url=judge_url, judge_cache=judge_cache, judge_key_variable=judge_key_variable)
        answers = AnswerFile(judge_file, must_exist=True)
        return Judge(judge or _only_model(answers), answers)
    if not judge:
        raise UsageError(
            "It is not said which model judges.",
            allowed="judge=NAME with judge_url=URL, or judge_file=FILE with stored answers",
            fix="--option judge=NAME judge_url=http://localhost:8000/v1",
        )
    url = judge_url or os.environ.get(URL_VARIABLE)
    if not url:
        raise UsageError(
            f"It is not said where the judge {judge} is.",
            allowed=f"judge_url=URL, or the environment variable {URL_VARIABLE}",
            fix="--option judge_url=http://localhost:8000/v1",
        )
    from .client import Endpoint  # http and ssl are not needed to replay answers

    endpoint = Endpoint(url, judge, key_variable=judge_key_variable, timeout=timeout)
    path = Path(judge_cache) if judge_cache else cache_folder() / "judges" / f"{_slug(judge)}.jsonl"
    return Judge(judge, AnswerFile(path, must_exist=False), endpoint, parallel=parallel)


def _refuse_with_file(**options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"judge_file replays stored answers and asks nobody, so {name} has no use.")


def _only_model(answers: AnswerFile) -> str:
    if len(answers.models) == 1:
        return next(iter(answers.models))
    raise UsageError(
        "The judge file holds the answers of several judges." if answers.models else "The judge file is empty.",
        where=shown(answers.path),
        allowed=", ".join(sorted(answers.models)) or None,
        fix="--option judge=NAME" if answers.models else None,
    )


def _number(value: str | float, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise UsageError(f"{name} is out of its range.", value=value, allowed=f"{low} to {high}")
    return number


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[:100] or "judge"
