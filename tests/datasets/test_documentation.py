"""The files that docs/data.md shows are read by the readers, and say what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locap.datasets.flattening import Flattened
from locap.datasets.prepare.catalogue import CATALOGUE
from locap.datasets.readers import open_dataset
from locap.datasets.records import Record
from locap.datasets.tasks import offers
from locap.utils.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BOXES, MASKS, LABELME = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
(LINES,) = re.findall(r"```jsonl\n(.*?)```", PAGE, re.DOTALL)
MUG = "a red mug on the desk"


@pytest.fixture
def mine(tmp_path) -> Path:
    """A folder with the image that the examples name."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(tmp_path / "images" / "desk.jpg")
    return tmp_path


def first(mine: Path, name: str, text: str) -> Record:
    (mine / name).write_text(text, encoding="utf-8")
    return open_dataset(str(mine / name))[0]


def test_boxes_train_what_takes_boxes(mine):
    record = first(mine, "train.json", BOXES)
    mug, keyboard = record.regions
    assert mug.box_xyxy == (40, 60, 240, 210)
    assert mug.captions == (MUG,)
    assert keyboard.captions == ("a grey keyboard", "the keyboard beside the mug")
    assert keyboard.expressions == ("the keyboard",)
    assert {task for task in ("region", "detect", "refer", "caption") if offers(record, task)} == {
        "region",
        "detect",
        "refer",
    }
    with pytest.raises(DataError, match="2 regions of the file have none"):
        Flattened(open_dataset(str(mine / "train.json")))


def test_masks_train_what_segments(mine):
    first(mine, "train.json", MASKS)
    reader = Flattened(open_dataset(str(mine / "train.json")))
    assert [(c.name, c.is_thing) for c in reader.categories] == [("mug", True), ("desk", False)]
    record = reader[0]
    assert [region.captions[0] for region in record.regions] == [MUG, "a desk of light wood under the mug"]
    ids = record.read_id_map()
    assert ids[100, 100] == 1
    assert ids[205, 100] == 1  # of masks that overlap, the smaller one lies on top
    assert ids[300, 300] == 2


def test_lines_and_labelme(mine):
    (region,) = first(mine, "train.jsonl", LINES).regions
    assert (region.category_id, region.box_xyxy, region.captions) == (1, (40, 60, 240, 210), (MUG,))
    folder = mine / "labelled"
    folder.mkdir()
    (folder / "desk.json").write_text(LABELME, encoding="utf-8")
    reader = open_dataset(str(folder))
    (region,) = reader[0].regions
    assert region.captions == (MUG,)
    assert reader[0].read_mask(region)[100, 100]
    assert [category.name for category in reader.categories] == ["mug"]


def test_every_folder_of_the_catalogue_is_named():
    folders = {target.partition("/")[0] for s in CATALOGUE.values() for d in s.downloads for target in d.gives}
    for folder in folders:
        assert f"{folder}/" in PAGE, folder
