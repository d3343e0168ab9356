"""Where the files of a named data set are: below the folder of the data sets, in one of several layouts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import DataError
from ...utils.untrusted import shown

ROOT_VARIABLES = ("DETECTRON2_DATASETS", "DATASETS")


def locate(name: str, root: str | Path | None, layouts: Sequence[Sequence[str]]) -> tuple[Path, Path, list[Path]]:
    """Return (root, ``<root>/coco`` or ``<root>``, the annotation files below it) of the first layout that is there.

    Args:
        name: of the data set, for messages.
        root: folder of the data sets; None takes ``$DETECTRON2_DATASETS``, then ``$DATASETS``.
        layouts: each the files of the data set; the first one is what a message asks for.

    Raises:
        DataError: there is no root, or no layout is completely there.
    """
    example = layouts[0][0]
    given = root if root is not None else next((os.environ[v] for v in ROOT_VARIABLES if os.environ.get(v)), None)
    if given is None:
        raise DataError(
            f"The data set {name} needs a folder to be read from, and none is given.",
            fix=f"export {ROOT_VARIABLES[0]}=<folder that holds coco/{example}>; "
            f"to get it: python entry.py data download {name} --root FOLDER",
        )
    root = Path(given).expanduser()
    tried = [(base, [base / file for file in layout]) for layout in layouts for base in (root / "coco", root)]
    for base, files in tried:
        if all(file.is_file() for file in files):
            return root, base, files
    # of a layout that is there in part, the file to add; else the first file of the first layout
    partial = [file for _, files in tried if any(f.is_file() for f in files) for file in files if not file.is_file()]
    missing = partial[:1] or [files[0] for _, files in tried[:2]]
    others = ", ".join(layout[0] for layout in layouts[1:])
    raise DataError(
        f"The annotations of {name} are not there.",
        where="tried " + " and ".join(shown(file.absolute()) for file in missing),
        allowed=f"there also: {others}" if others and not partial else None,
        fix=f"python entry.py data download {name} --root {shown(root)}, "
        f"or set {ROOT_VARIABLES[0]} to the folder that holds coco/{example}"
        + ("" if root.is_dir() else f"; {shown(root.absolute())} does not exist"),
    )
