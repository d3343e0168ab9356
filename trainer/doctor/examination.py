"""All checks, each kept from spoiling the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ...utils.errors import LocapError
from . import compute, machine, optional, packages, sources
from .lines import BROKEN, MISSING, OK, Line

__all__ = ["BROKEN", "CHECKS", "MISSING", "OK", "Line", "examine", "exit_code"]

Check = Callable[[], Iterable[Line]]
CHECKS: dict[str, Check] = {
    "Python": packages.python,
    "locap": packages.locap,
    "packages": packages.required,
    "imports": compute.imports,
    "CUDA": compute.cuda,
    "GPUs": compute.gpus,
    "deformable attention": compute.operators,
    "compilers": machine.compilers,
    "Java": machine.java,
    "optional packages": optional.packages,
    "wandb login": optional.wandb_login,
    "mpirun": optional.mpirun,
    "data": sources.data,
    "hub": sources.hub,
    "caches": sources.caches,
    "disk": machine.disk,
    "shared memory": machine.shared_memory,
    "open files": machine.open_files,
    "cores": machine.cores,
}


def examine(checks: dict[str, Check] | None = None) -> Iterator[Line]:
    """Yield the lines of all checks; one that fails becomes a line itself."""
    sources.ask_hub()  # both answer while other checks are made
    compute.start_probe()
    for name, check in (CHECKS if checks is None else checks).items():
        yield from _isolated(name, check)


def _isolated(name: str, check: Check) -> Iterator[Line]:
    try:
        yield from check()
    except LocapError as err:
        yield Line(name, BROKEN, err.what, err.fix or "")
    except Exception as err:  # whatever a broken installation raises
        text = f"this could not be checked: {type(err).__name__}: {err}"
        yield Line(name, BROKEN, text, _mend(err))


def _mend(err: Exception) -> str:
    from ...utils.endings import explain

    known = explain(err)
    return (known.fix if known else None) or "please report this line as a defect of locap"


def exit_code(lines: Sequence[Line]) -> int:
    """Return 5 when something is broken, else 0."""
    return 5 if any(line.state == BROKEN for line in lines) else 0
