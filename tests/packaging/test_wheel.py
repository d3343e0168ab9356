"""What `pip install .` would put on a user's machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "output", "wandb", "*.egg-info")
FAKE_DATASETS = "WHO = 'Hugging Face'\n"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the source tree in a folder whose name is no package name."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("clone") / "my clone-1.0", ignore=NOT_SOURCE))


@pytest.fixture(scope="module")
def installed(clone: Path, tmp_path_factory) -> Path:
    """A folder with the content of the wheel, beside another package called ``datasets``."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(clone / "dist"), str(clone)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = (clone / "dist").glob("*.whl")
    (target / "datasets").mkdir()
    (target / "datasets" / "__init__.py").write_text(FAKE_DATASETS)
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.startswith("datasets")] == []
        archive.extractall(target)
    return target


def python(code: str, *, path: Path | None, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)


def test_wheel_holds_one_name_and_every_source_file(installed: Path):
    top = {entry.name for entry in installed.iterdir() if entry.suffix != ".dist-info"}
    assert top == {"datasets", "locap"}
    parts = ("datasets", "evaluation", "inference", "modeling", "ops", "trainer", "utils")
    source = {path.relative_to(ROOT) for part in parts for path in (ROOT / part).rglob("*.py")}
    source |= {Path("__init__.py"), Path("entry.py")}
    shipped = {path.relative_to(installed / "locap") for path in (installed / "locap").rglob("*.py")}
    assert sorted(source - shipped) == [], "a folder without __init__.py?"
    assert sorted(shipped - source) == []


def test_wheel_holds_the_data_files(installed: Path):
    patterns = ("configs/**/*.yaml", "ops/**/csrc/*.*", "datasets/vocabularies/**/*.*", "py.typed")
    data = {path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    data = {path for path in data if path.suffix != ".pyc"}
    assert {path.suffix for path in data} >= {".yaml", ".typed"}
    assert any(path.parts[:2] == ("datasets", "vocabularies") for path in data)
    assert [path for path in sorted(data) if not (installed / "locap" / path).is_file()] == []


def test_metadata(installed: Path):
    (metadata,) = installed.glob("locap-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    assert "License-Expression: Apache-2.0" in lines
    required = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    asked_for = [line for line in lines if line.startswith("Requires-Dist: ")]
    assert len([line for line in asked_for if "extra ==" not in line]) == len(required)
    extras = [line.removeprefix("Requires-Dist: ") for line in asked_for if line.endswith('; extra == "demo"')]
    assert [re.split(r"[>=;]", line)[0].strip() for line in extras] == ["gradio", "supervision"]
    assert "locap[demo]" in (ROOT / "docs" / "demo.md").read_text(), "the name that messages and pages give"
    assert "locap = locap.entry:main" in metadata.with_name("entry_points.txt").read_text()


def test_installed_package_leaves_hugging_face_datasets_alone(installed: Path, tmp_path: Path):
    code = "import locap, datasets; print(locap.__file__); print(datasets.WHO)"
    result = python(code, path=installed, cwd=tmp_path)
    assert result.stdout.splitlines() == [str(installed / "locap" / "__init__.py"), "Hugging Face"], result.stderr


def test_installed_command_prints_help(installed: Path, tmp_path: Path):
    code = "import sys; from locap.entry import main; sys.exit(main(['--help']))"
    result = python(code, path=installed, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout


def test_clone_runs_uninstalled_from_anywhere(clone: Path, tmp_path: Path):
    result = subprocess.run(
        [sys.executable, str(clone / "entry.py"), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
    code = f"import runpy; runpy.run_path({str(clone / 'entry.py')!r}); import locap; print(locap.__path__[0])"
    assert python(code, path=None, cwd=clone).stdout.strip() == str(clone)


def test_import_datasets_in_the_clone_is_hugging_face_or_an_honest_error(clone: Path, installed: Path):
    code = "import datasets; print(datasets.WHO)"
    assert python(code, path=installed, cwd=clone).stdout.strip() == "Hugging Face"
    code = "import sys, datasets; print(datasets.__file__)"
    without = python(code, path=None, cwd=clone)
    if without.returncode:
        assert "ModuleNotFoundError: No module named 'datasets'" in without.stderr
    else:
        assert not Path(without.stdout.strip()).is_relative_to(clone)
