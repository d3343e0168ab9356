"""Scoring files from the command line."""

from __future__ import annotations

import gc
import json

import pytest

from locap.datasets.records import write_records
from locap.entry import main
from locap.evaluation.panoptic import PanopticQuality
from locap.evaluation.runner import COLLECT_AFTER, evaluate_stored
from locap.utils.errors import DataError

from .conftest import CATEGORIES


@pytest.fixture
def files(tmp_path, make_images):
    images = make_images(3)
    truth = write_records(tmp_path / "truth.json", [pair[0] for pair in images], CATEGORIES)
    predicted = write_records(tmp_path / "predicted.json", [pair[1] for pair in images], CATEGORIES)
    return images, ["--ground-truth", str(truth), "--predictions", str(predicted)]


def test_files_are_scored_without_a_configuration(files, tmp_path, capsys):
    images, arguments = files
    assert main(["evaluate", *arguments, "--protocol", "panoptic", "--csv"]) == 0
    body = json.loads((tmp_path / "predicted_results.json").read_text())
    (expected,) = evaluate_stored(*([pair[i] for pair in images] for i in (0, 1)), ["panoptic"], CATEGORIES)
    assert body["results"][0]["figures"] == expected.figures
    assert (body["ground_truth"]["images"], body["predictions"]["images"]) == (3, 3)
    assert "pq" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--protocol", "panoptc"], "use panoptic"),
        (["--protocol", "panoptic", "--variant", "upstream"], "no such variant"),
        (["--protocol", "panoptic", "--option", "judge=me"], "no such option"),
        (["--protocol", "panoptic", "--predictions-form", "coco_panoptc"], "use coco_panoptic"),
        ([], "--protocol is missing"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(files, capsys, more, message):
    assert main(["evaluate", *files[1], *more]) == 2
    assert message in capsys.readouterr().err


def test_evaluating_leaves_the_garbage_collector_as_it_was(make_images, monkeypatch):
    seen, before = [], gc.get_threshold()
    monkeypatch.setattr(PanopticQuality, "warm_up", lambda self: seen.append(gc.get_threshold()[0]))
    images = make_images(1)
    evaluate_stored([images[0][0]], [images[0][1]], ["panoptic"], CATEGORIES)
    with pytest.raises(DataError):
        evaluate_stored([images[0][0]], [], ["panoptic"], CATEGORIES)
    assert seen == [COLLECT_AFTER]
    assert gc.get_threshold() == before
