"""COCO annotation files and result lists as records."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from locap.datasets.records import decode_mask
from locap.entry import main
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.formats.coco_detection import recognises_predictions, recognises_truth
from locap.utils.errors import DataError
from locap.utils.untrusted import polygons_to_mask

CROWD = {"size": [20, 30], "counts": [0, 40, 560]}
TRUTH = {
    "images": [{"id": 7, "height": 20, "width": 30, "file_name": "a/7.jpg"}, {"id": 9, "height": 20, "width": 30}],
    "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    "annotations": [
        {
            "id": 5, "image_id": 7, "category_id": 3, "bbox": [5.3, 2, 9.9, 5], "area": 33.25, "iscrowd": 0,
            "segmentation": [[1, 2, 9, 2, 9, 6, 1, 6]],
        },
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 20], "iscrowd": 1, "segmentation": CROWD},
        {
            "id": 6, "image_id": 9, "category_id": 1, "bbox": [0, 0, 2, 20], "segmentation": [],
            "keypoints": [1, 2.5, 2, 0, 0, 0], "num_keypoints": 1,
        },
    ],
}  # fmt: skip
RESULT = {"image_id": 7, "category_id": 3, "score": 0.5}
RLE = {"size": [20, 30], "counts": coco_mask.encode(np.eye(20, 30, dtype=np.uint8, order="F"))["counts"].decode()}


@pytest.fixture
def write(tmp_path):
    def write(name, body):
        path = tmp_path / name
        path.write_text(body if isinstance(body, str) else json.dumps(body))
        return path

    return write


def change(place, **values):
    """Return the ground truth with some values of its first image, category or annotation changed."""
    body = json.loads(json.dumps(TRUTH))
    body[place][0] |= values
    return body


def test_truth_keeps_what_the_file_says(write, tmp_path):
    records, categories = load_ground_truth(write("t.json", TRUTH))
    assert [(c.id, c.name, c.is_thing) for c in categories] == [(1, "person", True), (3, "car", True)]
    car, crowd = records[0].regions
    assert (car.id, car.area, car.is_crowd, car.box_xyxy) == (5, 33.25, False, (5.3, 2.0, 5.3 + 9.9, 7.0))
    assert car.box_size == (9.9, 5.0)
    assert 5.3 + 9.9 - 5.3 != 9.9
    assert np.array_equal(decode_mask(car.mask), polygons_to_mask(TRUTH["annotations"][0]["segmentation"], 20, 30))
    assert (crowd.is_crowd, crowd.area, crowd.box_size) == (True, None, None)
    assert decode_mask(crowd.mask)[:, :2].all()
    assert decode_mask(crowd.mask).sum() == 40
    assert records[1].regions[0].keypoints == ((1, 2.5, 2), (0, 0, 0))
    assert records[1].regions[0].mask is None
    assert records[0].image is None


def test_what_only_some_tools_need_may_be_missing(write, tmp_path):
    body = change("annotations", id=5.0, category_id=3.0, keypoints=[1, 2, 2, 3, 4, 1], num_keypoints=1)
    body["images"] = [{"id": 7.0}, {"id": 9}]
    body["categories"] = [{"id": 1}, {"id": 3.0}]
    path = write("t.json", body)
    records, categories = load_ground_truth(path)
    assert [(c.id, c.name) for c in categories] == [(1, "1"), (3, "3")]
    assert [(r.image_id, r.height, r.width) for r in records] == [(7, 0, 0), (9, 0, 0)]
    assert [(r.id, r.category_id, r.mask) for r in records[0].regions] == [(5, 3, None), (2, 1, None)]
    results = write("p.json", [RESULT | {"image_id": 7.0, "bbox": [5.3, 2, 9.9, 5]}])
    arguments = ["evaluate", "--ground-truth", str(path), "--predictions", str(results)]
    assert main([*arguments, "--protocol", "detection"]) == 0
    result = json.loads((tmp_path / "p_results.json").read_text())["results"][0]
    assert result["tables"]["categories"]["rows"][1][:3] == [3, "3", pytest.approx(1.0)]
    assert result["counts"]["predicted_outside"] == 0
    assert main([*arguments, "--protocol", "instances"]) == 3


def test_images_are_named_where_their_folder_is_given(write, tmp_path):
    records, _ = load_ground_truth(
        write("t.json", TRUTH | {"images": TRUTH["images"][:1], "annotations": []}), tmp_path
    )
    assert records[0].image == str(tmp_path / "a/7.jpg")


def test_results_are_numbered_and_every_image_has_a_record(write):
    truth, _ = load_ground_truth(write("t.json", TRUTH))
    results = [
        RESULT | {"bbox": [5.3, 2, 9.9, 5], "segmentation": RLE},
        RESULT | {"bbox": [], "keypoints": [1, 2, 0.75]},
    ]
    first, second = load_predictions(write("p.json", results), truth)
    assert [region.id for region in first.regions] == [1, 2]
    assert first.regions[0].box_size == (9.9, 5.0)
    assert np.array_equal(decode_mask(first.regions[0].mask), np.eye(20, 30, dtype=bool))
    assert first.regions[1].keypoints == ((1, 2, 0.75),)
    assert (second.image_id, second.regions) == (9, [])


def test_no_results_are_results(write):
    truth, _ = load_ground_truth(write("t.json", TRUTH))
    assert [record.regions for record in load_predictions(write("p.json", []), truth)] == [[], []]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (change("annotations", image_id=8), r"no such image(.|\n)*annotations\[0\](.|\n)*8"),
        (change("annotations", category_id=8), r"category that the file does not list(.|\n)*annotations\[0\]"),
        (change("annotations", id=2), r"An id occurs twice(.|\n)*annotations\[1\]"),
        (change("images", id=9), r"An id occurs twice(.|\n)*images\[1\]"),
        (change("images", height=0), "An image has no pixels"),
        (change("categories", name=None), r'"name" is missing(.|\n)*categories\[0\]'),
        (change("annotations", bbox=[0, 0, -1, 2]), r"A box is not(.|\n)*annotations\[0\](.|\n)*-1"),
        (change("annotations", bbox=[0, 0, 1]), "A box is not"),
        (change("annotations", bbox=[0, 0, 10**400, 1]), "A box is not"),
        (change("annotations", area=-1), '"area" is impossible'),
        (change("annotations", iscrowd="no"), '"iscrowd" is missing or of the wrong type'),
        (change("annotations", segmentation=[[1, 2, 3, 4]]), r"A polygon is malformed(.|\n)*annotations\[0\]"),
        (change("annotations", segmentation={"size": [20, 31], "counts": [620]}), "another size than its image"),
        (change("annotations", segmentation={"size": [20, 30], "counts": [620]}), "do not fill its size"),
        (change("annotations", keypoints=[1, 2, 2], num_keypoints=0), "num_keypoints and the visibilities differ"),
        (change("annotations", keypoints=[1, 2]), "Keypoints are not"),
    ],
)
def test_impossible_truth_names_its_place(write, body, message):
    with pytest.raises(DataError, match=message):
        load_ground_truth(write("t.json", body))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"image_id": 8, "bbox": [0, 0, 1, 1]}, r"no such image(.|\n)*\[1\](.|\n)*8"),
        ({"bbox": [0, 0, -1, 1]}, r"A box is not(.|\n)*\[1\]"),
        ({"bbox": [0, 0, "1", 1]}, "A box is not"),
        ({"bbox": [0, 0, 1, 1], "score": None}, '"score" is missing'),
        ({"bbox": [0, 0, 1, 1], "score": True}, '"score" is missing or of the wrong type'),
        ({"segmentation": RLE | {"size": [30, 20]}}, r"another size than its image(.|\n)*\[1\](.|\n)*30, 20"),
        ({"segmentation": {"size": [20, 30], "counts": "\x00"}}, r"malformed(.|\n)*\[1\]"),
        ({"segmentation": {"counts": "ab"}}, "another size"),
        ({}, "no geometry"),
    ],
)
def test_impossible_results_name_their_place(write, result, message):
    truth, _ = load_ground_truth(write("t.json", TRUTH))
    with pytest.raises(DataError, match=message):
        load_predictions(write("p.json", [RESULT | {"bbox": [0, 0, 1, 1]}, RESULT | result]), truth)


def test_not_a_number_is_no_json(write):
    truth, _ = load_ground_truth(write("t.json", TRUTH))
    body = json.dumps([RESULT | {"bbox": [0, 0, float("nan"), 1]}])
    with pytest.raises(DataError, match="NaN"):
        load_predictions(write("p.json", body), truth)


def test_files_of_other_protocols_are_not_taken():
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}
    for text in ({"caption": "a"}, {"object_descriptions": ["a"]}, {"segments_info": []}):
        assert not recognises_truth(TRUTH | {"annotations": [box | text]})
        assert not recognises_predictions([box | text])
    assert not recognises_truth(TRUTH | {"images": [{"id": 1, "refexp_id": 4, "caption": "a"}]})
    assert not recognises_truth({"images": [], "annotations": [{"image_id": 1, "caption": "a"}]})
    assert not recognises_predictions([{"image_id": 1, "caption": "a"}])
    assert not recognises_predictions({"annotations": [box]})


def test_from_the_command_line(write, tmp_path, capsys):
    arguments = ["--ground-truth", str(write("t.json", TRUTH)), "--predictions", str(write("p.json", [])), "--csv"]
    assert main(["evaluate", *arguments, "--protocol", "detection", "instances", "--variant", "class_agnostic"]) == 3
    assert "no mask" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--protocol", "detection", "--option", "backend=pycocotools"]) == 0
    shown = capsys.readouterr()
    assert "ap_large" in shown.out
    assert "Evaluate annotation" not in shown.out
    body = json.loads((tmp_path / "p_results.json").read_text())
    assert body["results"][0]["figures"]["ap"] == 0
    assert (tmp_path / "p_results_detection.csv").read_text().startswith("image_id,category_id,predicted_id")
