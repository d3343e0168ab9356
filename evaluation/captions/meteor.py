"""METEOR 1.5 (Denkowski and Lavie 2014): the original program, one process for the life of the run.

The program loads a paraphrase table of 60 MB at its start, which takes about ten seconds, so it is started once (in the
background by `Meteor.warm_up`), never per evaluation. Protocol on its standard streams, one line each:

    SCORE ||| reference 1 ||| … ||| hypothesis   ->  23 numbers, the statistics of the best reference
    EVAL ||| statistics 1 ||| … ||| statistics M ->  M segment scores, then the score of the pooled statistics

All SCORE lines are written by a thread of their own while the answers are read, so neither pipe can block the other.
Empty references are sent as they are: of references that all score 0, the first gives the pooled statistics its length.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import string
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
PAIRS_PER_PROCESS = 20_000  # the least a process is started for: about 17 seconds of work, after 10 to start
BYTES_PER_PROCESS = 2_500_000_000


@dataclass(frozen=True, slots=True)
class MeteorScores:
    """Scores of N pairs, float64 [N], and the score of their pooled statistics (0 without pairs)."""

    segments: np.ndarray
    corpus: float


class Meteor:
    """METEOR 1.5 with a memory: identical pairs are scored once, also over several calls.

    The first process starts at the first use and ends with the program. Only a call with so many new pairs that
    several processes get `PAIRS_PER_PROCESS` each has more than one, for its own duration; which process scores a pair
    does not change its score.

    Args:
        processes: the most to run at a time; by default as many as there are cores and free memory for.
        start_timeout: seconds to wait for the first answer after a start.
        answer_timeout: seconds to wait for every further answer.
    """

    def __init__(
        self,
        *,
        processes: int | None = None,
        start_timeout: float = START_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self.processes = processes
        self._timeouts = (start_timeout, answer_timeout)
        self._statistics: dict[str, str] = {}  # SCORE line -> answer
        self._lock = threading.Lock()
        self._first = MeteorProcess(*self._timeouts)

    def warm_up(self) -> None:
        """Start the process and return at once; it loads its tables while other work goes on.

        Raises:
            MissingDependencyError: Java or the jar is missing.
        """
        with self._lock:
            self._first.start()

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores:
        """Score each candidate against its references; the best reference counts.

        An empty candidate, or one whose references are all empty, scores 0.

        Raises:
            MissingDependencyError: Java is missing, or a process died or fell silent; its messages are included.
        """
        lines = [score_line(c, r) for c, r in zip(candidates, references, strict=True)]
        if not lines:
            return MeteorScores(np.zeros(0), 0.0)
        with self._lock:
            try:
                self._learn(lines)
                return self._evaluate(lines)
            except BaseException:
                self._first.stop()  # whatever was under way, the next call finds clean pipes
                raise

    def close(self) -> None:
        """End the process; a later call starts it again."""
        with self._lock:
            self._first.stop()

    def _learn(self, lines: Sequence[str]) -> None:
        """Have the statistics of all pairs in memory."""
        if len(self._statistics) > MEMORY:
            self._statistics = {}
        unknown = [line for line in dict.fromkeys(lines) if line not in self._statistics]
        count = self._count_processes(len(unknown))
        more = [MeteorProcess(*self._timeouts) for _ in range(count - 1)]
        try:
            parts = [unknown[len(unknown) * i // count : len(unknown) * (i + 1) // count] for i in range(count)]
            for process, part in zip([self._first, *more], parts, strict=True):
                process.send(part)
            for process, part in zip([self._first, *more], parts, strict=True):
                self._statistics.update(zip(part, process.answers(len(part)), strict=True))
        finally:
            for process in more:
                process.stop()

    def _count_processes(self, pairs: int) -> int:
        wanted = max(1, pairs // PAIRS_PER_PROCESS)
        if wanted == 1 or self.processes is not None:
            return min(wanted, self.processes or 1)
        return max(1, min(wanted, java.count_cores(), java.free_memory() // BYTES_PER_PROCESS))

    def _evaluate(self, lines: Sequence[str]) -> MeteorScores:
        self._first.send([" ||| ".join(["EVAL", *(self._statistics[line] for line in lines)])])
        *segments, corpus = (float(answer) for answer in self._first.answers(len(lines) + 1))
        return MeteorScores(np.array(segments), corpus)


class MeteorProcess:
    """One process of the original program, started by the first line it is sent."""

    def __init__(self, start_timeout: float, answer_timeout: float) -> None:
        self.start_timeout, self.answer_timeout = start_timeout, answer_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False

    def send(self, lines: Sequence[str]) -> None:
        """Write lines from a thread of their own, so that a full pipe blocks nobody."""
        if lines:
            self.start()
            threading.Thread(target=_write, args=(self._process, lines), daemon=True).start()

    def answers(self, count: int) -> Iterator[str]:
        """Yield the next answers.

        Raises:
            MissingDependencyError: the process died or fell silent.
        """
        for _ in range(count):
            limit = self.answer_timeout if self._answered else self.start_timeout
            try:
                answer = self._answers.get(timeout=limit)
            except queue.Empty:
                raise self._failure(f"METEOR gave no answer for {limit:g} seconds.") from None
            if answer is None:
                raise self._failure("The METEOR process ended unexpectedly.")
            self._answered = True
            yield answer.decode("utf-8", "replace").strip()

    def start(self) -> None:
        """Start the process unless it runs."""
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return
        self.stop()
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
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
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
    return " ||| ".join(["SCORE", *([_field(reference) for reference in references] or [""]), _field(candidate)])


def _field(text: str) -> str:
    text = text.replace("|||", "").replace("  ", " ")
    return text.replace("\r", " ").replace("\n", " ").strip(string.whitespace)  # U+0085 and its like are words to it


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
