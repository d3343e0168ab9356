"""Records in webdataset's shards: tar archives ``name-000000.tar``, ... of samples, which are files that share a key.

``<key>.json`` is the record (`record_to_json`), ``<key>.jpg`` (or png, webp, bmp, tiff) its image,
``<key>.panoptic.png`` its id map where it has one; other members are ignored. `write_shards` writes them, and beside
them `INDEX`: the shards with their sizes and hashes, and the categories.

Nothing is unpacked. The headers of the archives are read once, where each record begins is kept in locap's cache
folder, and a sample is then a seek and a read in the archive. Archives must be plain files here: what streams from
elsewhere (``pipe:``, ``http:``, ``s3:``) can be read in one order only, and is copied first.
"""

from __future__ import annotations

import glob
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...utils import untrusted
from ...utils.cache import cached_tensor, digest
from ...utils.errors import DataError, UsageError
from ...utils.untrusted import get, objects, shown
from ..records import FORMAT as RECORDS
from ..records import Category, Record, record_from_json, records_from_json

INDEX, FORMAT = "shards.json", "locap-shards/1"
RECORD, ID_MAP = "json", "panoptic.png"
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")  # the first that a sample has is its image
_MAX_SHARDS = 100_000
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # as webdataset has it: the first dot of the file's name
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The files of a data set of shards.

    Attributes:
        name: as it was given, for messages.
        files: the archives.
        samples: how many each holds by the index; None where there is no index.
        categories: of the index, perhaps none.
    """

    name: str
    files: tuple[Path, ...]
    samples: tuple[int, ...] | None = None
    categories: tuple[Category, ...] = ()


class _Shard(NamedTuple):
    """A shard as an index describes it; ``size`` in bytes."""

    file: Path
    size: int
    samples: int


class ShardReader:
    """Records of shards, in any order and in any process.

    Args:
        name: a folder with `INDEX`, an archive, or archives by a pattern such as ``name-{000000..000117}.tar`` or
            ``name-*.tar``; `INDEX` beside them, if there is one, tells their categories.
        root: where a relative name lies that does not lie in the working folder.

    Attributes:
        categories: none where no index tells them.
        blocks: numbers of samples of the shards, which orders keep together (`draw_order`).

    Raises:
        UsageError: the name is a URL.
        DataError: shards are missing, empty, truncated, of another size than their index says, or hostile (`scan_tar`);
            a sample lacks its record or image.
    """

    def __init__(self, name: str | Path, root: str | Path | None = None) -> None:
        found = find_shards(name, root)
        self.files, self.categories = [str(file) for file in found.files], found.categories
        self._table = _table(found)
        self.blocks = np.bincount(self._table[:, 0], minlength=len(self.files)).tolist()
        _check_counts(found, self.blocks)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        """Return one record; image and id map are members of its shard.

        Raises:
            DataError: the record is malformed, or the shard was changed.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        shard, text, image, ids = self._table[index].tolist()
        archive = self.files[shard]
        member = untrusted.member_at(archive, text)
        body = untrusted.parse_json(untrusted.read_member(member), shown(member))
        record = record_from_json(body, where=shown(member))
        if any(region.logits is not None for region in record.regions):
            raise DataError("A record of a shard names files for soft masks.", where=shown(member), allowed="masks")
        record.image = untrusted.member_at(archive, image)
        record.id_map = untrusted.member_at(archive, ids) if ids >= 0 else None
        return record


def names_shards(name: str) -> bool:
    """Return whether a data set is named by where its shards lie, or as a stream, which `find_shards` refuses."""
    return "/" in name or name.endswith(".tar") or is_stream(name) or (Path(name) / INDEX).is_file()


def is_stream(name: str) -> bool:
    """Return whether a name is a URL or a pipe."""
    return "://" in name or name.startswith("pipe:")


def find_shards(name: str | Path, root: str | Path | None = None) -> ShardSet:
    """Return the archives that a name means; raises as `ShardReader`, nothing of them is read."""
    name = str(name)
    if is_stream(name):
        allowed = "a folder with shards.json, or a pattern such as /data/name-{000000..000117}.tar"
        raise UsageError(
            "Shards are read from files, not from a stream.", value=name, allowed=allowed, fix="copy the shards first"
        )
    path = Path(name).expanduser()
    files = _files(path)
    if root is not None and not path.is_absolute() and not any(file.exists() for file in files):
        path = Path(root).expanduser() / path
        files = _files(path)
    if path.is_dir():
        return _of_folder(name, path)
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise _missing(path, files, missing)
    if other := [file for file in files if file.suffix != ".tar"]:
        allowed = "files named .tar, not compressed"
        raise DataError("This is no shard.", where=shown(other[0].absolute()), allowed=allowed)
    index = files[0].parent / INDEX
    if not index.is_file():
        return ShardSet(name, tuple(files))
    shards, categories = _read_index(index)
    chosen = set(files)
    _check_sizes([shard for shard in shards if shard.file in chosen])
    return ShardSet(name, tuple(files), categories=categories)


def _of_folder(name: str, folder: Path) -> ShardSet:
    index = folder / INDEX
    if not index.is_file():
        fix = f"name the archives: {shown(folder)}/*.tar; or write shards with locap.datasets.prepare.shards"
        raise DataError("The folder has no index of shards.", where=shown(index.absolute()), fix=fix)
    shards, categories = _read_index(index)
    files = [shard.file for shard in shards]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise _missing(folder, files, missing)
    _check_sizes(shards)
    return ShardSet(name, tuple(files), tuple(shard.samples for shard in shards), categories)


def _files(pattern: Path) -> list[Path]:
    """Return the path itself, or those that braces spell out, there or not, or those there that match a glob."""
    if pattern.exists() or not any(mark in str(pattern) for mark in "{*?["):
        return [pattern]
    if "{" not in str(pattern):
        return [Path(path) for path in sorted(glob.glob(str(pattern)))]
    from braceexpand import UnbalancedBracesError, braceexpand

    try:
        paths = list(itertools.islice(braceexpand(str(pattern)), _MAX_SHARDS + 1))
    except UnbalancedBracesError:
        raise UsageError("The braces of the pattern are not balanced.", value=str(pattern)) from None
    if len(paths) > _MAX_SHARDS:
        raise UsageError("The pattern means too many shards.", value=str(pattern), allowed=f"up to {_MAX_SHARDS}")
    return [Path(path) for path in paths]


def _missing(path: Path, files: Sequence[Path], missing: Sequence[Path]) -> DataError:
    some = ", ".join(file.name for file in missing[:5]) + (", …" if len(missing) > 5 else "")
    what = f"{len(missing)} of {len(files)} shards are not there" if files else "No shard matches the pattern"
    fix = "fetch them, or name only those that are there"
    return DataError(f"{what}.", where=shown(path.absolute()), value=some or None, fix=fix)


def _read_index(index: Path) -> tuple[list[_Shard], tuple[Category, ...]]:
    """Return what an index says."""
    body, where = untrusted.read_json(index), shown(index)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise DataError("Not an index of shards.", where=where, allowed=f'a JSON object with "format": "{FORMAT}"')
    shards = []
    for item, at in objects(body, where, "shards"):
        file = untrusted.resolve_under(index.parent, get(item, "file", (str,), at))
        shards.append(_Shard(file, get(item, "bytes", (int,), at), get(item, "samples", (int,), at)))
    document = {"format": RECORDS, "categories": body.get("categories", [])}
    return shards, tuple(records_from_json(document, where=where)[1])


def _check_sizes(shards: Sequence[_Shard]) -> None:
    for shard in shards:
        if (size := shard.file.stat().st_size) != shard.size:
            value, allowed, fix = f"{size} bytes", f"{shard.size} bytes", "fetch the shard again"
            what = f"A shard does not have the size that {INDEX} says."
            raise DataError(what, where=shown(shard.file), value=value, allowed=allowed, fix=fix)


def _check_counts(found: ShardSet, counts: Sequence[int]) -> None:
    for file, count, expected in zip(found.files, counts, found.samples or counts, strict=True):
        if count != expected or count == 0:
            raise DataError(
                "The shard is empty." if count == 0 else "A shard does not have the samples that the index says.",
                where=shown(file),
                value=count,
                allowed=None if count == expected else f"{expected} samples",
            )


def _table(found: ShardSet) -> np.ndarray:
    """Return where samples begin, int64 (samples, 4): shard, and the places of record, image and id map or -1."""
    parts = []
    for file in found.files:
        status = file.stat()
        parts.append(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}")

    def scan() -> torch.Tensor:
        _log.info("reading the headers of %d shards of %s", len(found.files), shown(found.name))
        rows = [(number, *row) for number, file in enumerate(found.files) for row in _samples(file)]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)

    return cached_tensor("shards", digest("1", *parts), None, scan).numpy()


def _samples(shard: Path) -> Iterator[tuple[int, int, int]]:
    """Yield the places of record, image and id map or -1 of each sample of a shard."""
    keys: set[str] = set()
    members = ((match.groups(), at) for name, at in untrusted.scan_tar(shard) if (match := _KEY.fullmatch(name)))
    for key, group in itertools.groupby(members, key=lambda member: member[0][0]):
        if re.match(r"__[^/]*__($|/)", key):  # webdataset's notes to itself
            continue
        places = {suffix.lower(): at for (_, suffix), at in group}
        if key in keys:
            fix = "pack the archive anew, sorted: tar --sort=name"
            raise DataError("The files of a sample do not lie together.", where=shown(shard), value=key, fix=fix)
        keys.add(key)
        yield _row(places, f"{shown(shard)}: {shown(key)}")


def _row(places: dict[str, Any], where: str) -> tuple[int, int, int]:
    image = next((suffix for suffix in IMAGES if suffix in places), None)
    if RECORD not in places or image is None:
        what = "image" if image is None else "record"
        allowed = "<key>.json, a record of locap, and <key>.jpg or another image"
        raise DataError(f"A sample has no {what}.", where=where, value=", ".join(sorted(places)), allowed=allowed)
    return places[RECORD], places[image], places.get(ID_MAP, -1)
