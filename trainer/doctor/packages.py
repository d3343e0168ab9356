"""Python, locap itself, and the packages it requires."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator

from ... import __version__
from .lines import BROKEN, OK, ROOT, Line, output_of, pip_install, system_install

OLDEST_PYTHON = (3, 10)


def python() -> Iterator[Line]:
    """The interpreter."""
    text = f"{platform.python_version()} {sys.executable}, {platform.platform()}"
    if sys.version_info >= OLDEST_PYTHON:
        yield Line("Python", OK, text)
    else:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        yield Line("Python", BROKEN, f"{text}; {wanted} is needed", system_install("python3.12", "python=3.12"))


def locap() -> Iterator[Line]:
    """Version, place and, of a clone, the commit."""
    yield Line("locap", OK, f"{__version__} {ROOT}{_commit()}")


def _commit() -> str:
    if not (ROOT / ".git").exists():
        return ""
    try:
        commit = output_of(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
        changed = output_of(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return ", commit unknown"
    return f", commit {commit}" + (" with changes" if changed else "")


def requirements() -> list[str]:
    """Return what locap requires: of a clone its requirements.txt, else what its installation says."""
    path = ROOT / "requirements.txt"
    if not path.is_file():
        return [text for text in importlib.metadata.requires("locap") or [] if "extra ==" not in text]
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def required() -> Iterator[Line]:
    """Every package that locap requires, with its version."""
    from packaging.requirements import Requirement

    for text in requirements():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            yield check_version(requirement.name, str(requirement.specifier))


def check_version(name: str, wanted: str) -> Line:
    """Return the line of one required package."""
    from packaging.specifiers import SpecifierSet

    version = version_of(name)
    fix = pip_install(name + wanted)
    if version is None:
        return Line(name, BROKEN, f"not installed; {wanted or 'any version'} is required", fix)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Line(name, BROKEN, f"{version}; {wanted} is required", fix)
    return Line(name, OK, f"{version} ({wanted})" if wanted else version)


def version_of(name: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
