"""Which images a command line means: files, folders, patterns, and lists on standard input."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..utils import untrusted
from ..utils.errors import DataError, UsageError
from ..utils.untrusted import shown

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
STANDARD_INPUT = "-"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def find_images(given: Iterable[str], standard_input: Iterable[str] = ()) -> list[str]:
    """Return the image files meant, in their order; those of a folder or pattern by name.

    Args:
        given: files, folders (their images, not those of folders inside), patterns such as ``photos/**/*.jpg``, and
            ``-`` for a list of files on standard input, one a line.
        standard_input: those lines. A file that is missing is found when its turn comes: a wrong line costs one image.

    Raises:
        DataError: a file is missing, a folder or a pattern has no images.
        UsageError: a URL is given.
    """
    return [path for one in given for path in _expand(one, standard_input)]


def _expand(given: str, standard_input: Iterable[str]) -> Iterator[str]:
    if given == STANDARD_INPUT:
        yield from (line.rstrip("\r\n") for line in standard_input if line.strip())
    elif _URL.match(given):
        raise UsageError(
            "Images are read from files only.", value=given, allowed="files, folders, patterns", fix="download it first"
        )
    elif Path(given).is_dir():
        yield from _in_folder(Path(given))
    elif glob.has_magic(given) and not Path(given).exists():
        yield from _matches(given)
    else:
        untrusted.require_file(given, what="image")
        yield given


def _in_folder(folder: Path) -> list[str]:
    seen = (path for path in folder.iterdir() if not path.name.startswith("."))  # such as ._a.jpg of a Mac
    images = sorted(str(path) for path in seen if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        raise DataError("The folder has no images.", where=shown(folder.absolute()), allowed=", ".join(SUFFIXES))
    return images


def _matches(pattern: str) -> list[str]:
    found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).suffix.lower() in SUFFIXES)
    if not found:
        raise DataError("No image fits the pattern.", value=pattern, allowed=", ".join(SUFFIXES))
    return found
