"""Records, readers, transforms and samplers.

When this folder is imported as the top-level name ``datasets`` (a notebook or REPL started in the clone), it steps
aside, so that Hugging Face ``datasets`` and every library that needs it keep working.
"""

if __name__ == "datasets":
    import importlib
    import sys
    from pathlib import Path

    _root = Path(__file__).resolve().parent.parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _root]
    sys.modules.pop(__name__, None)
    importlib.invalidate_caches()
    sys.modules[__name__] = importlib.import_module(__name__)
