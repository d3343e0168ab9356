"""The command ``data``: list, download, verify, convert and show data sets."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.config_arguments import add_config_arguments, read_config
from ..utils.arguments import CommandParser
from ..utils.errors import DataError, MissingDependencyError, UsageError
from ..utils.logging import as_called, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from ..datasets.prepare.verify import Finding

LAZY = {  # sub-command -> module with add_arguments(parser) and run(arguments), imported when it is asked for
    "convert": ("..datasets.prepare.convert", "turn annotations of one format into another"),
    "show": (".contact_sheet", "draw what the model will see, after augmentation"),
}
UNITS = ("bytes", "kB", "MB", "GB", "TB")
ROOT_HELP = "folder of the data sets (default: $DETECTRON2_DATASETS, else $DATASETS)"
WIDE = 200  # columns of a table that goes into a file or pipe


class _Parser(CommandParser):
    """A parser whose arguments are those of a module that is imported when they are first wanted."""

    module: str | None = None

    def parse_known_args(self, args=None, namespace=None):
        if self.module is not None:
            module, self.module = importlib.import_module(self.module, __package__), None
            module.add_arguments(self)
            self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    listing = actions.add_parser("list", help="what there is, its size and licence, and whether it is there")
    listing.set_defaults(run=run_list)
    download = actions.add_parser("download", help="fetch data sets; says first what will be fetched, and asks")
    download.set_defaults(run=run_download)
    download.add_argument("names", nargs="+", metavar="NAME", help="of `data list`, or as in DATASETS.TRAIN")
    download.add_argument("--yes", action="store_true", help="do not ask")
    download.add_argument("--mirror", metavar="URL", help="has each file at URL/SET/FILE")
    download.add_argument("--keep-archives", action="store_true", help="do not delete them when they are unpacked")
    verify = actions.add_parser("verify", help="whether everything is there and fits together")
    verify.set_defaults(run=run_verify)
    verify.add_argument("names", nargs="*", metavar="NAME", help="as for download, or files of one's own; default: "
                        "what is there, or all of the configuration's")  # fmt: skip
    verify.add_argument("--deep", action="store_true", help="open every image; compare checksums where there are any")
    verify.add_argument("--write-checksums", action="store_true", help="write SHA256SUMS of all files below the root")
    for action in (listing, download, verify):
        action.add_argument("--root", metavar="FOLDER", help=ROOT_HELP)
    add_config_arguments(verify, required=False)
    for name, (module, text) in LAZY.items():
        actions.add_parser(name, help=text).module = module


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen action; returns the exit code."""
    return arguments.run(arguments)


def run_list(arguments: argparse.Namespace) -> int:
    """Show the catalogue."""
    from ..datasets.prepare.catalogue import CATALOGUE
    from ..datasets.prepare.download import require_root

    with contextlib.suppress(UsageError):
        arguments.root = require_root(arguments.root)
    rows = [
        (name, described.about, size_of(name), described.licence, _presence(name, arguments.root), described.needed_by)
        for name, described in CATALOGUE.items()
    ]
    console = _console()
    console.print(_table(("set", "what it is", "download", "licence", "there?", "needed by"), rows))
    root = f"root: {Path(arguments.root).absolute()}" if arguments.root else f"no root is given: {ROOT_HELP}"
    console.print(root, soft_wrap=True, highlight=False, markup=False)
    return 0


def run_download(arguments: argparse.Namespace) -> int:
    """Fetch sets; those without which they are of no use are named. 5 where something is left to be done by hand."""
    from ..datasets.prepare import download
    from ..datasets.prepare.catalogue import CATALOGUE, find_sets
    from ..datasets.prepare.toy import write_toy

    root, owners = download.require_root(arguments.root), list(find_sets(arguments.names))
    if "toy" in owners:
        with _writing(root):
            _say(f"written: {write_toy(root)}")
    steps = download.plan(owners, root, arguments.mirror)
    for needed in dict.fromkeys(n for owner in owners for n in CATALOGUE[owner].needs if n not in owners):
        _say(f"needed too, if it is not there: {needed} (python entry.py data verify {needed})")
    if steps:
        _announce(steps, root)
        download.require_room(steps)
        _ask(arguments.yes)
        download.carry_out(steps, keep_archives=arguments.keep_archives, any_http=bool(arguments.mirror), watch=_bar)
    left = [owner for owner in owners if CATALOGUE[owner].by_hand]
    for owner in left:
        _say(f"{owner}, by hand: {download.by_hand(owner, root)}")
    done = [owner for owner in owners if owner not in left]
    if done:
        _say(f"there: {', '.join(done)}; check with: python entry.py data verify {' '.join(done)} --root {root}")
    return MissingDependencyError.exit_code if left else 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check sets; 3 unless everything is there."""
    from ..datasets.prepare.catalogue import CATALOGUE, find_sets
    from ..datasets.prepare.checksums import NAME, read_checksums, write_checksums
    from ..datasets.prepare.download import require_root
    from ..datasets.prepare.verify import OK, is_present, verify, verify_file

    asked, given = _names_and_root(arguments)
    own, names = _own_and_named(asked, given)
    root = require_root(given or ("." if own and not names else None))
    if not root.is_dir():
        fix = "python entry.py data download NAME --root FOLDER"
        raise DataError("The folder of the data sets does not exist.", where=str(root.absolute()), fix=fix)
    if arguments.write_checksums:
        with _writing(root):
            path, count = write_checksums(root)
        _say(f"written: {path}, {count} files")
        if not asked:
            return 0
    if asked and not own and not names:
        raise UsageError("These data sets are drawn; they have no files.", value=asked)
    chosen = find_sets(names) if asked else {name: None for name in CATALOGUE if is_present(name, root)[0]}
    sums = read_checksums(root) if arguments.deep else {}
    findings = [verify_file(name, given, root, deep=arguments.deep, sums=sums) for name in own]
    with terminal().status("reading") as status:  # shown on a terminal only
        for owner, of in chosen.items():
            status.update(f"reading {owner}")
            findings += verify(owner, of, root, deep=arguments.deep, sums=sums)
    _show(findings, root)
    if arguments.deep and not sums:
        _say(f"no checksums were compared: {root / NAME} is not there (data verify --write-checksums makes it)")
    if not findings:
        raise DataError("No data set is there.", where=str(root.absolute()), fix="python entry.py data list")
    return 0 if all(finding.status == OK for finding in findings) else DataError.exit_code


def size_of(name: str) -> str:
    """Return the size of a set's downloads as people write it."""
    from ..datasets.prepare.catalogue import CATALOGUE

    described = CATALOGUE[name]
    if name == "toy":
        return "none"
    if not described.downloads:
        return "by hand"
    more = any(not download.size for download in described.downloads)
    if not described.size:
        return "not published"
    return human(described.size) + (", more not published" if more else "")


def human(count: float) -> str:
    """Return a number of bytes as people write it, in powers of 1000."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if count >= 100 or unit == UNITS[0] else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _presence(name: str, root: Path | None) -> str:
    from ..datasets.prepare.verify import is_present

    if root is None:
        return "?"
    found, total = is_present(name, Path(root))
    return "present" if found == total else f"{found} of {total}" if found else "missing"


def _names_and_root(arguments: argparse.Namespace) -> tuple[list[str], str | None]:
    """Return what to verify and where, as the command line says, else the configuration."""
    names, root = list(arguments.names), arguments.root
    if arguments.conf_files:
        cfg = read_config(arguments)
        names = names or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        root = root or cfg.DATASETS.ROOT or None
    return names, root


def _own_and_named(asked: Sequence[str], root: str | None) -> tuple[list[str], list[str]]:
    """Return the paths of files of one's own, and the other data sets that consist of files, without their tasks."""
    from ..datasets.prepare.catalogue import CATALOGUE
    from ..datasets.readers import SHAPES_SPLITS, names_file

    bare = list(dict.fromkeys(name.rpartition(":")[2] for name in asked))
    own = [name for name in bare if name not in CATALOGUE and names_file(name, root)]  # a set may be a folder, too
    return own, [name for name in bare if name not in own and name not in SHAPES_SPLITS]


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        what = f"The folder of the data sets cannot be written to: {err.strerror or err}."
        fix = "free disk space, or choose another folder with --root"
        raise MissingDependencyError(what, where=str(root.absolute()), fix=fix) from err


def _announce(steps: Sequence[Any], root: Path) -> None:
    from ..datasets.prepare.catalogue import CATALOGUE
    from ..utils.untrusted import free_bytes

    rows = [
        (step.owner, step.download.name, human(step.download.size) if step.download.size else "not published", step.url)
        for step in steps
    ]
    console = _console()
    console.print(_table(("set", "file", "size", "from"), rows))
    for owner in dict.fromkeys(step.owner for step in steps):
        _say(f"licence of {owner}: {CATALOGUE[owner].licence}")
    unknown = sum(not step.download.size for step in steps)
    known = sum(step.needed for step in steps)
    parts = [f"{human(known)} with what is unpacked"] if known else []
    parts += [f"{unknown} file(s) whose size is not published"] if unknown else []
    _say(f"into {root.absolute()}: {' and '.join(parts)}; {human(free_bytes(root))} are free")


def _ask(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("Nobody can be asked whether to fetch these files.", fix="add --yes")
    if input("Fetch them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("Nothing was fetched.", fix="answer y, or give --yes")


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Show progress, speed and time left on a terminal, else a line; yields what is told more bytes, and the length."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = terminal()
    if not console.is_terminal:
        _say(title)
        yield (lambda count: None), (lambda total: None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(title, total=total or None)
        yield (
            (lambda count: progress.update(task, advance=count)),
            (lambda length: progress.update(task, total=length or None)),
        )


def _show(findings: Sequence[Finding], root: Path) -> None:
    rows = [(f.what, f.status, _number(f.found), _number(f.expected), as_called(f.fix)) for f in findings]
    console = _console()
    console.print(_table(("data set or file", "status", "found", "expected", "fix"), rows))
    for finding in findings:
        if finding.status != "ok":  # whole lines, since a path that is cut cannot be copied
            text = f"{finding.status}: {finding.what}: {finding.where}"
            console.print(text, soft_wrap=True, highlight=False, markup=False)
    console.print(f"root: {root.absolute()}", soft_wrap=True, highlight=False, markup=False)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def _say(text: str) -> None:
    sys.stderr.write(f"{as_called(text)}\n")
