from __future__ import annotations

import json

import numpy as np
import pytest

from locap.datasets.records import Category, Record, Region
from locap.evaluation.attributes import CaptionAttributes

CATEGORIES = (Category(1, "star"), Category(2, "heart"), Category(9, "grass", is_thing=False))


def judge(text, region, record):
    """Right when the caption holds the attribute's word, unsaid when it holds no word of that kind."""
    kinds = {"colour": ("red", "blue"), "size": ("big", "small")}
    said = {name: [word for word in words if word in text.split()] for name, words in kinds.items()}
    return {name: None if not found else found[0] == region.attributes[name] for name, found in said.items()}


@pytest.fixture
def scene():
    ids = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]], np.int32)
    truth = [
        Region(1, 1, attributes={"colour": "red", "size": "big"}),
        Region(2, 2, attributes={"colour": "blue", "size": "small"}),
        Region(3, 1, attributes={"colour": "red", "size": "small"}),
        Region(4, 9, attributes={"colour": "blue"}),  # stuff is not judged
    ]
    found = np.where(ids == 3, 0, ids)
    predicted = [
        Region(1, 2, captions=("a big red star",)),  # the class does not matter
        Region(2, 2, captions=("a red heart",)),
        Region(4, 9, captions=("grass",)),
    ]
    return Record(1, 3, 4, id_map=ids, regions=truth), Record(1, 3, 4, id_map=found, regions=predicted)


def test_shares_over_all_found_and_said(scene):
    evaluator = CaptionAttributes(CATEGORIES, judge=judge, attributes=("size", "colour"))
    evaluator.update(*scene)
    result = evaluator.compute()
    assert result.figures == pytest.approx(
        {
            "found": 2 / 3, "size": 1 / 3, "size_matched": 1 / 2, "size_said": 1.0,
            "colour": 1 / 3, "colour_matched": 1 / 2, "colour_said": 1 / 2, "all": 1 / 3,
        }
    )  # fmt: skip
    assert result.tables["attributes"].rows == [("size", 1, 1, 2, 3), ("colour", 1, 2, 2, 3)]


def test_ranks_agree(scene):
    truth, predicted = scene
    whole, *parts = (CaptionAttributes(CATEGORIES, judge=judge, attributes=("size", "colour")) for _ in range(4))
    for image_id in range(5):
        truth.image_id = predicted.image_id = image_id
        whole.update(truth, predicted)
        parts[image_id % 3].update(truth, predicted)
    parts[0].merge(parts[1])
    parts[0].merge_state(json.loads(json.dumps(parts[2].state())))
    assert parts[0].compute() == whole.compute()


def test_without_attributes_there_is_no_figure(scene):
    evaluator = CaptionAttributes(CATEGORIES, judge=judge)
    for region in scene[0].regions:
        region.attributes = {}
    evaluator.update(*scene)
    assert evaluator.compute().figures == {}
    assert evaluator.compute().undefined
