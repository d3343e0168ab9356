"""A run that hangs ends soon, and says which process hangs where."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..utils.errors import EXIT_INTERNAL
from .distributed import World, failures_of_group
from .failures import POLL, flush, say

_SILENCE = 4.0  # seconds without news after which a process counts as stopped
_UNHEARD = {"phase": "start", "step": 0, "marks": 0, "calls": 0, "beats": 0, "place": "an unknown place"}


class Watchdog:
    """Notices that a step, an evaluation or a checkpoint takes longer than it may.

    A thread tells the store how far this process has come and where its main thread is; the loop only sets a variable.
    Every process compares, so that it does not matter which one hangs. After the limit the processes that are behind
    are named, all write their stacks and leave with exit code 70.

    Args:
        world: this process among its peers.
        limits: seconds that each phase may last, from one mark to the next; others have no limit.
        folder: run folder, for stacks in logs/rank_N.log; None: standard error.
    """

    def __init__(self, world: World, limits: Mapping[str, float], folder: str | Path | None = None) -> None:
        self.world, self.limits = world, dict(limits)
        self.path = None if folder is None else Path(folder) / "logs" / f"rank_{world.rank}.log"
        self._mark = ("start", 0, 0)  # phase, step, how many marks there have been
        self._seen: dict[int, tuple[int, float, int, float]] = {}  # rank: marks, since when, beats, since when
        self._latest: dict[int, dict] = {}
        self._beats, self._closed = 0, threading.Event()
        self._main = threading.main_thread().ident
        self._failures = failures_of_group()

    def start(self) -> None:
        """Begin to watch."""
        if self._failures is not None:
            self._failures.others.append(self._exchange)
            self._failures.on_hang.append(self._dump)
        self._since = time.monotonic()
        threading.Thread(target=self._compare, name="locap watchdog", daemon=True).start()

    def mark(self, phase: str, step: int) -> None:
        """Say that a phase begins; costs nothing."""
        self._mark = (phase, step, self._mark[2] + 1)

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        if self._failures is not None and self._exchange in self._failures.others:
            self._failures.others.remove(self._exchange)
            self._failures.on_hang.remove(self._dump)

    def _state(self) -> dict:
        phase, step, marks = self._mark
        self._beats += 1
        group = dist.group.WORLD
        calls = group._get_sequence_number_for_group() if group is not None else 0
        return {
            "phase": phase,
            "step": step,
            "marks": marks,
            "calls": calls,  # collectives begun: a process that waits in one is ahead of one that has not come to it
            "beats": self._beats,
            "place": self._place(),
        }

    def _place(self) -> str:
        frame = sys._current_frames().get(self._main)
        stack = traceback.extract_stack(frame, limit=None) if frame is not None else []
        ours = [entry for entry in stack if f"{os.sep}torch{os.sep}" not in entry.filename] or stack
        return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "unknown"

    def _exchange(self, store: Any) -> None:
        """Tell how far this process is and read how far the others are; called by the thread that has the store."""
        store.set(f"progress/{self.world.rank}", json.dumps(self._state()))
        for rank in range(self.world.size):
            if store.check([f"progress/{rank}"]):
                self._latest[rank] = json.loads(store.get(f"progress/{rank}"))

    def _compare(self) -> None:
        while not self._closed.wait(POLL):
            now, states = time.monotonic(), dict(self._latest)
            if self._failures is None or self.world.rank not in states:
                states[self.world.rank] = self._state()
            for rank in range(self.world.size):  # one that stopped before it told anything is there too
                states.setdefault(rank, _UNHEARD)
            late = None
            for rank, state in states.items():
                marks, since, beats, heard = self._seen.get(rank, (-1, now, -1, now))
                since = since if marks == state["marks"] else now
                heard = heard if beats == state["beats"] else now
                self._seen[rank] = (state["marks"], since, state["beats"], heard)
                limit = self.limits.get(state["phase"])
                if limit is not None and now - since > limit:
                    late = (state["phase"], limit)
            if late is not None:
                self._end(states, *late)

    def _end(self, states: Mapping[int, dict], phase: str, limit: float) -> None:
        behind = self._behind(states)
        lines = [f"error: The run hangs: {phase} lasts longer than {limit:g} s."]
        for rank in behind or states:
            state = states[rank]
            why = "" if rank not in self._silent(states) else ", does not answer (stopped, or its machine is lost)"
            lead = "is behind" if behind else "waits"
            lines.append(
                f"  rank {rank} on {self._host(rank)} {lead}: {state['phase']} of step {state['step']}, "
                f"last seen at {state['place']}{why}"
            )
        lines.append(f"  stacks:  {self.path.parent if self.path else 'standard error'}")
        lines.append("  fix:     if it only is slow, give more time: TIMEOUTS.STEP, TIMEOUTS.FIRST_STEP")
        text, closed = "\n".join(lines), self._closed.is_set()
        if closed:
            return
        if self._failures is None:
            say(f"{text}\n")
            self._dump()
            flush()
            os._exit(EXIT_INTERNAL)
        self._failures.on_hang.append(lambda: self._kill_mates(behind))
        whose = f"told by rank {self.world.rank} on {self.world.host}"
        self._failures.end(behind[0] if behind else self.world.rank, text, whose=whose, hangs=True)

    def _silent(self, states: Mapping[int, dict]) -> list[int]:
        now = time.monotonic()
        return [rank for rank in states if now - self._seen[rank][3] > _SILENCE or self._mate_state(rank) == "stopped"]

    def _behind(self, states: Mapping[int, dict]) -> list[int]:
        """Return the ranks that the others wait for: those that do not answer, else those that have come less far."""
        silent = [rank for rank in self._silent(states) if rank != self.world.rank]
        stopped = [rank for rank in silent if self._mate_state(rank) != "alive"]
        if stopped or 0 < len(silent) < len(states) - 1:
            return stopped or silent
        if 0 in silent:
            return [0]  # it keeps the store: without it nothing is heard of anybody
        far = {rank: (state["step"], state["calls"], state["marks"]) for rank, state in states.items()}
        return [rank for rank in far if far[rank] == min(far.values()) < max(far.values())]

    def _mate_state(self, rank: int) -> str:
        return "alive" if self._failures is None else self._failures.state_of(rank)

    def _host(self, rank: int) -> str:
        return self._failures.mates[rank]["host"] if self._failures is not None else self.world.host or "this machine"

    def _kill_mates(self, behind: list[int]) -> None:
        """A stopped process cannot leave by itself, and torchrun waits half a minute for it."""
        for rank in behind:
            if self.world.launcher == "torchrun" and self._mate_state(rank) == "stopped":
                os.kill(self._failures.mates[rank]["pid"], signal.SIGKILL)

    def _dump(self) -> None:
        """Write the stacks of all threads."""
        if self.path is None:
            say(f"stacks of rank {self.world.rank}:\n")
            faulthandler.dump_traceback(sys.__stderr__)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} stacks of rank {self.world.rank}\n")
            file.flush()
            faulthandler.dump_traceback(file)
