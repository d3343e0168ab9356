"""Rules of the source tree that a reader of one file cannot see."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("configs", "datasets", "evaluation", "inference", "modeling", "ops", "trainer", "utils")
PACKAGE_FILES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


def absolute_imports(path: Path) -> list[str]:
    """Return the modules that a file imports by their full name."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module)
    return names


def runs_as_a_script(path: Path) -> bool:
    """Whether the file is started by its path and so has to reach the package by its full name."""
    return '__name__ == "__main__"' in path.read_text()


def test_no_file_imports_our_folders_as_top_level_names():
    found = {
        str(path.relative_to(ROOT)): name
        for path in [*PACKAGE_FILES, *TEST_FILES, ROOT / "entry.py"]
        for name in absolute_imports(path)
        if name.partition(".")[0] in PARTS
    }
    assert found == {}


def test_the_package_imports_itself_relatively():
    found = [
        str(path.relative_to(ROOT))
        for path in PACKAGE_FILES
        if not runs_as_a_script(path) and any(name.partition(".")[0] == "locap" for name in absolute_imports(path))
    ]
    assert found == []


def test_every_package_folder_has_an_init_file():
    assert [str(path) for path in PACKAGE_FILES if not (path.parent / "__init__.py").is_file()] == []


def test_the_root_holds_only_the_package_and_its_set_up():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "entry.py", "setup.py"}
