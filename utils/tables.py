"""Tables of texts: drawn on a terminal, aligned plain text elsewhere, and nothing is ever cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

MAX_PADDED = 48  # a longer cell moves its own row only, not all of them


def write_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    file: TextIO | None = None,
    styles: Sequence[str] | None = None,
) -> None:
    """Write a table.

    Args:
        headers: of the columns.
        rows: texts, as many per row as there are headers.
        file: standard output by default; drawn when it is a terminal.
        styles: colour of each row on a terminal.
    """
    file = file or sys.stdout
    if not file.isatty():
        file.write(plain_table(headers, rows))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for index, row in enumerate(rows):
        table.add_row(*map(Text, row), style=styles[index] if styles else None)
    Console(file=file).print(table)


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as lines whose columns are two spaces apart."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(cell) for cell in column if len(cell) <= MAX_PADDED) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(line.rstrip() + "\n" for line in padded)
