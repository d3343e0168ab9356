"""Bring data sets of the catalogue into the layout that the readers expect.

Archives wait in ``<root>/downloads/<set>/``, where a person may put them just as well. Each target becomes visible by
one rename, complete; so whatever was interrupted is simply done again.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ...utils.errors import DataError, MissingDependencyError, UsageError
from ...utils.untrusted import require_space, unpack
from ..readers.whereabouts import ROOT_VARIABLES
from .catalogue import CATALOGUE, Download
from .fetch import Advance, check, fetch

_LOCK_SECONDS = 20.0  # after which waiting for another process is worth a word
_log = logging.getLogger(__name__)
Watch = Callable[[str, int], contextlib.AbstractContextManager[tuple[Advance, Advance]]]  # yields (advance, told)


@contextlib.contextmanager
def unwatched(title: str, total: int) -> Iterator[tuple[Advance, Advance]]:
    """Show no progress."""
    yield (lambda count: None), (lambda total: None)


@dataclass(frozen=True, slots=True)
class Step:
    """A file that is not there yet.

    Attributes:
        owner: its set.
        download: the file.
        root: folder of the data sets.
        url: where it is fetched from, at a mirror perhaps.
        targets: what of it is missing.
    """

    owner: str
    download: Download
    root: Path
    url: str
    targets: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the file itself is put before it is unpacked."""
        if self.download.is_archive:
            return self.root / "downloads" / self.owner / self.download.name
        return self.root / self.targets[0]

    @property
    def needed(self) -> int:
        """Bytes of disk that it still takes, archive and contents, as far as is known."""
        size, part = self.download.size, self.path.with_name(f"{self.path.name}.part")
        there = size if self.path.is_file() else part.stat().st_size if part.is_file() else 0
        return max(size - there, 0) + ((self.download.unpacked or size) if self.download.is_archive else 0)


def plan(owners: Sequence[str], root: Path, mirror: str | None = None) -> list[Step]:
    """Return what has to be fetched of some sets; what lies in another accepted layout counts as there."""
    steps = []
    for owner in owners:
        for download in CATALOGUE[owner].downloads:
            missing = tuple(target for target in download.gives if not _is_there(root, target))
            if missing:
                url = f"{mirror.rstrip('/')}/{owner}/{download.name}" if mirror else download.url
                steps.append(Step(owner, download, root, url, missing))
    return steps


def _is_there(root: Path, target: str) -> bool:
    return any((root / place).exists() for place in (target, target.removeprefix("coco/"), f"coco/{target}"))


def require_room(steps: Sequence[Step]) -> None:
    """Raise `MissingDependencyError` unless archives and contents fit on the disk."""
    if steps:
        require_space(steps[0].root, sum(step.needed for step in steps), "the archives and what is in them")


def carry_out(
    steps: Sequence[Step], *, keep_archives: bool = False, any_http: bool = False, watch: Watch = unwatched
) -> None:
    """Fetch and unpack; another process that does the same is waited for, and its work is used.

    Raises:
        MissingDependencyError: something cannot be had; says which files to put where by hand.
    """
    for number, step in enumerate(steps):
        try:
            with _locked(step):
                _carry_out(step, keep_archives, any_http, watch)
        except (MissingDependencyError, DataError) as err:
            raise _with_instructions(err, steps[number:]) from err
        except OSError as err:
            what = f"The files cannot be written: {err.strerror or err}."
            fix = "free disk space, or choose another folder with --root; then run the command again"
            raise MissingDependencyError(what, where=str(step.root.absolute()), fix=fix) from err


def _carry_out(step: Step, keep_archives: bool, any_http: bool, watch: Watch) -> None:
    targets = [target for target in step.targets if not _is_there(step.root, target)]
    if not targets:  # another process was faster
        return
    sums = {"size": step.download.bytes, "md5": step.download.md5, "sha256": step.download.sha256}
    name = step.download.name
    fetched = step.path.with_name(f".{name}.fetched")  # what a person put there is never deleted
    if step.path.is_file():
        check(step.path, str(step.path), keep=True, **sums)
    else:
        with watch(f"{step.owner}: {name}", step.download.size) as (advance, told):
            fetch(step.url, step.path, any_http=any_http, advance=advance, told=told, **sums)
        if step.download.is_archive:
            fetched.touch()
    if not step.download.is_archive:
        return
    with watch(f"{step.owner}: unpacking {name}", step.download.unpacked or step.download.size) as (advance, _):
        for target in targets:
            path = step.root / target
            path.parent.mkdir(parents=True, exist_ok=True)
            unpack(step.path, step.download.gives[target], path, advance)
    if fetched.exists():
        if not keep_archives:
            step.path.unlink()
        fetched.unlink()


@contextlib.contextmanager
def _locked(step: Step) -> Iterator[None]:
    folder = step.root / "downloads" / step.owner
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        fix = "choose a folder that can be written to with --root"
        raise MissingDependencyError(f"The folder cannot be made: {err.strerror}.", where=str(folder), fix=fix) from err
    lock = FileLock(folder / f"{step.download.name}.lock")
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        _log.info("%s is being fetched by another process; waiting for it.", step.download.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _with_instructions(err: MissingDependencyError | DataError, steps: Sequence[Step]) -> MissingDependencyError:
    fix = "; ".join(filter(None, (err.fix, "try again later, or as below")))
    error = MissingDependencyError(err.what, where=err.where, value=err.value, allowed=err.allowed, fix=fix)
    error.args = (f"{error}\n{instructions(steps)}",)
    return error


def instructions(steps: Sequence[Step]) -> str:
    """Say which files to put where by hand, with what is published about each."""
    lines = ["Without this network, on another machine: fetch these files, put them there, and run the command again."]
    for step in steps:
        download = step.download
        size = f"{download.bytes:,} bytes" if download.bytes else "size not published"
        published = (("sha256", download.sha256), ("md5", download.md5))
        sums = ", ".join(f"{kind} {digest}" for kind, digest in published if digest)
        lines += [
            f"  {download.url}",
            f"    {size}, {sums or 'checksum not published'}",
            f"    -> {step.path.absolute()}",
        ]
    lines.append("Behind a proxy: export https_proxy=http://PROXY:PORT; with a mirror of your own: --mirror URL, which")
    lines.append("has each file at URL/SET/FILE, such as " + f"URL/{steps[0].owner}/{steps[0].download.name}")
    return "\n".join(lines)


def by_hand(owner: str, root: Path) -> str:
    """Return how the rest of a set is had, for this root; empty when nothing is left."""
    text = CATALOGUE[owner].by_hand
    return text.replace("ROOT", str(root.absolute())) if text else ""


def require_root(root: str | Path | None) -> Path:
    """Return the folder of the data sets: as given, else ``$DETECTRON2_DATASETS``, else ``$DATASETS``.

    Raises:
        UsageError: none is given.
    """
    given = root or next((os.environ[name] for name in ROOT_VARIABLES if os.environ.get(name)), None)
    if given is None:
        fix = f"--root FOLDER, or export {ROOT_VARIABLES[0]}=FOLDER"
        raise UsageError("The folder of the data sets is not given.", fix=fix)
    return Path(given).expanduser()
