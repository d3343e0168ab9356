"""The command ``demo``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    return 0
