"""Judges' answers in a file of JSON lines: one line per request, on disk as soon as it is answered.

A line holds ``key`` (`request_key`), ``model``, ``content``, ``answered_by``, and for readers the sampling parameters,
``run`` and the ``prompt``. Of two lines with one key the first counts. A line that a crash cut off is left out when the
file is read, and removed before anything is appended.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted import read_text, shown
from .requests import Reply, Request, request_key, sampling

MAX_BYTES = 2**30
_FIELDS = ("key", "model", "content", "answered_by")


class AnswerFile:
    """The answers of one file; threads may share it.

    Args:
        path: the file.
        must_exist: refuse a file that is not there; else it is made with the first answer.

    Raises:
        DataError: the file is missing, or a line is no answer.
    """

    def __init__(self, path: str | Path, *, must_exist: bool) -> None:
        self.path = Path(path)
        self.models: set[str] = set()
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._file: int | None = None
        if must_exist or self.path.exists():
            self._read()

    def get(self, model: str, request: Request) -> Reply | None:
        """Return the stored reply."""
        return self._replies.get(request_key(model, request))

    def add(self, model: str, request: Request, reply: Reply) -> Reply:
        """Store a reply and return it, or the one that another thread has stored meanwhile."""
        key = request_key(model, request)
        line = {
            "key": key,
            "model": model,
            "content": reply.content,
            "answered_by": reply.model,
            **sampling(request),
            "run": request.run,
            "prompt": request.text,
        }
        with self._lock:
            if key in self._replies:
                return self._replies[key]
            self._append(json.dumps(line).encode("ascii") + b"\n")
            self._replies[key] = reply
        return reply

    def close(self) -> None:
        """Close the file; the next answer opens it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _read(self) -> None:
        text = read_text(self.path, MAX_BYTES) if self.path.exists() and self.path.stat().st_size else ""
        if not self.path.exists():
            read_text(self.path)  # raises what is known about missing files
        whole, _, _ = text.rpartition("\n")
        for number, line in enumerate(whole.split("\n") if whole else (), start=1):
            body = self._parse(line, number)
            self.models.add(body["model"])
            self._replies.setdefault(body["key"], Reply(body["content"], body["answered_by"]))

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in _FIELDS):
            raise DataError(
                "A line is no judge's answer.",
                where=f"{shown(self.path)}: line {number}",
                value=line[:80],
                allowed=f"a JSON object with the texts {', '.join(_FIELDS)}",
            )
        return body

    def _append(self, line: bytes) -> None:
        """Write one line with one call and wait until it is on disk."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            _remove_torn_line(self._file)
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)


def _remove_torn_line(file: int) -> None:
    """Cut the file after its last line end."""
    size = end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        end = start + found + 1 if found >= 0 else start
        if found >= 0:
            break
    if end < size:
        os.ftruncate(file, end)
