"""locap's own configurations are found by name from any folder; a file that is there under the name comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config
from locap.utils.config_files import SHIPPED, find_file, shipped_name
from locap.utils.errors import UsageError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str):
    return load_config([name], model_schemas=MODEL_SCHEMAS)


@pytest.mark.parametrize("name", ["quickstart.yaml", "configs/quickstart.yaml", "./configs/quickstart.yaml"])
def test_own_files_are_found_by_name(name):
    assert find_file(name) == SHIPPED / "quickstart.yaml"
    assert load(name).SOLVER.MAX_STEPS == 2400


def test_own_files_are_found_with_what_they_are_based_on():
    assert load("pixelllm/shapes/refer.yaml") == load(str(SHIPPED / "pixelllm" / "shapes" / "refer.yaml"))


def test_every_own_file_is_found_by_the_name_that_is_shown():
    files = sorted(SHIPPED.rglob("*.yaml"))
    assert len(files) > 5
    assert [find_file(shipped_name(file)) for file in files] == files


def test_a_file_that_is_there_comes_first(elsewhere):
    (elsewhere / "quickstart.yaml").write_text("MODEL: {NAME: pix2cap_model}\nSEED: 7\n")
    assert find_file("quickstart.yaml") == Path("quickstart.yaml")
    assert load("quickstart.yaml").SEED == 7
    assert shipped_name(elsewhere / "quickstart.yaml") is None


@pytest.mark.parametrize("name", ["mine.yaml", "/configs/quickstart.yaml", "../__init__.py", "configs", "configs/"])
def test_nothing_else_is_found_there(name):
    assert find_file(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("quickstrat.yaml", "did you mean configs/quickstart.yaml?"),
        ("configs/quickstrat.yaml", "did you mean configs/quickstart.yaml?"),
        ("mine/quickstrat.yaml", "the folder mine does not exist either"),
    ],
)
def test_a_name_without_a_file_is_told_with_the_nearest(name, told):
    with pytest.raises(UsageError, match="There is no such configuration file") as caught:
        load(name)
    assert told in str(caught.value)


def test_a_file_beside_it_is_nearer_than_an_own_one(elsewhere):
    (elsewhere / "quickstarts.yaml").touch()
    with pytest.raises(UsageError, match=r"did you mean quickstarts\.yaml\?"):
        load("quickstartz.yaml")
