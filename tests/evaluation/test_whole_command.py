"""``entry.py evaluate`` as a user starts it: a process of its own, on a machine whose PATH is empty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from locap.datasets.records import write_records

from .conftest import CATEGORIES

ENTRY = Path(__file__).resolve().parents[2] / "entry.py"


@pytest.fixture
def files(tmp_path, make_images):
    images = make_images(3)
    for name, index in (("truth", 0), ("predicted", 1)):
        write_records(tmp_path / f"{name}.json", [pair[index] for pair in images], CATEGORIES)
    return tmp_path


@pytest.fixture
def evaluate(files):
    def evaluate(*words, protocol="panoptic"):
        arguments = ["--ground-truth", "truth.json", "--predictions", "predicted.json", "--protocol", protocol, *words]
        return subprocess.run(
            [sys.executable, str(ENTRY), "evaluate", *arguments],
            cwd=files,
            env={"PATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )

    return evaluate


def test_meteor_needs_no_java_on_the_path(evaluate, files, meteor):
    done = evaluate("--csv", protocol="panoptic_captioning")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (result,) = json.loads((files / "predicted_results.json").read_text())["results"]
    assert result["unavailable"] == {}
    assert 0 < result["figures"]["meteor"] < 1
    assert (files / "predicted_results_panoptic_captioning.csv").read_text().startswith("image_id,segment_id")


def not_utf_8(path):
    path.write_bytes(path.read_text().replace("dog", "d\udcffg").encode("utf-8", "surrogateescape"))


def rename_image(path):
    body = json.loads(path.read_text())
    body["records"][2]["image_id"] = 999
    path.write_text(json.dumps(body))


def repeat_image(path):
    body = json.loads(path.read_text())
    body["records"].append(body["records"][0])
    path.write_text(json.dumps(body))


@pytest.mark.fault("R2", "R11")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("predicted", not_utf_8, "The file is not UTF-8."),
        ("truth", not_utf_8, "The file is not UTF-8."),
        ("predicted", rename_image, "1 image(s) are not in the ground truth."),
        ("predicted", repeat_image, "1 image(s) are predicted twice."),
        ("truth", repeat_image, "1 image(s) of the ground truth are listed twice."),
        ("predicted", Path.unlink, "The file does not exist."),
        ("truth", Path.unlink, "The file does not exist."),
        ("predicted", lambda path: path.write_text("[1, 2"), "JSON"),
    ],
)
def test_a_users_mistake_is_one_message_and_no_traceback(evaluate, files, name, change, message):
    change(files / f"{name}.json")
    done = evaluate()
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error:") == 1
    assert message in done.stderr
    assert f"{name}.json" in done.stderr or "image ids" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (files / "predicted_results.json").exists()
