"""Forms of files with captioned boxes."""

from __future__ import annotations

import json

import pytest

from locap.datasets.records import Record
from locap.entry import main
from locap.evaluation.formats import PREDICTIONS, TRUTHS, load_ground_truth, load_predictions
from locap.utils.errors import DataError

IMAGES = [{"id": 7, "height": 500, "width": 1000}, {"id": 8, "height": 100, "width": 80}]
ANNOTATION = {"id": 1, "image_id": 7, "bbox": [10, 20, 30, 40], "caption": "a red dog"}
GRIT = {
    "image_id": 7, "category_id": 0, "bbox": [7.2, 14.4, 21.6, 28.8], "score": 0.5, "logit": -1.5,
    "object_descriptions": "a dog",
}  # fmt: skip
RESULT = {"image_id": 7, "bbox": [10, 20, 30, 40], "score": 0.5, "caption": "a dog"}


@pytest.fixture
def write(tmp_path):
    def write_json(body, name="file.json"):
        path = tmp_path / name
        path.write_text(json.dumps(body))
        return path

    return write_json


@pytest.fixture
def truth():
    return [Record(7, 500, 1000), Record(8, 100, 80)]


def test_truth_of_grit(write):
    annotations = [ANNOTATION, ANNOTATION | {"id": 2, "image_id": 8, "iscrowd": 1, "caption": None}]
    records, categories = load_ground_truth(write({"images": IMAGES, "annotations": annotations}))
    assert [(r.image_id, r.height, r.width) for r in records] == [(7, 500, 1000), (8, 100, 80)]
    (region,), (crowd,) = (record.regions for record in records)
    assert (region.id, region.box_xyxy, region.captions) == (1, (10.0, 20.0, 40.0, 60.0), ("a red dog",))
    assert (crowd.is_crowd, crowd.captions) == (True, ())
    assert [category.name for category in categories] == ["object"]


def test_sides_that_corners_cannot_hold_are_kept(write, truth):
    sides = {"bbox": [229.9, 20, 105.5, 40]}  # 229.9 + 105.5 - 229.9 is 105.49999999999997
    (record, _), _ = load_ground_truth(write({"images": IMAGES, "annotations": [ANNOTATION | sides]}))
    predicted, _ = load_predictions(write([RESULT | sides]), truth)
    assert record.regions[0].box_size == predicted.regions[0].box_size == (105.5, 40.0)


def test_truth_as_visual_genome_publishes_it(coco_mini):
    folder = coco_mini / "visual_genome"
    records, _ = load_ground_truth(folder / "region_descriptions.json")
    assert sum(len(record.regions) for record in records) == 176
    raw = {record.image_id: record for record in records}
    for name in ("train", "test"):
        for record in load_ground_truth(folder / f"{name}.json")[0]:
            assert raw[record.image_id].regions == record.regions
            assert (raw[record.image_id].height, raw[record.image_id].width) == (record.height, record.width)


def test_results_of_grit_come_back_to_original_pixels(write, truth):
    first, empty = load_predictions(write([GRIT]), truth)
    (region,) = first.regions
    assert region.box_xyxy == pytest.approx((10, 20, 40, 60))
    assert (region.captions, region.score, empty.regions) == (("a dog",), 0.5, [])
    by_logit = load_predictions(write([GRIT]), truth, form="grit_results_by_logit")
    assert by_logit[0].regions[0].score == -1.5


def test_results_in_original_pixels(write, truth):
    (region,) = load_predictions(write([RESULT]), truth)[0].regions
    assert (region.box_xyxy, region.captions, region.score) == ((10.0, 20.0, 40.0, 60.0), ("a dog",), 0.5)
    assert load_predictions(write([]), truth, form="vg_results")[1].regions == []


def test_recognisers_are_disjoint():
    coco_detection = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    results = {"grit_results": [GRIT], "vg_results": [RESULT], None: [coco_detection]}
    results |= {"": [{"image_id": 1, "caption": "a"}]}
    for name, document in results.items():
        found = {key for key, form in PREDICTIONS.items() if form.recognises(document)}
        assert found & {"grit_results", "grit_results_by_logit", "vg_results"} == ({name} if name else set())
    truths = {
        "vg_regions": {"images": IMAGES, "annotations": [ANNOTATION]},
        "visual_genome": [{"id": 1, "regions": [{"region_id": 1, "phrase": "a"}]}],
        None: {"images": IMAGES, "annotations": [{"id": 1, "image_id": 7, "bbox": [0, 0, 1, 1], "category_id": 1}]},
        "": {"images": IMAGES, "annotations": [{"id": 1, "image_id": 7, "caption": "a"}]},
    }
    for name, document in truths.items():
        found = {key for key, form in TRUTHS.items() if form.recognises(document)}
        assert found & {"vg_regions", "visual_genome"} == ({name} if name else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, r'"bbox" is not four finite numbers(.|\n)*\[0\]'),
        ({"bbox": [1, 2, 3, "4"]}, '"bbox" is not four finite numbers'),
        ({"bbox": "1 2 3 4"}, '"bbox" is missing or of the wrong type'),
        ({"score": "high"}, '"score" is missing or of the wrong type'),
        ({"caption": 5}, '"caption" is missing or of the wrong type'),
        ({"image_id": 99}, r"1 result\(s\) are of images that are not in the ground truth(.|\n)*99"),
        ({"image_id": None}, '"image_id" is missing or of the wrong type'),
    ],
)
def test_wrong_results_are_named(write, truth, change, message):
    with pytest.raises(DataError, match=message):
        load_predictions(write([RESULT | change]), truth, form="vg_results")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"images": IMAGES, "annotations": [ANNOTATION, ANNOTATION]}, "A region id occurs twice"),
        ({"images": IMAGES, "annotations": [ANNOTATION | {"image_id": 9}]}, "an image that the file does not list"),
        ({"images": [*IMAGES, IMAGES[0]], "annotations": [ANNOTATION]}, "An image is listed twice"),
        ({"images": [{"id": 7, "height": 5}], "annotations": [ANNOTATION]}, '"width" is missing'),
        ({"annotations": [ANNOTATION]}, '"images" is missing'),
        ({"images": IMAGES, "annotations": [ANNOTATION | {"caption": 3}]}, '"caption" is missing or of the wrong type'),
    ],
)
def test_wrong_truth_is_named(write, body, message):
    with pytest.raises(DataError, match=message):
        load_ground_truth(write(body), form="vg_regions")


def test_raw_truth_needs_the_sizes(write):
    path = write([{"id": 5, "regions": [{"region_id": 1, "x": 0, "y": 0, "width": 1, "height": 1, "phrase": "a"}]}])
    with pytest.raises(DataError, match=r"image_data\.json"):
        load_ground_truth(path)
    write([{"image_id": 6, "height": 10, "width": 10}], "image_data.json")
    with pytest.raises(DataError, match="The size of an image is not known"):
        load_ground_truth(path)


def test_from_the_command_line(write, capsys):
    truth = write({"images": IMAGES, "annotations": [ANNOTATION]}, "truth.json")
    predictions = write([GRIT], "results.json")
    files = ["--ground-truth", str(truth), "--predictions", str(predictions)]
    more = ["--protocol", "dense_captioning", "--variant", "soloist97", "--option", "meteor=all", "--csv"]
    assert main(["evaluate", *files, *more]) in (0, 5)  # 5: no Java
    body = json.loads(predictions.with_name("results_results.json").read_text())
    assert body["results"][0]["figures"]["detection_map"] == 1.0
    rows = predictions.with_name("results_results_dense_captioning.csv").read_text().splitlines()
    assert rows[0].startswith("image_id,region_id,score,iou")
    assert "a dog,a red dog" in rows[1]


def test_a_file_that_is_not_utf8(tmp_path, truth):
    path = tmp_path / "results.json"
    path.write_bytes(b'[{"image_id": 7, "caption": "caf\xe9"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        load_predictions(path, truth)
