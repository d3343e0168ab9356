"""METEOR 1.5 (Denkowski and Lavie 2014): the original program, one process for the life of the run.

The program loads a paraphrase table of 60 MB at its start, which takes about ten seconds, so it is started once (in the
background by `Meteor.warm_up`), never per evaluation. Protocol on its standard streams, one line each:

    SCORE ||| reference 1 ||| … ||| hypothesis   ->  23 numbers, the statistics of the best reference
    EVAL ||| statistics 1 ||| … ||| statistics M ->  M segment scores, then the score of the pooled statistics

All SCORE lines are written by a thread of their own while the answers are read, so neither pipe can block the other.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...utils.errors import MissingDependencyError
from . import java

START_TIMEOUT = 300.0  # seconds until the first answer; loading the paraphrase table takes about 10 on a quiet machine
ANSWER_TIMEOUT = 120.0  # seconds between two answers
MEMORY = 500_000  # pairs remembered, about 200 MB


@dataclass(frozen=True, slots=True)
class MeteorScores:
    """Scores of N pairs, float64 [N], and the score of their pooled statistics (0 without pairs)."""

    segments: np.ndarray
    corpus: float


class Meteor:
    """A METEOR 1.5 process that starts at the first use and ends with the program.

    Args:
        start_timeout: seconds to wait for the first answer after a start.
        answer_timeout: seconds to wait for every further answer.
    """

    def __init__(self, *, start_timeout: float = START_TIMEOUT, answer_timeout: float = ANSWER_TIMEOUT) -> None:
        self.start_timeout, self.answer_timeout = start_timeout, answer_timeout
        self._statistics: dict[str, str] = {}  # SCORE line -> answer
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False

    def warm_up(self) -> None:
        """Start the process and return at once; it loads its tables while other work goes on.

        Raises:
            MissingDependencyError: Java or the jar is missing.
        """
        with self._lock:
            self._start()

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
        """Score each candidate against its references; the best reference counts.

        An empty candidate, or one whose references are all empty, scores 0. Identical pairs are scored once, also over
        several calls.

        Raises:
            MissingDependencyError: Java is missing, or the process died or fell silent; its messages are included.
        """
        lines = [score_line(c, r) for c, r in zip(candidates, references, strict=True)]
        if not lines:
            return MeteorScores(np.zeros(0), 0.0)
        with self._lock:
            try:
                return self._score(lines)
            except BaseException:
                self._stop()  # whatever was under way, the next call finds clean pipes
                raise

    def close(self) -> None:
        """End the process; a later call starts it again."""
        with self._lock:
            self._stop()

    def _score(self, lines: list[str]) -> MeteorScores:
        if len(self._statistics) > MEMORY:
            self._statistics = {}
        unknown = [line for line in dict.fromkeys(lines) if line not in self._statistics]
        if unknown:
            self._statistics.update(zip(unknown, self._ask(unknown, len(unknown)), strict=True))
        command = " ||| ".join(["EVAL", *(self._statistics[line] for line in lines)])
        *segments, corpus = (float(answer) for answer in self._ask([command], len(lines) + 1))
        return MeteorScores(np.array(segments), corpus)

    def _ask(self, lines: Sequence[str], answers: int) -> Iterator[str]:
        """Send lines and yield the given number of answers."""
        self._start()
        threading.Thread(target=_write, args=(self._process, lines), daemon=True).start()
        for _ in range(answers):
            limit = self.answer_timeout if self._answered else self.start_timeout
            try:
                answer = self._answers.get(timeout=limit)
            except queue.Empty:
                raise self._failure(f"METEOR gave no answer for {limit:g} seconds.") from None
            if answer is None:
                raise self._failure("The METEOR process ended unexpectedly.")
            self._answered = True
            yield answer.decode("utf-8", "replace").strip()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return
        self._stop()
        jar = java.find_jar("meteor", "meteor-1.5.jar")
        java.find_jar("meteor", "data", "paraphrase-en.gz")
        command = [str(java.find_java()), "-Xmx2G", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8", "-jar", jar.name]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as err:
            self._errors.close()
            raise MissingDependencyError("Java could not be started.", where=command[0], value=str(err)) from None
        self._owner, self._answered = os.getpid(), False
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        atexit.register(self.close)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.close)
        if self._owner == os.getpid():  # a forked child must not end its parent's process
            process.kill()
            process.wait()
        self._errors.close()

    def _failure(self, what: str) -> MissingDependencyError:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip()[-2000:]
        code = self._process.poll()
        return MissingDependencyError(
            what,
            where=" ".join(map(str, self._process.args)),
            value=None if code is None else f"exit code {code}",
            fix=f"it said: {said}" if said else "check the free memory: METEOR may use 2 GB",
        )


@functools.cache
def shared_meteor() -> Meteor:
    """Return the one METEOR process of this program."""
    return Meteor()


def score_line(candidate: str, references: Sequence[str]) -> str:
    """Return the SCORE command of a pair: on one line, free of the field separator ``|||``."""
    filled = [_field(reference) for reference in references]
    return " ||| ".join(["SCORE", *([text for text in filled if text] or [""]), _field(candidate)])


def _field(text: str) -> str:
    text = text.replace("|||", "").replace("  ", " ")
    return text.replace("\r", " ").replace("\n", " ").strip()


def _write(process: subprocess.Popen[bytes], lines: Sequence[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # the reader notices a dead process
        for line in lines:
            process.stdin.write(line.encode("utf-8", "replace") + b"\n")
        process.stdin.flush()


def _read(process: subprocess.Popen[bytes], answers: queue.Queue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in process.stdout:
            answers.put(line)
    answers.put(None)
