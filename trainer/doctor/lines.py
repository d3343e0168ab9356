"""One line of the doctor's table, and the commands that it proposes."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]  # of the package; in a clone, of the clone
OK, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(frozen=True, slots=True)
class Line:
    """What a check found.

    Attributes:
        name: what was looked at.
        state: `OK`; `MISSING`, something optional is not there; `BROKEN`.
        text: what is there, or what is wrong.
        fix: the command that mends it; empty where nothing is to be mended.
    """

    name: str
    state: str
    text: str
    fix: str = ""


def pip_install(*packages: str) -> str:
    """Return the command that installs packages into this environment."""
    words = [f'"{package}"' if set(package) & set('<>=[]; "') else package for package in packages]
    return " ".join(["pip install" if _has_pip() or not shutil.which("uv") else "uv pip install", *words])


def _has_pip() -> bool:
    """Return whether this environment has pip; looking for the module would make setuptools unusable afterwards."""
    try:
        return bool(importlib.metadata.version("pip"))
    except importlib.metadata.PackageNotFoundError:
        return False


def extra(name: str) -> str:
    """Return the command that installs the packages of an extra of locap."""
    if (ROOT / "pyproject.toml").is_file():
        return pip_install("-e", f"{ROOT}[{name}]")
    return pip_install(f"locap[{name}]")


def system_install(debian: str, conda: str) -> str:
    """Return the command that installs a program that pip does not have."""
    if shutil.which("apt-get"):
        return f"{'' if os.name != 'posix' or os.geteuid() == 0 else 'sudo '}apt-get install {debian}"
    return f"conda install -c conda-forge {conda}"


def locap_command(arguments: str) -> str:
    """Return a command of locap as it is called here."""
    return f"python {ROOT / 'entry.py'} {arguments}" if (ROOT / "pyproject.toml").is_file() else f"locap {arguments}"


@functools.cache
def build_tools() -> ModuleType:
    """Return ``ops/ms_deform_attn/build.py`` without the package around it, whose import loads torch."""
    path = ROOT / "ops" / "ms_deform_attn" / "build.py"
    spec = importlib.util.spec_from_file_location("locap.ops.ms_deform_attn.build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output_of(command: Sequence[str], seconds: float = 4.0) -> str:
    """Run a program and return what it wrote, standard error included.

    Raises:
        OSError: it cannot be started.
        subprocess.SubprocessError: it failed or took too long.
    """
    done = subprocess.run(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=True,
        text=True,
        errors="replace",
    )
    return done.stdout.strip()


def beside_python(program: str) -> str | None:
    """Return the path of a program on the PATH, or in the environment of this Python though it is not activated."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
