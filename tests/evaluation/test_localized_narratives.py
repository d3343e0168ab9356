"""Narratives from the published layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import Narrative, TimedWord
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.utils.errors import DataError

LINE = {
    "dataset_id": "mscoco_val2017",
    "image_id": "7",
    "caption": "a dog",
    "timed_caption": [{"utterance": "a dog", "start_time": 0.0, "end_time": 1}],
    "traces": [[{"x": 0.5, "y": 0.25, "t": 0.5}]],
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "val2017").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "val2017" / "000000000007.jpg")

    def write(*lines, name="truth.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
        return path

    return write


@pytest.mark.parametrize("folder", ["", "val2017"])
def test_lines_of_an_image_join_and_fractions_become_pixels(write, tmp_path, folder):
    path = write(LINE, LINE | {"caption": "again"})
    (record,), categories = load_ground_truth(path, tmp_path / folder)
    assert (record.image_id, record.height, record.width, categories) == (7, 40, 60, [])
    assert record.narratives[0] == Narrative("a dog", (TimedWord("a dog", 0.0, 1.0),), (((30.0, 10.0, 0.5),),))
    assert [narrative.caption for narrative in record.narratives] == ["a dog", "again"]
    (prediction,) = load_predictions(write(LINE, name="p.jsonl"), [record])
    assert prediction.narratives == record.narratives[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timed_caption": [{"utterance": "a"}]}, r'(?s)"start_time" is missing.*\[0\]: timed_caption\[0\]'),
        ({"traces": [[{"x": 0.5, "t": 0}]]}, r'(?s)"y" is missing.*traces\[0\]'),
        ({"image_id": "8"}, "does not exist"),
        ({"image_id": "../7"}, "leaves its folder"),
    ],
)
def test_malformed_lines_name_their_place(write, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load_ground_truth(write(LINE | change), tmp_path / "val2017")


def test_the_folder_of_the_images_is_asked_for(write):
    with pytest.raises(DataError, match="--ground-truth-folder"):
        load_ground_truth(write(LINE))


def test_predictions_of_other_images_are_refused(write, tmp_path):
    truth, _ = load_ground_truth(write(LINE), tmp_path / "val2017")
    with pytest.raises(DataError, match=r"(?s)not in the ground truth.*9"):
        load_predictions(write(LINE | {"image_id": "9"}, name="p.jsonl"), truth)
