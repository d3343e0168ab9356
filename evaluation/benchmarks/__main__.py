"""The benchmarks' command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ...utils.errors import LocapError
from .dense_captioning import dense_captioning
from .detection import detection
from .meteor import meteor
from .panoptic import panoptic
from .panoptic_captioning import panoptic_captioning

COMMANDS = {
    "panoptic": panoptic,
    "detection": detection,
    "panoptic_captioning": panoptic_captioning,
    "dense_captioning": dense_captioning,
    "meteor": meteor,
}


def main(argv: list[str] | None = None) -> int:
    """Measure, show and write; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        report = COMMANDS[arguments.command](arguments.size, arguments.repeats)
    except LocapError as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code
    report.show(Console())
    if arguments.output:
        report.write(Path(arguments.output), {"size": arguments.size, "repeats": arguments.repeats})
    return 0 if report.facts["same figures"] else 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m locap.evaluation.benchmarks",
        description="Take the processor time of scoring, beside straightforward ways of computing the same figures.",
    )
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--size", choices=["small", "val"], default="small", help="val: as a published validation set")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns; medians are shown")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
