"""locap's command line: train | evaluate | predict | quickstart.

    python entry.py train    --conf_files configs/quickstart.yaml
    mpirun -n 8 python entry.py train --conf_files configs/… --overrides SOLVER.BASE_LR 1e-4 …
    torchrun --nproc_per_node 8 entry.py train …
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _register_package() -> None:
    """Make the clone importable as ``locap`` from any directory name, and keep its folders off ``sys.path``."""
    root = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    if "locap" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location("locap", root / "__init__.py", submodule_search_locations=[str(root)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["locap"] = module
    spec.loader.exec_module(module)


if __name__ != "locap.entry":  # run as a script, or as the main module of a spawned worker
    _register_package()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    from locap.utils.cli import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
