"""Errors a user can mend: one message, one exit code, no traceback.

Every message answers four questions: what is wrong, where, which value was given and what is allowed, and which
command mends it. ``entry.py`` prints the message and leaves with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_INTERNAL = 70  # a defect of locap itself, with a traceback
EXIT_STOPPED = 75  # stopped on request, state saved, start again to go on
MAX_SHOWN = 1000  # characters of an offending value


class LocapError(Exception):
    """A user error.

    Args:
        what: what is wrong, one sentence.
        where: file, config key or record it was found in.
        value: the offending value, shown as given, its middle left out where it is long.
        allowed: what would have been accepted.
        fix: the command or edit that mends it.
    """

    exit_code = EXIT_INTERNAL

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        value: object = None,
        allowed: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.value, self.allowed, self.fix = what, where, value, allowed, fix
        lines = [what]
        labelled = (
            ("where", where),
            ("value", None if value is None else shortened(repr(value))),
            ("allowed", allowed),
            ("fix", fix),
        )
        lines += [f"  {label + ':':<9}{text}" for label, text in labelled if text is not None]
        super().__init__("\n".join(lines))

    def __reduce__(self):  # keyword arguments must survive the trip out of a loader worker
        return _rebuild, (type(self), self.what, self.where, self.value, self.allowed, self.fix)


def _rebuild(cls: type[LocapError], what, where, value, allowed, fix) -> LocapError:
    return cls(what, where=where, value=value, allowed=allowed, fix=fix)


class UsageError(LocapError):
    """A wrong command line or configuration."""

    exit_code = 2


class DataError(LocapError):
    """An unreadable or inconsistent image, annotation or record."""

    exit_code = 3


class CheckpointError(LocapError):
    """Weights or a run folder that cannot be used."""

    exit_code = 4


class MissingDependencyError(LocapError):
    """Something the machine lacks: a package, a GPU, Java, disk space, the network."""

    exit_code = 5


class NumericError(LocapError):
    """Training diverged: a loss or gradient is not finite."""

    exit_code = 6


class Stopped(LocapError):
    """Not an error: training was asked to stop, and has saved its state."""

    exit_code = EXIT_STOPPED


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    """Return a text without its middle where it is longer than a message should be."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word closest to ``word``, or None when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
