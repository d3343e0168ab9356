"""Both notebooks run from top to bottom, elsewhere than in the clone, and from a clone that is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from .conftest import ROOT

FOLDER = ROOT / "notebooks"
NAMES = ("quick_start", "finetune_on_your_data")
STEPS = {"quick_start": "30", "finetune_on_your_data": "20"}
SECONDS = 300


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def printed(cell: dict) -> str:
    """Return what a cell wrote to standard output."""
    return "".join(out["text"] for out in cell["outputs"] if out["output_type"] == "stream" and out["name"] == "stdout")


@pytest.mark.parametrize("name", NAMES)
def test_they_are_stored_small_and_without_outputs(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 50_000
    for cell in cells(name):
        assert not cell.get("outputs")
        assert max(map(len, "".join(cell["source"]).splitlines())) <= 120 or cell["cell_type"] == "markdown"


@pytest.mark.parametrize("name", NAMES)
def test_their_links_lead_somewhere(name):
    text = "".join("".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", text)
    assert targets
    for target in targets:
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_they_find_the_package_in_a_clone_that_is_not_installed(start, python, name):
    first = "".join(next(cell["source"] for cell in cells(name) if cell["cell_type"] == "code"))
    first = "\n".join(line for line in first.splitlines() if "IPython" not in line)
    alone = "import sys; sys.path[:] = [p for p in sys.path if not __import__('os').path.isdir(p + '/locap')]\n"
    alone += "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
    alone += "assert __import__('importlib').util.find_spec('locap') is None\n"
    done = start(python, "-I", "-c", f"import importlib.util\n{alone}{first}\nprint(locap.__file__)", folder=FOLDER)
    assert done.code == 0, done.err
    assert Path(done.out.strip()).resolve() == (ROOT / "__init__.py").resolve()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a notebook in a folder of its own: (its cells, by the first line of each; the folder)."""
    for needed in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: the notebooks were not run")
    import nbformat
    from nbclient import NotebookClient

    def execute(name: str) -> tuple[list[dict], Path]:
        folder = tmp_path_factory.mktemp(name)
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        environment = os.environ | {"LOCAP_NOTEBOOK_STEPS": STEPS[name], "OMP_NUM_THREADS": "1"}
        client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources)
        client.execute(env=environment)
        return [cell for cell in notebook.cells if cell.cell_type == "code"], folder

    return execute


def cell_with(found: list[dict], words: str) -> dict:
    (cell,) = [cell for cell in found if words in cell["source"]]
    return cell


@pytest.mark.slow
def test_quick_start(run):
    found, folder = run("quick_start")
    assert "['box', 'mask', 'point', 'text']" in printed(cell_with(found, "captioner = locap.load(MODEL)"))
    told = printed(cell_with(found, "captioner.caption(boxes=")).splitlines()
    assert [line.split()[0] for line in told] == ["box", "point", "mask"]
    assert all("overlap" in line for line in told)
    pictures = [cell for cell in found if any("image/png" in out.get("data", {}) for out in cell["outputs"])]
    assert len(pictures) == 4
    located = printed(cell_with(found, "captioner.locate")).splitlines()
    assert [line.split(" -> ")[0] for line in located][:2] == ["star", "the grass"]
    streamed = printed(cell_with(found, "captioner.stream")).splitlines()
    assert len(streamed) > 1
    assert all(line.startswith("0 ") for line in streamed)
    assert len(streamed[-1]) > len(streamed[0])
    assert len(printed(cell_with(found, "captioner.batch")).splitlines()) == 4
    written = folder / "output" / "quick_start"
    assert "<html" in (written / "scene.html").read_text(encoding="utf-8")
    for name in ("scene.json", "scene.png", "model/config.yaml", "model/model.safetensors", "model/README.md"):
        assert (written / name).is_file(), name


@pytest.mark.slow
def test_fine_tuning(run):
    found, folder = run("finetune_on_your_data")
    written = folder / "output" / "finetune"
    for name in ("stored.png", "seen.png", "model/model.safetensors", "predicted/index.html"):
        assert (written / name).is_file(), name
    assert re.fullmatch(r"(\w+: 0\.\d{3} -> 0\.\d{3}\n){3}", printed(cell_with(found, "after = evaluate")))
    compared = printed(cell_with(found, "wanted"))
    lengths = {
        word: sum(len(line.split()) - 1 for line in compared.splitlines() if line.startswith(word))
        for word in ("wanted", "before", "after")
    }
    assert abs(lengths["after"] - lengths["wanted"]) < abs(lengths["before"] - lengths["wanted"]), compared
