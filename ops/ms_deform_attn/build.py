"""Compile the kernels with the machine's own compiler, once, into a cache.

python -m locap.ops.ms_deform_attn.build [cpu] [cuda] [--into-package]

A library is compiled when it is first wanted, into ``LOCAP_OPS_CACHE``, by default ``ms_deform_attn`` under
`locap.utils.folders.cache_folder`, and found there from then on; its name holds a digest of sources, flags, compiler
version and processor. Ranks that start together wait for the first. ``--into-package``, or
``LOCAP_BUILD_OPS="cpu cuda" pip install .``, puts libraries into the package instead, where a machine without a
compiler finds them.

Environment: ``CXX`` and ``NVCC`` name the compilers; ``LOCAP_CUDA_ARCHS``, by default "80;86;89;90", the GPU
architectures, the last of them as PTX too, for newer ones.

Only the standard library is used here: ``setup.py`` runs this file before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

KINDS = ("cpu", "cuda")
CUDA_ARCHS = "80;86;89;90"
_HERE = Path(__file__).resolve().parent
_SOURCES = {
    "cpu": (
        "ms_deform_attn.h",
        "cpu_kernel.h",
        "cpu_vectors.h",
        "cpu_samples.h",
        "cpu_forward.h",
        "cpu_backward.h",
        "cpu_kernel.cpp",
        "cpu.cpp",
    ),
    "cuda": (
        "ms_deform_attn.h",
        "sampling.cuh",
        "device.cuh",
        "inputs.cuh",
        "fixed_point.cuh",
        "forward.cuh",
        "backward.cuh",
        "cuda.cu",
    ),
}
_COMMON_FLAGS = ("-std=c++17", "-O3")
_HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
_X86_SETS = {"base": (), "v3": ("-march=x86-64-v3",), "v4": ("-march=x86-64-v4",)}  # the library chooses at run time


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the message holds what it said."""


def library(kind: str) -> Path:
    """Return the path of a compiled library, compiling it if need be.

    Args:
        kind: ``cpu`` or ``cuda``.

    Raises:
        BuildError: no compiler, or it failed.
    """
    if found := find_library(kind):
        return found
    compiler = find_compiler(kind)
    path = _cached(kind, compiler)
    try:
        with _lock(path.with_suffix(".lock")):
            if not path.is_file():
                _compile(kind, compiler, path)
    except OSError as err:
        raise BuildError(f"{path.parent} cannot be written ({err}); set LOCAP_CACHE to a folder that can") from err
    return path


def find_library(kind: str) -> Path | None:
    """Return the path of a library that is compiled already, None when it would have to be compiled first.

    Raises:
        BuildError: there is neither a library in the package nor a compiler.
    """
    path = _packaged(kind)
    if not path.is_file():
        path = _cached(kind, find_compiler(kind))
    return path if path.is_file() else None


def into_package(kind: str, package: Path = _HERE) -> Path:
    """Compile a library into the package and return its path; raises `BuildError`."""
    path = _packaged(kind, package)
    _compile(kind, find_compiler(kind), path)
    return path


def find_compiler(kind: str) -> str:
    """Return the path of a C++ or CUDA compiler.

    Raises:
        BuildError: there is none, or the one named by ``CXX`` or ``NVCC`` is not there.
    """
    variable = "CXX" if kind == "cpu" else "NVCC"
    if named := os.environ.get(variable):
        if found := shutil.which(named):
            return found
        raise BuildError(f"{variable} names {named!r}, which is not a program")
    candidates = ["g++", "c++", "clang++"] if kind == "cpu" else ["nvcc"]
    if kind == "cuda":
        homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
        candidates += [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    for candidate in candidates:
        if found := shutil.which(candidate):
            return found
    raise BuildError(f"no compiler found ({', '.join(candidates)}); install one, or name it with {variable}")


def cuda_archs() -> list[str]:
    """Return the GPU architectures to compile for, as ["80", "90"]."""
    archs = os.environ.get("LOCAP_CUDA_ARCHS", CUDA_ARCHS).replace(",", ";").replace(".", "").split(";")
    return [arch.strip() for arch in archs if arch.strip()]


def _cache_folder() -> Path:
    if own := os.environ.get("LOCAP_OPS_CACHE"):
        return Path(own).expanduser()
    from ...utils.folders import cache_folder  # not when setup.py runs this file

    return cache_folder() / "ms_deform_attn"


def _cached(kind: str, compiler: str) -> Path:
    return _cache_folder() / f"{kind}-{_digest(kind, compiler)}{_suffix()}"


def _packaged(kind: str, package: Path = _HERE) -> Path:
    return package / "lib" / f"{kind}-{_digest(kind)}{_suffix()}"


def _suffix() -> str:
    return {"Windows": ".dll", "Darwin": ".dylib"}.get(platform.system(), ".so")


def _digest(kind: str, compiler: str | None = None) -> str:
    found = hashlib.sha256(repr((platform.system(), platform.machine())).encode())
    for name in _SOURCES[kind]:
        path = _HERE / "csrc" / name
        if not path.is_file():
            raise BuildError(f"{path} is missing")
        found.update(path.read_bytes())
    if compiler is not None:
        found.update(repr(_commands(kind, compiler, Path("build"), Path("library"))).encode())
        found.update(_run([compiler, "--version"]).encode())
        found.update(platform.processor().encode())
    return found.hexdigest()[:24]


def _commands(kind: str, compiler: str, folder: Path, output: Path) -> tuple[list[list[str]], list[str]]:
    """Return the commands that may run side by side, and the one to run after them."""
    source = _HERE / "csrc"
    if kind == "cuda":
        archs = cuda_archs()
        code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        host = ["-Xcompiler", ",".join(_HOST_FLAGS[:2]), "--cudart", "static", "--threads", "0"]
        return [], [compiler, *_COMMON_FLAGS, *host, *code, "-shared", str(source / "cuda.cu"), "-o", str(output)]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = [*_COMMON_FLAGS, *_HOST_FLAGS, *(["-DLOCAP_MSDA_X86"] if x86 else []), "-c"]
    first = [[compiler, *flags, str(source / "cpu.cpp"), "-o", str(folder / "cpu.o")]]
    for name, own in (_X86_SETS if x86 else {"base": ()}).items():
        kernel = [*own, f"-DLOCAP_MSDA_ISA={name}", str(source / "cpu_kernel.cpp")]
        first.append([compiler, *flags, *kernel, "-o", str(folder / f"{name}.o")])
    return first, [compiler, "-shared", "-pthread", *(command[-1] for command in first), "-o", str(output)]


def _compile(kind: str, compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as name:
        output = Path(name) / path.name
        first, last = _commands(kind, compiler, Path(name), output)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, first))
        _run(last)
        os.replace(output, path)  # it appears whole or not at all


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as err:
        raise BuildError(f"{command[0]} cannot be started: {err}") from err
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise BuildError(f"{' '.join(command)}\nfailed with exit code {done.returncode}:\n{said[:4000]}")
    return done.stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process of the machine in at a time; a process that dies lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two builds at once cost time, nothing else
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Compile what is asked for, all kinds by default, and say where it is; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m locap.ops.ms_deform_attn.build", description=__doc__.split("\n")[0]
    )
    parser.add_argument("kinds", nargs="*", choices=KINDS, metavar="cpu|cuda", help="default: both")
    parser.add_argument("--into-package", action="store_true", help="into the package, not the cache")
    arguments = parser.parse_args(argv)
    code = 0
    for kind in arguments.kinds or KINDS:
        try:
            path = into_package(kind) if arguments.into_package else library(kind)
            sys.stdout.write(f"{kind}: {path}\n")
        except BuildError as err:
            sys.stderr.write(f"{kind}: {err}\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
