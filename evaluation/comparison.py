"""Several result files side by side, provided they rest on the same ground truth and protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..utils.errors import DataError, UsageError
from ..utils.untrusted import read_json, shown
from .report import FORMAT

Protocol = tuple[str, str]  # id and variant


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result file as `write_report` writes it.

    Attributes:
        name: what tells it from the other files.
        figures: protocol -> figure -> value.
        truth: sha256 of the ground truth.
        options: protocol id -> the options it was told.
        facts: how the predictions came about and what measured them, for display: name -> text.
    """

    name: str
    figures: dict[Protocol, dict[str, float]]
    truth: str
    options: Mapping[str, Any]
    facts: dict[str, str]


def load_results(paths: Sequence[str | Path]) -> list[ResultFile]:
    """Read result files.

    Raises:
        UsageError: fewer than two are given.
        DataError: one is no result file.
    """
    if len(paths) < 2:
        raise UsageError(
            "There is nothing to compare.", value=list(map(str, paths)), allowed="two result files or more"
        )
    return [_load(Path(path), name) for path, name in zip(paths, short_names(paths), strict=True)]


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """Return the paths without the leading folders that all of them share, and without their endings."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    shortest = min(map(len, parts))
    same = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest - 1)
    return [shown(Path(*part[same:])) for part in parts]


def _load(path: Path, name: str) -> ResultFile:
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        value = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise DataError("This is no result file.", where=shown(path), value=value, allowed=f'"format": "{FORMAT}"')
    try:
        figures = {
            (result["protocol"], result["variant"]): {key: float(value) for key, value in result["figures"].items()}
            for result in document["results"]
        }
        truth, facts = document["ground_truth"]["sha256"], dict(_facts(document))
        return ResultFile(name, figures, truth, document.get("options", {}), facts)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise DataError(
            "The result file is damaged.", where=shown(path), value=f"{type(err).__name__}: {err}"
        ) from None


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for side in ("ground_truth", "predictions"):
        for key in ("name", "images", "regions"):
            yield f"{side} {key}", str(document[side][key])
    yield "seed", str(document["seed"])
    for group in ("decoding", "versions"):
        for key, value in document[group].items():
            yield f"{group} {key}", str(value)
    for result in document["results"]:
        for figure, reason in result["unavailable"].items():
            yield f"{result['protocol']} lacks {figure}", str(reason).partition("\n")[0]


def require_comparable(files: Sequence[ResultFile]) -> None:
    """Raise a `DataError` that names what differs when figures of the files do not mean the same."""
    first = files[0]
    for other in files[1:]:
        where = f"{first.name} and {other.name}"
        pairs = {
            "were scored by different protocols": (_protocols(first), _protocols(other)),
            "rest on different ground truth": (f"sha256 {first.truth}", f"sha256 {other.truth}"),
            "were scored with different options": (first.options, other.options),
        }
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise DataError(
                    f"The results {what}; their figures do not mean the same.",
                    where=where,
                    value=f"{ours} and {theirs}",
                    fix="score both by one command line, or add --force to see them anyway",
                )


def _protocols(file: ResultFile) -> str:
    return ", ".join(sorted(f"{protocol} ({variant})" for protocol, variant in file.figures))


def compare_figures(files: Sequence[ResultFile]) -> dict[Protocol, dict[str, list[float | None]]]:
    """Return protocol -> figure -> its value in each file, None where a file lacks it."""
    protocols = dict.fromkeys(protocol for file in files for protocol in file.figures)
    return {
        protocol: {
            figure: [file.figures.get(protocol, {}).get(figure) for file in files]
            for figure in dict.fromkeys(name for file in files for name in file.figures.get(protocol, {}))
        }
        for protocol in protocols
    }


def differing_facts(files: Sequence[ResultFile]) -> dict[str, list[str]]:
    """Return what is known about the files and not the same in all: decoding, seed, versions, …"""
    names = dict.fromkeys(name for file in files for name in file.facts)
    rows = {name: [file.facts.get(name, "") for file in files] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def print_comparison(files: Sequence[ResultFile], console: Console | None = None) -> None:
    """Print a table per protocol, a column per file, differences to the first in brackets; then what else differs."""
    console = console or Console()
    for (protocol, variant), figures in compare_figures(files).items():
        rows = {name: [_cell(values[0], value) for value in values] for name, values in figures.items()}
        console.print(_table(f"{protocol} ({variant})", "figure", files, rows, "right"))
    if facts := differing_facts(files):
        console.print(_table("what else differs", "", files, facts, "left"))


def _cell(first: float | None, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if first is None or value is first else f"{value:.4f} ({value - first:+.4f})"


def _table(
    title: str, head: str, files: Sequence[ResultFile], rows: Mapping[str, Sequence[str]], justify: Any
) -> Table:
    table = Table(title=title)
    table.add_column(head)
    for file in files:
        table.add_column(escape(file.name), justify=justify, overflow="fold")
    for name, values in rows.items():
        table.add_row(escape(name), *map(escape, values))
    return table
