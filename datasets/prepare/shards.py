"""Write a data set as shards, which are read from few large files instead of many small ones.

python -m locap.datasets.prepare.shards --data pix2cap_coco_train_with_sem_seg --root /data --output /data/pix2cap
python -m locap.datasets.prepare.shards --verify /data/pix2cap
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils import untrusted
from ...utils.errors import DataError, LocapError, UsageError
from ...utils.files import sync, write_json
from ...utils.untrusted import shown
from ..reader import Reader
from ..readers import SHAPES_SPLITS, open_dataset
from ..readers.shards import FORMAT, ID_MAP, INDEX, RECORD, find_shards
from ..records import Record, record_to_json
from ..shapes import Shapes

SAMPLES_PER_SHARD = 1000
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tiff"}


def write_shards(
    reader: Reader,
    folder: str | Path,
    *,
    name: str | None = None,
    samples_per_shard: int | None = None,
    bytes_per_shard: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the records of a reader as shards ``<name>-000000.tar``, ... and their index, in their order.

    The folder appears complete or not at all. Images are copied as they are stored, those in memory become PNGs; id
    maps are encoded anew without loss. The same records make the same bytes.

    Args:
        reader: the records.
        folder: does not exist yet, or is empty.
        name: of the shards; None: that of the folder.
        samples_per_shard, bytes_per_shard: a shard is ended when it has as many; None: no such limit, and without
            either `SAMPLES_PER_SHARD`.
        progress: called with the number of records written so far.

    Returns:
        The folder.

    Raises:
        UsageError: the folder is not empty, or a limit or the name is impossible.
        DataError: a record cannot be read, or has no image.
    """
    folder = Path(folder)
    samples = samples_per_shard or (None if bytes_per_shard else SAMPLES_PER_SHARD)
    name = folder.name if name is None else name
    _check(folder, name, samples_per_shard, bytes_per_shard)
    with _new_folder(folder) as temporary:
        shards = list(_write_all(reader, temporary, name, (samples, bytes_per_shard), progress or (lambda done: None)))
        if not shards:
            raise DataError("The data set is empty.", value=0)
        index = {"format": FORMAT, "shards": shards, "categories": [asdict(each) for each in reader.categories]}
        write_json(temporary / INDEX, index, indent=1)
    return folder


def verify_shards(folder: str | Path) -> int:
    """Compare the contents of shards with the hashes of their index; return the number of shards.

    Raises:
        DataError: a shard is missing, or is not the one that was written.
    """
    files = find_shards(folder).files
    hashes = [shard.get("sha256") for shard in untrusted.read_json(Path(folder) / INDEX)["shards"]]
    for file, expected in zip(files, hashes, strict=True):
        with file.open("rb") as opened:
            found = hashlib.sha256()
            while chunk := opened.read(2**20):
                found.update(chunk)
        if found.hexdigest() != expected:
            fix = "fetch the shard again"
            raise DataError(
                "A shard is damaged.", where=shown(file), value=found.hexdigest(), allowed=expected, fix=fix
            )
    return len(files)


def _check(folder: Path, name: str, *limits: int | None) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("The folder of the shards is not empty.", value=str(folder), allowed="a new folder")
    given = [limit for limit in limits if limit is not None]
    if given and min(given) < 1:
        raise UsageError("A shard must have room for a sample.", value=min(given), allowed="1 or more")
    if not name or any(mark in name for mark in "/\\{}*?[]"):
        raise UsageError("The shards cannot have this name.", value=name, allowed="none of / \\ { } * ? [ ]")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; on success it takes its place, else it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        sync(temporary)
        os.replace(temporary, folder)  # an empty folder gives way
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_all(
    reader: Reader, folder: Path, name: str, limits: tuple[int | None, int | None], progress: Callable[[int], None]
) -> Iterator[Mapping[str, Any]]:
    """Write shards; yield what the index says of each."""
    done = 0
    for number in range(len(reader)):
        if done == len(reader):
            return
        path, first = folder / f"{name}-{number:06d}.tar", done
        with _Shard(path) as shard:
            while done < len(reader) and not shard.is_full(done - first, *limits):
                shard.add(f"{done:09d}", reader[done])
                done += 1
                progress(done)
        yield {"file": path.name, "bytes": shard.written, "sha256": shard.hash.hexdigest(), "samples": done - first}


class _Shard:
    """A tar archive that is being written, hashed on its way."""

    def __init__(self, path: Path) -> None:
        self.path, self.written, self.hash = path, 0, hashlib.sha256()

    def __enter__(self) -> _Shard:
        from webdataset import TarWriter

        self._file = self.path.open("wb")
        self._tar = TarWriter(self, encoder=False, compress=False, mtime=0, user="", group="")
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._tar.close()
        self._file.close()
        if error[0] is None:
            sync(self.path)

    def write(self, data: bytes) -> int:
        """Take what the archive is made of."""
        self.hash.update(data)
        self.written += len(data)
        return self._file.write(data)

    def is_full(self, count: int, samples: int | None, size: int | None) -> bool:
        """Return whether the next sample goes to the next shard; the size counts what has left the buffer."""
        return count > 0 and ((samples is not None and count >= samples) or (size is not None and self.written >= size))

    def add(self, key: str, record: Record) -> None:
        """Write a record."""
        if any(region.logits is not None for region in record.regions):
            raise DataError("Soft masks do not go into shards.", where=f"image {record.image_id}")
        image, suffix = _image(record)
        text = json.dumps(record_to_json(replace(record, image=None, id_map=None)), ensure_ascii=False, allow_nan=False)
        ids = {ID_MAP: _id_map_png(record)} if record.id_map is not None else {}
        self._tar.write({"__key__": key, suffix: image, RECORD: text.encode(), **ids})


def _image(record: Record) -> tuple[bytes, str]:
    """Return the image's file and its suffix."""
    if isinstance(record.image, np.ndarray):
        return _png(record.image), "png"
    if record.image is None:
        raise DataError("The record has no image.", where=f"image_id {record.image_id}")
    data, kind = untrusted.read_stored_image(record.image)
    return data, _SUFFIXES[kind]


def _id_map_png(record: Record) -> bytes:
    ids = record.read_id_map()
    if ids.min() < 0 or ids.max() >= 2**24:
        value, allowed = int(ids.max()), "0 to 16777215, what a PNG holds"
        raise DataError("An id map has impossible ids.", where=f"image {record.image_id}", value=value, allowed=allowed)
    return _png(ids.astype("<i4").view(np.uint8).reshape(*ids.shape, 4)[..., :3])


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="name of a data set, as in DATASETS.TRAIN")
    parser.add_argument("--root", help="folder of the data sets")
    parser.add_argument("--output", type=Path, help="new folder of the shards")
    parser.add_argument("--samples-per-shard", type=int)
    parser.add_argument("--bytes-per-shard", type=int)
    parser.add_argument("--count", type=int, default=1000, help="of the drawn data sets, how many images")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare shards with their hashes")
    options = parser.parse_args(argv)
    if not options.verify and not (options.data and options.output):
        parser.error("give --data and --output, or --verify")
    try:
        _run(options)
    except LocapError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    if options.verify:
        sys.stdout.write(f"{verify_shards(options.verify)} shards are as they were written\n")
        return
    if options.data in SHAPES_SPLITS:
        reader = Shapes(options.count, split=SHAPES_SPLITS[options.data])
    else:
        reader = open_dataset(options.data, options.root)
    limits = {"samples_per_shard": options.samples_per_shard, "bytes_per_shard": options.bytes_per_shard}
    with Progress() as bar:
        task = bar.add_task(options.data, total=len(reader))
        folder = write_shards(reader, options.output, **limits, progress=lambda n: bar.update(task, completed=n))
    sys.stdout.write(f"{len(reader)} records are in {shown(folder)}\n")


if __name__ == "__main__":
    sys.exit(main())
