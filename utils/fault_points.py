"""Places where a test can make a run fail: named points that do nothing unless LOCAP_FAULT says otherwise.

    LOCAP_FAULT="checkpoint.rename@2:kill;step.backward@7:nan#1"

reads: at the second passage of ``checkpoint.rename`` kill the process; at the seventh of ``step.backward`` act "nan",
on rank 1 only. ``*`` counts the passages of all points together, so that counting up visits every one of them.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

POINTS = {  # name: when it is passed
    "step.begin": "a step's batches are there",
    "step.forward": "before a forward pass; nan: its loss is not finite",
    "step.backward": "after a backward pass",
    "step.optimizer": "before the optimiser's step",
    "step.end": "after the optimiser's step",
    "metrics.write": "before a line of metrics.jsonl",
    "evaluate.batch": "before a batch is predicted",
    "file.write": "before bytes go to a temporary file",
    "file.sync": "before a file or folder is flushed",
    "file.rename": "before a file takes its name",
    "file.renamed": "after it",
    "checkpoint.begin": "before a checkpoint is made",
    "checkpoint.staged": "its tensors have been copied",
    "checkpoint.write": "before each piece of its files",
    "checkpoint.sync": "before one of its files is flushed",
    "checkpoint.manifest": "before its manifest",
    "checkpoint.rename": "before it becomes visible",
    "checkpoint.renamed": "after it",
    "checkpoint.latest": "before `latest` names it",
    "checkpoint.prune": "before an old one is deleted",
    "checkpoint.end": "all of it is done",
    "download.chunk": "before a piece of a download is written",
    "archive.member": "before a member of an archive is unpacked",
    "archive.rename": "before what was unpacked takes its name",
}
VARIABLE = "LOCAP_FAULT"
LEFT_TO_CALLER = ("nan",)


@dataclass(frozen=True, slots=True)
class Fault:
    """At which passage of which point to do what, on which rank (None: every one)."""

    point: str
    passage: int
    action: str
    rank: int | None = None


class Faults:
    """Counts passages and acts at the chosen ones.

    Args:
        faults: what to do where.
        rank: of this process.
    """

    def __init__(self, faults: list[Fault], rank: int = 0) -> None:
        self.faults = [fault for fault in faults if fault.rank in (None, rank)]
        self.passages: dict[str, int] = {}

    def pass_by(self, point: str) -> str | None:
        """Count a passage; returns the action that the caller is to take, if any."""
        for counted in (point, "*"):
            self.passages[counted] = self.passages.get(counted, 0) + 1
        for fault in self.faults:
            if self.passages.get(fault.point) == fault.passage and fault.point in (point, "*"):
                return _act(fault.action, point)
        return None


def parse(text: str) -> list[Fault]:
    """Read the value of LOCAP_FAULT.

    Raises:
        ValueError: it names no point or no action.
    """
    faults = []
    for item in filter(None, text.split(";")):
        place, _, action = item.partition(":")
        action, _, rank = action.partition("#")
        point, _, passage = place.partition("@")
        if point not in (*POINTS, "*") or action not in ACTIONS:
            raise ValueError(f"{VARIABLE}: {item!r} is no fault")
        faults.append(Fault(point, int(passage or 1), action, int(rank) if rank else None))
    return faults


def reach(point: str) -> str | None:
    """Pass by a point; returns the action that is left to the caller, if any."""
    return None if _active is None else _active.pass_by(point)


def activate(environ: Mapping[str, str] = os.environ, rank: int = 0) -> Faults | None:
    """Read LOCAP_FAULT anew, for a process that was forked or learns its rank; returns what counts passages."""
    global _active
    _active = Faults(parse(environ[VARIABLE]), rank) if VARIABLE in environ else None
    return _active


def _act(action: str, point: str) -> str | None:
    if action in LEFT_TO_CALLER:
        return action
    ACTIONS[action](point)
    return None


def _raise(point: str) -> None:
    raise RuntimeError(f"a fault at {point}")


def _disk_full(point: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)


ACTIONS = {
    "kill": lambda point: os.kill(os.getpid(), signal.SIGKILL),
    "raise": _raise,
    "hang": lambda point: time.sleep(3600),
    "enospc": _disk_full,
    "exit0": lambda point: os._exit(0),
    "sigterm": lambda point: os.kill(os.getpid(), signal.SIGTERM),
    "nan": None,
}
_active: Faults | None = None
