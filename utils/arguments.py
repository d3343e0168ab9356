"""Command lines: what is wrong with one is told in a line with what is allowed, not below a page of usage."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import UsageError, nearest


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are those of `UsageError`; sub-commands are of this class, too."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse as the base class; what a sub-command does not know is told by itself, which knows its options."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong, what the argument takes, the nearest name and where to read more; leaves with 2."""
        close = self._nearest(message)
        fix = f"did you mean {close}?" if close else f"{self.prog} --help"
        sys.stderr.write(f"error: {UsageError(f'{self.prog}: {message}', allowed=self._allowed(message), fix=fix)}\n")
        self.exit(UsageError.exit_code)

    def _allowed(self, message: str) -> str | None:
        """Return how the argument that the message is about is written; choices stand in the message already."""
        found = re.match(r"argument (\S+): ", message)
        names = found[1].split("/") if found else []
        actions = [action for action in self._actions if {*names} & {*action.option_strings}]
        if not actions or "invalid choice" in message:
            return None
        values = self._get_formatter()._format_args(actions[0], actions[0].dest.upper())
        return f"{actions[0].option_strings[-1]} {values}"

    def _nearest(self, message: str) -> str | None:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            return nearest(unknown[1].partition("=")[0], self._option_string_actions.keys() - {"-h", "--help"})
        choice = re.search(r"invalid choice: '(.*?)' ", message)
        if not choice:
            return None
        return nearest(choice[1], [str(name) for action in self._actions for name in action.choices or ()])
