"""The command ``data convert``: annotations from one format of files to another.

    python entry.py data convert instances.json --to pix2cap --output mine/pix2cap.json
    python entry.py data convert pix2cap_coco_val_with_sem_seg --root DATASETS --to jsonl --output val.jsonl

What the new format cannot hold is left out, and told: what, and how many.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.errors import DataError, UsageError
from ..forms import FORMS

if TYPE_CHECKING:  # what is imported with a command line must be light
    from ..reader import Reader
    from ..records import Record
    from ..writers import Writer

IMAGES = "images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    forms = "; ".join(f"{name}: {text}" for name, text in FORMS.items())
    parser.add_argument(
        "source", metavar="SOURCE", help="a file, a folder of LabelMe's files, or the name of a data set"
    )
    parser.add_argument("--to", required=True, choices=sorted(FORMS), metavar="FORMAT", help=forms)
    parser.add_argument("--output", required=True, metavar="PATH", help="a new file; of labelme a new folder")
    parser.add_argument("--from", dest="form", choices=sorted(FORMS), metavar="FORMAT", help="default: by the content")
    parser.add_argument("--images", metavar="FOLDER", help="of SOURCE; default: beside it, or in images/ there")
    parser.add_argument("--copy-images", action="store_true", help="copy the images to images/ beside the output")
    parser.add_argument("--root", metavar="FOLDER", help="of the data sets; default: $DETECTRON2_DATASETS")
    parser.add_argument("--count", type=int, metavar="N", help="only the first N images")


def run(arguments: argparse.Namespace) -> int:
    """Convert; returns the exit code.

    Raises:
        UsageError: the output is there already, or is not named as its format is.
        DataError: the source is wrong.
    """
    from ...utils.untrusted import shown
    from ..writers import WRITERS

    output, writer = Path(arguments.output).expanduser(), WRITERS[arguments.to]
    if arguments.count is not None and arguments.count < 1:
        raise UsageError("There is nothing to convert.", where="--count", value=arguments.count, allowed="1 or more")
    check_output(output, arguments.to)
    reader = open_source(arguments)
    total = min(len(reader), arguments.count or len(reader))
    copied = output if arguments.to == "labelme" else output.parent / IMAGES
    left_out = convert(reader, output, writer, total, copied if arguments.copy_images else None)
    sys.stdout.write(f"{total} images are in {shown(output)}\n")
    for what, count in sorted(left_out.items()):
        sys.stdout.write(f"  not in {arguments.to}: {count} {what}\n")
    if not arguments.copy_images:
        sys.stdout.write("The images stay where they are; --copy-images copies them, DATASETS.ROOT tells training.\n")
    return 0


def check_output(output: Path, form: str) -> None:
    """Raise UsageError when there is something already, or the name has another ending than the format."""
    from ...utils.untrusted import shown
    from ..writers import WRITERS

    suffix = WRITERS[form].suffix
    if suffix and output.suffix != suffix:
        fix = f"--output {shown(output.with_suffix(suffix))}"
        raise UsageError("The output has the wrong name.", value=str(output), allowed=f"FILE{suffix}", fix=fix)
    made = [output]
    made += [output.with_suffix("")] if form in ("panoptic", "pix2cap") else []
    made += [output.with_name("image_data.json")] if form == "vg" else []
    for path in made:
        if path.exists():
            raise UsageError(
                "There is something already, which is not overwritten.", where=shown(path), fix="another --output"
            )


def open_source(arguments: argparse.Namespace) -> Reader:
    """Open what is to be converted; says which format a file was taken for."""
    from ...utils.untrusted import require_file, shown
    from ..readers import SHAPES_SPLITS, names_file, open_dataset
    from ..readers.own_files import guess_form, open_file, place_of
    from ..shapes import Shapes

    name, root = arguments.source, arguments.root
    if name in SHAPES_SPLITS:
        return Shapes(arguments.count or 100, split=SHAPES_SPLITS[name])
    path = place_of(name, root)
    if not (arguments.form or path.exists() or names_file(name, root)):
        return open_dataset(name, root)
    if not path.is_dir():
        require_file(path)
    form = arguments.form or guess_form(path)
    if not arguments.form:
        sys.stderr.write(f"{shown(path)} is read as {form}: {FORMS[form]}\n")
    return open_file(path, root, images=arguments.images, form=form)


def convert(reader: Reader, output: Path, writer: Writer, count: int, images: Path | None = None) -> Counter[str]:
    """Write the first records of a data set.

    Args:
        reader: where they come from.
        output: see `check_output`.
        writer: of the format.
        count: how many.
        images: folder that the images are copied to; None leaves them where they are.

    Returns:
        What the format cannot hold, and how much of it was left out.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..writers import Naming, kept

    left_out: Counter[str] = Counter()
    naming = Naming(image_folders(reader, count), numbers=writer.numbers, copied=images is not None)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(output.name, total=count)

        def records() -> Iterator[Record]:
            for index in range(count):
                record = reader[index]
                yield kept(record, writer.holds, left_out)
                bar.update(task, completed=index + 1)

        writer.write(output, records(), tuple(reader.categories), naming)
    if images is not None:
        for index in range(count):
            copy_image(record := reader[index], images / naming.image(record))
    return left_out + naming.notes


def image_folders(reader: Reader, count: int) -> list[Path]:
    """Return what names of images are relative to: the reader's folders, else the folder that holds all images."""
    folders = getattr(reader, "image_folders", None)
    if folders is None:
        paths = {os.path.dirname(image) for k in range(count) if isinstance(image := reader[k].image, str)}
        folders = [Path(os.path.commonpath(list(paths)))] if paths else []
    return sorted(map(Path, folders), key=lambda folder: -len(folder.absolute().parts))


def copy_image(record: Record, path: Path) -> None:
    """Copy an image, or write its pixels as PNG where it is no file; the same one may be there already.

    Raises:
        DataError: another one is.
    """
    from PIL import Image

    from ...utils.files import atomic_path

    if isinstance(record.image, str) and Path(record.image).is_file():
        if path.exists() and not (path.is_file() and filecmp.cmp(path, record.image, shallow=False)):
            raise DataError("Another image is there already.", where=str(path), value=record.image, fix="move it away")
        if not path.exists():
            with atomic_path(path) as temporary:
                shutil.copyfile(record.image, temporary)
        return
    with atomic_path(path) as temporary:
        Image.fromarray(record.read_image()).save(temporary, "PNG")
