"""Checkpoints of which every rank writes a part: the ranks report through a store, so that a thread can do it.

No collective is needed: rank 0 says where to write, every rank reports its files or its error, rank 0 waits for all
of them, makes the checkpoint visible and says what became of it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError
from ..utils.fault_points import reach
from ..utils.files import sync
from .checkpoint_commit import disk_reason
from .checkpoint_files import FileEntry, files_under, hash_file

POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Meeting:
    """One checkpoint's messages in the store.

    Attributes:
        store: a `torch.distributed.Store` that all ranks share; it is asked, never waited on, because a client that
            waits keeps other threads from using it.
        prefix: of the keys.
        rank, size: of this process.
        limit_seconds: how long the slowest rank may write.
    """

    store: Any
    prefix: str
    rank: int
    size: int
    limit_seconds: float

    def say(self, key: object, value: object) -> None:
        """Leave a message for the others."""
        self.store.set(f"{self.prefix}/{key}", json.dumps(value))

    def hear(self, keys: Sequence[object], what: str) -> list[Any]:
        """Return the messages of these keys once all are there.

        Raises:
            CheckpointError: some are missing after the limit; it names them.
        """
        end = time.monotonic() + self.limit_seconds
        missing = list(keys)
        while missing := [key for key in missing if not self.store.check([f"{self.prefix}/{key}"])]:
            if time.monotonic() > end:
                raise CheckpointError(
                    f"The checkpoint is incomplete: {what}.",
                    value=", ".join(f"rank {key}" for key in missing if isinstance(key, int)) or None,
                    allowed=f"within {self.limit_seconds:g} s",
                )
            time.sleep(POLL_SECONDS)
        return [json.loads(self.store.get(f"{self.prefix}/{key}")) for key in keys]


def follow(meeting: Meeting, write_my_files: Callable[[Path], None]) -> None:
    """Write this rank's files where rank 0 says, and wait for what becomes of the checkpoint.

    Raises:
        CheckpointError: it failed, on whichever rank.
        OSError: likewise, because of the disk.
    """
    patience = replace(meeting, limit_seconds=2 * meeting.limit_seconds)  # more than that of rank 0, who knows more
    (folder,) = patience.hear(["folder"], "rank 0 has not said where to write")
    if folder:
        _take_part(meeting, Path(folder), write_my_files)
    (verdict,) = patience.hear(["verdict"], "rank 0 has not said what became of it")
    _raise_reported(verdict)


@contextmanager
def presiding(meeting: Meeting) -> Iterator[None]:
    """Tell the other ranks what becomes of the checkpoint that rank 0 makes in this block."""
    error: Exception | None = None
    try:
        yield
    except Exception as err:
        error = err
        raise
    finally:
        if not meeting.store.check([f"{meeting.prefix}/folder"]):
            meeting.say("folder", "")  # nothing to write
        meeting.say("verdict", _reported(error))


def gather(meeting: Meeting, temporary: Path, write_my_files: Callable[[Path], None]) -> dict[str, FileEntry]:
    """Have every rank write its files; returns those of all ranks.

    Raises:
        CheckpointError: a rank failed or does not answer, two wrote the same file, or they share no file system.
        OSError: a rank failed because of the disk.
    """
    meeting.say("folder", str(temporary))
    _take_part(meeting, temporary, write_my_files)
    files: dict[str, FileEntry] = {}
    for rank, said in enumerate(meeting.hear(range(meeting.size), "these ranks have not reported their files")):
        _raise_reported(said)
        for name, entry in said["files"].items():
            path = temporary / name
            if name in files or not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise CheckpointError(
                    "A rank's file is not where rank 0 can see it, or two ranks wrote it.",
                    where=str(path),
                    value=f"rank {rank}",
                    allowed="files of different names, in a folder that all hosts share",
                )
            files[name] = FileEntry(**entry)
    return files


def _take_part(meeting: Meeting, temporary: Path, write_my_files: Callable[[Path], None]) -> None:
    """Write this rank's files, and report them or why they are not there."""
    try:
        entries = _write(temporary, meeting.rank, write_my_files)
        said = {"files": {name: asdict(entry) for name, entry in entries.items()}, "error": None}
    except Exception as err:
        said = _reported(err, f"rank {meeting.rank}: ")
    meeting.say(meeting.rank, said)


def _write(temporary: Path, rank: int, write_my_files: Callable[[Path], None]) -> dict[str, FileEntry]:
    """Write into a folder of this rank, flush, and move the files to where those of all ranks lie."""
    own = temporary / f".rank-{rank}"
    own.mkdir()
    reach("checkpoint.write")
    write_my_files(own)
    entries = {}
    for name in files_under(own):
        reach("checkpoint.sync")
        sync(own / name)
        entries[name] = FileEntry((own / name).stat().st_size, hash_file(own / name))
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(own / name, temporary / name)
    shutil.rmtree(own)
    return entries


def _reported(error: Exception | None, prefix: str = "") -> dict[str, Any]:
    """Return an error as a message; ``disk`` says whose fault it is."""
    if error is None:
        return {"error": None}
    reason = disk_reason(error)
    return {"error": prefix + (reason or str(error)), "disk": reason is not None}


def _raise_reported(said: Mapping[str, Any]) -> None:
    if said["error"] is not None:
        raise (OSError if said["disk"] else CheckpointError)(said["error"])
