"""What a result leaves on disk, and what it becomes elsewhere."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

from locap.datasets.records import Category, Record, Region, encode_mask, read_records, record_from_json
from locap.inference.results import Result
from locap.utils.errors import MissingDependencyError

CATEGORIES = [Category(1, "cat"), Category(2, "sky", is_thing=False)]
LEFT = np.zeros((40, 60), bool)
LEFT[:, :30] = True


def region(number: int, mask: np.ndarray, category: int, caption: str = "") -> Region:
    return Region(number, category, encode_mask(mask), score=0.5, captions=(caption,) if caption else ())


@pytest.mark.parametrize("panoptic", [True, False])
def test_every_mode_is_in_the_file_and_the_table_shows_segments_first(tmp_path: Path, panoptic: bool):
    record = Record("photo", 40, 60)
    record.instances = [region(1, LEFT, 1, "an instance"), region(2, LEFT, 1, "another")]
    record.semantic = [region(1, LEFT, 1), region(2, ~LEFT, 2)]
    if panoptic:
        record.regions, record.id_map = [region(1, LEFT, 1, "a segment")], LEFT.astype(np.int32)
    shown = io.StringIO()
    image = np.zeros((40, 60, 3), np.uint8)
    result = Result(record, tuple(CATEGORIES), image)
    paths = result.save(tmp_path, "photo")
    result.print(Console(file=shown, width=100))
    [read], _, _ = read_records(paths[0])
    assert (read.instances, read.semantic, read.regions) == (record.instances, record.semantic, record.regions)
    assert paths[1].is_file()
    assert ("a segment" in shown.getvalue(), "an instance" in shown.getvalue()) == (panoptic, not panoptic)


MANY = Record("photo", 40, 60)
MANY.regions = [
    replace(region(1, LEFT, 1, "a cat"), box_xyxy=(0.0, 0.0, 31.0, 40.0)),
    Region(2, box_xyxy=(5.0, 6.0, 15.0, 26.0), captions=("a box [of things]",), caption_score=-0.5),
    Region(3, points=((7.0, 8.0),), captions=("a point",)),
]
RESULT = Result(MANY, tuple(CATEGORIES), np.zeros((40, 60, 3), np.uint8))


def test_as_coco_annotations():
    first, second, third = RESULT.to_coco(image_id=7, first_id=100)
    assert first == {
        "id": 100,
        "image_id": 7,
        "iscrowd": 0,
        "category_id": 1,
        "bbox": [0.0, 0.0, 31.0, 40.0],
        "area": 1200,
        "segmentation": dict(encode_mask(LEFT)),
        "score": 0.5,
        "caption": "a cat",
    }
    assert (second["bbox"], second["area"], "segmentation" in second) == ([5.0, 6.0, 10.0, 20.0], 200.0, False)
    assert third == {"id": 102, "image_id": 7, "iscrowd": 0, "caption": "a point"}
    assert RESULT.to_coco()[0]["image_id"] == "photo"
    json.dumps(RESULT.to_coco())


def test_pycocotools_reads_the_annotations(tmp_path: Path):
    coco = COCO()
    categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
    images = [{"id": 7, "height": 40, "width": 60}]
    coco.dataset = {"images": images, "categories": categories, "annotations": RESULT.to_coco(image_id=7)[:1]}
    coco.createIndex()
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=7, catIds=1))
    assert np.array_equal(coco.annToMask(annotation).astype(bool), LEFT)


def test_segments_of_an_id_map_have_masks():
    record = Record("photo", 40, 60, regions=[Region(1, 1), Region(2, 2)])
    record.id_map = np.where(LEFT, 1, 2).astype(np.int32)
    result = Result(record, tuple(CATEGORIES), RESULT.pixels)
    assert np.array_equal(result.masks()[1], ~LEFT)
    assert [a["bbox"] for a in result.to_coco()] == [[0.0, 0.0, 30.0, 40.0], [30.0, 0.0, 30.0, 40.0]]
    assert result.names == ["cat", "sky"]


def test_as_json_it_is_a_record():
    body = json.loads(json.dumps(RESULT.to_json()))
    assert body["regions"][0]["category_name"] == "cat"
    assert record_from_json(body).regions == MANY.regions


def test_as_detections():
    pytest.importorskip("supervision")
    found = RESULT.to_supervision()
    assert found.xyxy.tolist() == [[0, 0, 31, 40], [5, 6, 15, 26], [7, 8, 7, 8]]
    assert found.mask is None
    assert found.class_id.tolist() == [1, -1, -1]
    assert np.array_equal(found.confidence, [0.5, np.nan, np.nan], equal_nan=True)
    assert found.data["caption"].tolist() == ["a cat", "a box [of things]", "a point"]
    assert found.data["class_name"].tolist() == ["cat", "", ""]
    masked = Result(replace(MANY, regions=MANY.regions[:1]), tuple(CATEGORIES), RESULT.pixels).to_supervision()
    assert np.array_equal(masked.mask[0], LEFT)
    assert len(Result(replace(MANY, regions=[]), (), RESULT.pixels).to_supervision()) == 0


def test_without_supervision_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r'supervision is not installed[^$]*pip install "locap\[demo\]"'):
        RESULT.to_supervision()


def test_a_notebook_shows_the_picture():
    assert Image.open(io.BytesIO(RESULT._repr_png_())).size == RESULT.plot().size
    assert repr(RESULT) == "Result(image 'photo', 3 regions: 'a cat', 'a box [of things]', 'a point')"
