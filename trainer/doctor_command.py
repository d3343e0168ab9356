"""The command ``doctor``: what this machine has, and the command that mends what it lacks.

Works under a launcher, too (``mpirun -n 2 python entry.py doctor``): rank 0 then shows every process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..utils.tables import write_table
from . import doctor
from .doctor import BROKEN, MISSING, OK, Line
from .doctor.ranks import join

_MARKS = {OK: "ok", MISSING: "optional", BROKEN: "BROKEN"}
_STYLES = {OK: "green", MISSING: "yellow", BROKEN: "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.epilog = "Leaves with 0, or with 5 when something is broken."


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    rank, processes = join()
    if rank:
        return 0
    lines = [*doctor.examine(), *processes]
    code = doctor.exit_code(lines)
    if arguments.json:
        report = {"exit_code": code, "checks": [asdict(line) for line in lines]}
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _show(lines)
    return code


def _show(lines: Sequence[Line]) -> None:
    rows = [(_MARKS[line.state], line.name, line.text) for line in lines]
    write_table(("", "CHECK", "FOUND"), rows, styles=[_STYLES[line.state] for line in lines])
    for state, title in ((MISSING, "Optional, and how to get it"), (BROKEN, "Broken, and how to mend it")):
        found = [line for line in lines if line.state == state]
        if found:
            sys.stdout.write(f"\n{title}:\n")
            sys.stdout.writelines(f"  {line.name}: {line.fix}\n" for line in found)
    count = {state: sum(line.state == state for line in lines) for state in _MARKS}
    sys.stdout.write(f"\n{count[OK]} ok, {count[MISSING]} optional, {count[BROKEN]} broken\n")
