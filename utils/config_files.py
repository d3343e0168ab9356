"""Where configuration files are: where they are named, else among those that come with locap.

So ``quickstart.yaml`` and ``configs/quickstart.yaml`` are found from any folder, also where locap is installed. A file
that is there under the given name always comes first, and what a file is based on stands relative to that file.
"""

from __future__ import annotations

from pathlib import Path

from .errors import UsageError, nearest

SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def find_file(path: str | Path) -> Path:
    """Return the file of that name, else locap's own of that name in ``configs/``; the name itself if there is none."""
    path = Path(path)
    own = SHIPPED.joinpath(*_below_configs(path))
    is_own = not path.exists() and not path.is_absolute() and ".." not in path.parts and own.is_file()
    return own if is_own else path


def shipped_name(path: Path) -> str | None:
    """Return the name by which a file of locap's own is found from any folder; None for others."""
    path = path.resolve()
    return (Path(SHIPPED.name) / path.relative_to(SHIPPED)).as_posix() if path.is_relative_to(SHIPPED) else None


def missing_file(path: Path) -> UsageError:
    """Return the error of a name under which there is no file."""
    if path.is_dir():
        return UsageError("This is a folder, not a configuration file.", where=str(path))
    folder = path.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")) if folder.is_dir() else []
    close = nearest(path.name, names)
    suggestion = str(folder / close) if close else _nearest_shipped(path)
    return UsageError(
        "There is no such configuration file.",
        where=str(path),
        allowed=None if suggestion or not names else f"files of that folder: {', '.join(names[:10])}",
        fix=f"did you mean {suggestion}?" if suggestion else _advice(folder),
    )


def _below_configs(path: Path) -> tuple[str, ...]:
    return path.parts[1:] if path.parts[:1] == (SHIPPED.name,) else path.parts


def _nearest_shipped(path: Path) -> str | None:
    """Return the closest of locap's own names; what is in a folder of another name was not meant to be one of them."""
    own = sorted(SHIPPED.rglob("*.yaml"), key=lambda file: -len(file.parts))
    if path.parent != Path() and path.parts[0] != SHIPPED.name:
        return None
    by_stem = {file.stem: file for file in own}
    close = nearest(path.stem, by_stem)
    return shipped_name(by_stem[close]) if close else None


def _advice(folder: Path) -> str | None:
    return None if folder.is_dir() else f"the folder {folder} does not exist either"
