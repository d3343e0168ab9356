"""METEOR's jar driven directly: a pair at a time as usual wrappers do, or on files as its authors meant."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..captions import java
from ..captions.meteor import score_line


def _command(*arguments: str) -> tuple[list[str], Path]:
    jar = java.find_jar("meteor", "meteor-1.5.jar")
    return [str(java.find_java()), "-Xmx2G", "-jar", jar.name, *arguments, "-l", "en", "-norm"], jar.parent


class LockStepMeteor:
    """A process that is asked for one pair, answers, and is asked for the next."""

    def __init__(self) -> None:
        command, folder = _command("-", "-", "-stdio")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=folder, text=True, encoding="utf-8", bufsize=1, **pipes)
        self.calls = 0

    def score(self, candidate: str, references: Sequence[str]) -> float:
        """Return the score of one pair."""
        self.calls += 1
        statistics = self._ask(score_line(candidate, references))
        score = float(self._ask(f"EVAL ||| {statistics}"))
        self.process.stdout.readline()  # the pooled score, of one pair the same
        return score

    def pooled(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Return the score of the pooled statistics, as pycocoevalcap asks for it."""
        statistics = [self._ask(score_line(c, r)) for c, r in zip(candidates, references, strict=True)]
        self.process.stdin.write(" ||| ".join(["EVAL", *statistics]) + "\n")
        return [float(self.process.stdout.readline()) for _ in range(len(statistics) + 1)][-1]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _ask(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        return self.process.stdout.readline().strip()


def score_files(candidates: Sequence[str], references: Sequence[str]) -> tuple[list[float], float]:
    """Score pairs of one reference each in one run of the program on two files; returns segment and pooled scores."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("candidates", "references")]
        for name, lines in zip(names, (candidates, references), strict=True):
            Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        command, cwd = _command(*names)
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=True)
    lines = done.stdout.splitlines()
    segments = [float(line.split("\t")[-1]) for line in lines if line.startswith("Segment ")]
    (pooled,) = (float(line.split()[-1]) for line in lines if line.startswith("Final score"))
    return segments, pooled
