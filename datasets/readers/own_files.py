"""Files of one's own: a configuration names them by their path, and what they are is told by their content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError, UsageError
from ...utils.untrusted import iterate_json_lines, read_json, resolve_under, shown
from ..forms import FORMS
from ..records import FORMAT
from .coco_instances import CocoInstancesReader
from .coco_panoptic import CocoPanopticReader
from .labelme import LabelMeReader, is_labelme
from .packed import PackedReader
from .pix2cap import Pix2CapReader
from .record_file import RecordFileReader, RecordLinesReader
from .shards import INDEX, is_stream
from .visual_genome import VisualGenomeReader

OwnReader = PackedReader | RecordLinesReader
SUFFIXES = (".json", ".jsonl")


def names_file(name: str, root: str | Path | None = None) -> bool:
    """Return whether a data set is named by a file of one's own, or a folder of LabelMe's files."""
    if is_stream(name) or Path(name).name == INDEX:  # of shards
        return False
    if name.lower().endswith(SUFFIXES):
        return True
    path = place_of(name, root)
    return path.is_dir() and not (path / INDEX).exists() and next(path.glob("*.json"), None) is not None


def place_of(name: str | Path, root: str | Path | None = None) -> Path:
    """Return where a file is: as named, or below the folder of the data sets."""
    path = Path(name).expanduser()
    below = Path(root).expanduser() / path if root else path
    return below if not path.exists() and below.exists() else path


def open_file(
    name: str | Path,
    root: str | Path | None = None,
    *,
    images: str | Path | None = None,
    form: str | None = None,
) -> OwnReader:
    """Open a file of one's own.

    Args:
        name: the file, or a folder of LabelMe's files.
        root: folder of the data sets, where a relative name may lie, and images.
        images: folder of the images; None looks beside the file, in ``images/`` there and next to its folder, and in
            ``root``.
        form: one of `FORMS`; None tells it by the content.

    Raises:
        UsageError: unknown form.
        DataError: the file is none of these, or wrong; images are missing.
    """
    path = place_of(name, root)
    if form is not None and form not in FORMS:
        raise UsageError("Unknown format.", value=form, allowed=", ".join(FORMS))
    if form == "jsonl" or (form is None and path.suffix.lower() == ".jsonl"):
        return RecordLinesReader(path, _folders(path, root, images))
    if path.is_dir():
        if form not in (None, "labelme"):
            raise DataError("This is a folder.", where=shown(path), allowed=f"a file, as {form} is {FORMS[form]}")
        return LabelMeReader(path, _folders(path, root, images))
    document = read_json(path)
    return _open(form or form_of(document, path), path, document, _folders(path, root, images))


def guess_form(path: Path) -> str:
    """Return which of `FORMS` a file or folder is; raises `DataError` when it is none."""
    if path.is_dir():
        return "labelme"
    if path.suffix.lower() == ".jsonl":
        next(iterate_json_lines(path), None)
        return "jsonl"
    return form_of(read_json(path), path)


def form_of(document: Any, path: Path) -> str:
    """Return which of `FORMS` a parsed file is.

    Raises:
        DataError: it is none.
    """
    if isinstance(document, dict):
        if document.get("format") == FORMAT:
            return "records"
        if is_labelme(document):
            return "labelme"
        if isinstance(document.get("images"), list) and isinstance(document.get("annotations"), list):
            return _coco_form(document["annotations"])
    elif isinstance(document, list) and document and isinstance(document[0], dict) and "regions" in document[0]:
        return "vg"
    keys = ", ".join(map(str, list(document)[:8])) if isinstance(document, dict) else type(document).__name__
    allowed = f'records ("format": "{FORMAT}"), or COCO-style with lists "images" and "annotations"'
    command = "python entry.py data convert FILE --from FORMAT --to jsonl --output NEW.jsonl"
    fix = f"if it is one of another format: {command}"
    raise DataError("The file is not known to be a data set.", where=shown(path), value=keys, allowed=allowed, fix=fix)


def _coco_form(annotations: Sequence[Any]) -> str:
    segments = [body["segments_info"] for body in annotations if isinstance(body, dict) and "segments_info" in body]
    if not segments:
        return "coco"
    listed = (segment for each in segments if isinstance(each, list) for segment in each if isinstance(segment, dict))
    return "pix2cap" if any("description" in segment for segment in listed) else "panoptic"


def _open(form: str, path: Path, document: Any, images: list[Path]) -> OwnReader:
    if form == "labelme":
        return LabelMeReader(path, images)
    if form == "records":
        return RecordFileReader(path, images, document)
    if form == "coco":
        return CocoInstancesReader(path, images, document)
    if form == "vg":
        return VisualGenomeReader(path, path.with_name("image_data.json"), images)
    reader = Pix2CapReader if form == "pix2cap" else CocoPanopticReader
    return reader(path, _holding(images, _first(document, "images"), path), _panoptic_folder(path, document))


def _folders(path: Path, root: str | Path | None, images: str | Path | None) -> list[Path]:
    """Return where images may lie, likeliest first."""
    if images is not None:
        return [Path(images).expanduser()]
    home = path if path.is_dir() else path.parent
    places = [home, home / "images", home.parent / "images", home.parent]
    if root:
        places += [Path(root).expanduser(), Path(root).expanduser() / "coco"]
    return list(dict.fromkeys(places))


def _panoptic_folder(path: Path, document: Any) -> Path:
    """Return the folder of the PNGs: named as the file, or any beside it or its folder that has the first of them."""
    homes = (path.parent, path.parent.parent)
    folders = [home / path.stem for home in homes]
    folders += [folder for home in homes for folder in sorted(home.iterdir()) if folder.is_dir()]
    return _holding(folders, _first(document, "annotations"), path)


def _holding(folders: Sequence[Path], name: str | None, path: Path) -> Path:
    """Return the folder that has a file, one below it included; the first folder when none has.

    Folders that are called as the file ends, such as ``images/val`` and ``val.json``, come first: another split may
    have files of the same names.
    """
    split = path.stem.rpartition("_")[2]
    if name is not None:
        below = [child for folder in folders if folder.is_dir() for child in sorted(folder.iterdir()) if child.is_dir()]
        for folder in sorted((*folders, *below), key=lambda folder: not folder.name.endswith(split)):
            if resolve_under(folder, name).is_file():
                return folder
    return folders[0]


def _first(document: Any, key: str) -> str | None:
    items = document.get(key) if isinstance(document, dict) else None
    name = items[0].get("file_name") if isinstance(items, list) and items and isinstance(items[0], dict) else None
    return name if isinstance(name, str) else None
