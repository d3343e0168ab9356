"""What DATASETS.TRAIN and DATASETS.TEST name: data sets, of prompted systems each with a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.batches import PromptTargets
from ..datasets.readers.shards import is_stream
from ..datasets.tasks import TASKS, check_tasks
from ..modeling.systems import find_system
from ..utils.errors import UsageError, nearest

TASK_NAME = f"TASK:NAME, the task one of {', '.join(TASKS)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set and what a prompted system does with it; of other systems ``task`` is ""."""

    name: str
    task: str = ""

    def __str__(self) -> str:
        return f"{self.task}:{self.name}" if self.task else self.name


def is_prompted(cfg: Any) -> bool:
    """Return whether the configured system takes prompts."""
    return find_system(cfg.MODEL.NAME).targets is PromptTargets


def train_entries(cfg: Any) -> list[Entry]:
    """Return the items of DATASETS.TRAIN.

    Raises:
        UsageError: one is not what the system takes, or DATASETS.WEIGHTS is wrong.
    """
    entries = _read(cfg.DATASETS.TRAIN, "DATASETS.TRAIN", is_prompted(cfg))
    weights = cfg.DATASETS.WEIGHTS
    _require_known(weights, list(map(str, entries)), "DATASETS.WEIGHTS", "DATASETS.TRAIN")
    for name, weight in weights.items():
        if weight <= 0:
            where, fix = f"DATASETS.WEIGHTS.{name}", "leave the data set out of DATASETS.TRAIN"
            raise UsageError("A weight is not positive.", where=where, value=weight, allowed="above 0", fix=fix)
    return entries


def eval_groups(cfg: Any) -> list[tuple[Entry, ...]]:
    """Return the items of DATASETS.TEST that are scored together: all of them, or each for a prompted system.

    Raises:
        UsageError: one is not what the system takes, or EVAL_VARIANTS names neither an item nor a task.
    """
    prompted = is_prompted(cfg)
    entries = _read(cfg.DATASETS.TEST, "DATASETS.TEST", prompted)
    groups = [(entry,) for entry in entries] if prompted else [tuple(entries)]
    known = [*map(name_of, groups), *(TASKS if prompted else ())]
    _require_known(cfg.EVAL_VARIANTS, known, "EVAL_VARIANTS", "DATASETS.TEST")
    return groups


def name_of(group: Iterable[Entry]) -> str:
    """Return the name of data sets that are scored together."""
    return ", ".join(map(str, group))


def _read(names: Sequence[str], where: str, prompted: bool) -> list[Entry]:
    if not names:
        allowed = TASK_NAME if prompted else "one or more names"
        raise UsageError("No data set is given.", where=where, value="[]", allowed=allowed)
    entries = [(_with_task if prompted else _without_task)(name, where) for name in names]
    twice = [entry for entry in entries if entries.count(entry) > 1]
    if prompted and twice:
        fix = "name it once; DATASETS.WEIGHTS says how often it is drawn"
        raise UsageError("A data set is named twice with the same task.", where=where, value=str(twice[0]), fix=fix)
    return entries


def _with_task(text: str, where: str) -> Entry:
    task, colon, name = text.partition(":")
    if not colon or not name or (is_stream(text) and task not in TASKS):
        raise UsageError(
            "A data set of a prompted system is named with its task.",
            where=where,
            value=text,
            allowed=TASK_NAME,
            fix=f"for example region:{text.rstrip(':')}",
        )
    check_tasks([task], where)
    return Entry(name, task)


def _without_task(text: str, where: str) -> Entry:
    task, colon, name = text.partition(":")
    if colon and not is_stream(text):  # which opening it refuses
        raise UsageError(
            f"A data set is named with a task, {task}, but the system takes no prompts.",
            where=where,
            value=text,
            allowed="names of data sets alone",
            fix=f"write {name}, or choose a prompted system: MODEL.NAME",
        )
    return Entry(text)


def _require_known(given: Iterable[str], known: Sequence[str], where: str, items: str) -> None:
    for name in given:
        if name not in known:
            close, removal = nearest(name, known), f"--overrides {where}.{name} null"
            fix = f"write {close}, or {removal}" if close else removal
            raise UsageError(
                f"{where} has an entry that is not in {items}.",
                where=where,
                value=name,
                allowed=", ".join(known),
                fix=fix,
            )
