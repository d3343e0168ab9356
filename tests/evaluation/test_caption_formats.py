"""Files of captions: COCO's, lists of results, GLaMM's."""

from __future__ import annotations

import json

import pytest

from locap.datasets.records import Record, Region
from locap.evaluation.formats import PREDICTIONS, TRUTHS, load_ground_truth, load_predictions
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError

IMAGES = [{"id": 3, "height": 4, "width": 5}, {"id": 1}, {"id": "x", "height": None}]
CAPTIONS = [
    {"image_id": 3, "caption": "a dog"},
    {"image_id": 1, "caption": "a cat"},
    {"image_id": 3, "caption": "dogs"},
]
GLAMM = {
    "images": [{"id": 7, "height": 4, "width": 5, "file_name": "a.jpg"}, {"id": 9, "height": 4, "width": 5}],
    "annotations": [
        {"id": 7, "image_id": 7, "bbox": [1, 1, 2, 3], "caption": "a dog"},
        {"id": 9, "image_id": 9, "bbox": [0, 0, 5, 4], "caption": "a cat"},
    ],
}
REGIONS = [
    Record(1, 4, 4, regions=[Region(11, captions=("a",)), Region(12, captions=("b",))]),
    Record(2, 4, 4, regions=[Region(13, captions=("c",))]),
    Record(3, 4, 4, regions=[Region(12, captions=("d",))]),
]


@pytest.fixture
def write(tmp_path):
    def write(document, name="file.json"):
        path = tmp_path / name
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return path

    return write


def test_captions_belong_to_their_images(write):
    truth, categories = load_ground_truth(write({"images": IMAGES, "annotations": CAPTIONS}))
    assert truth == [
        Record(3, 4, 5, captions=("a dog", "dogs")), Record(1, 0, 0, captions=("a cat",)), Record("x", 0, 0),
    ]  # fmt: skip
    assert categories == []
    unlisted, _ = load_ground_truth(write({"annotations": CAPTIONS}))
    assert [record.image_id for record in unlisted] == [3, 1]
    predictions = load_predictions(write([{"image_id": 1, "caption": "b"}, {"image_id": 3, "caption": "c"}]), truth)
    assert predictions == [
        Record(1, 0, 0, captions=("b",)), Record(3, 4, 5, captions=("c",)), Record("x", 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"images": IMAGES, "annotations": [*CAPTIONS, {"image_id": 2, "caption": "a"}]}, r"(?s)not listed.*\[3\].*2"),
        (
            {"images": IMAGES, "annotations": [*CAPTIONS, {"image_id": 1}]},
            r'(?s)"caption" is missing.*annotations\[3\]',
        ),
        ({"images": IMAGES, "annotations": [*CAPTIONS, 5]}, r'(?s)"image_id" is missing.*annotations\[3\]'),
        ({"images": {}, "annotations": CAPTIONS}, '"images" is not a list'),
        ({"images": [{"height": 3}], "annotations": CAPTIONS}, r'(?s)"id" is missing.*images\[0\]'),
        ({"images": [7], "annotations": CAPTIONS}, r"images\[0\]"),
        ({"images": [{"id": 3, "height": "4"}], "annotations": CAPTIONS}, '"height" is missing or of the wrong type'),
        (b'{"annotations": [{"image_id": 1, "caption": "\xff"}]}', "(?i)utf-8"),
    ],
)
def test_malformed_truth_names_its_place(write, document, message):
    with pytest.raises(DataError, match=message):
        load_ground_truth(write(document))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"image_id": 3, "caption": "a"}], r"1 image\(s\) have no prediction(.|\n)*image ids 1"),
        (
            [{"image_id": 3, "caption": "a"}] * 2 + [{"image_id": 1, "caption": "a"}],
            r"1 image\(s\) are predicted twice",
        ),
        ([{"image_id": i, "caption": "a"} for i in (3, 1, 8)], r"1 image\(s\) are not in the ground truth(.|\n)*8"),
        ([{"image_id": 3, "caption": "a"}, {"image_id": 1, "caption": 5}], r'"caption" is missing(.|\n)*item 1'),
        ([{"image_id": 3, "caption": "a"}, {"image_id": 1.5, "caption": "a"}], r'"image_id" is missing(.|\n)*item 1'),
        ([{"image_id": 3, "caption": "a"}, [1]], r"item 1"),
    ],
)
def test_results_must_cover_the_images(write, items, message):
    truth, _ = load_ground_truth(write({"images": IMAGES, "annotations": CAPTIONS}, "truth.json"))
    with pytest.raises(DataError, match=message):
        load_predictions(write(items), truth)


def test_results_name_regions(write):
    items = [{"id": 11, "caption": "a"}, {"image_id": 1, "id": 12, "caption": "b"}]
    items += [{"image_id": 2, "caption": "c"}, {"image_id": 3, "caption": "d"}]
    predictions = load_predictions(write(items), REGIONS)
    assert [[(r.id, r.captions) for r in record.regions] for record in predictions] == [
        [(11, ("a",)), (12, ("b",))], [(13, ("c",))], [(12, ("d",))],
    ]  # fmt: skip


def test_results_are_of_images_where_regions_have_no_texts(write):
    items = write([{"image_id": 1, "caption": "a"}])
    for region in (Region(4), Region(4, captions=("b",))):
        (prediction,) = load_predictions(items, [Record(1, 4, 4, regions=[region], captions=("c",))])
        assert (prediction.regions, prediction.captions) == ([], ("a",))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"id": 12, "caption": "a"}, r"(?s)not found by its id.*id 12, in 2 images"),
        ({"id": 99, "caption": "a"}, r"(?s)not found by its id.*id 99, in 0 images"),
        ({"image_id": 1, "caption": "a"}, r"(?s)not said which region.*image_id 1, which has 2 regions"),
        ({"image_id": 8, "caption": "a"}, "image is not in the ground truth"),
        ({"image_id": 2, "id": "13", "caption": "a"}, '"id" is missing or of the wrong type'),
        ({"image_id": 2, "caption": None}, '"caption" is missing or of the wrong type'),
    ],
)
def test_results_must_name_regions_unmistakably(write, item, message):
    with pytest.raises(DataError, match=message):
        load_predictions(write([item]), REGIONS)


def test_glamm_file_is_scored_by_its_own_protocol(write, meteor):
    truth, categories = load_ground_truth(write(GLAMM))
    assert truth[0] == Record(7, 4, 5, regions=[Region(7, box_xyxy=(1.0, 1.0, 3.0, 4.0), captions=("a dog",))])
    results = write([{"image_id": 9, "caption": "a cat"}, {"image_id": 7, "caption": "a dog"}], "results.json")
    predictions = load_predictions(results, truth)
    options = {"region_captioning": {"variant": "vg_a"}}
    (result,) = evaluate_stored(truth, predictions, ["region_captioning"], categories, options=options)
    assert (result.figures["meteor"], result.counts["captions"]) == (1.0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, r"(?s)another id than its image.*annotations\[2\].*id 8, image_id 9"),
        ({"image_id": 8}, "image is not listed"),
        ({"id": 7, "image_id": 7, "bbox": [1, 2, 3]}, r"(?s)not four finite numbers.*annotations\[2\]"),
        ({"id": 7, "image_id": 7, "bbox": [1, 2, 3, 1e400]}, "(?i)not four finite numbers|infinit|NaN"),
        ({"id": 7, "image_id": 7, "caption": None}, '"caption" is missing'),
    ],
)
def test_malformed_glamm_files_name_their_place(write, change, message):
    item = {"id": 8, "image_id": 8, "bbox": [1, 1, 2, 2], "caption": "a"} | change
    with pytest.raises(DataError, match=message):
        load_ground_truth(write(GLAMM | {"annotations": [*GLAMM["annotations"], item]}), form="glamm_regions")


def test_forms_do_not_overlap():
    truths = {
        "coco_captions": {"annotations": CAPTIONS},
        "glamm_regions": GLAMM,
        "coco_panoptic": {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]},
    }
    for name, document in truths.items():
        assert [form for form, body in TRUTHS.items() if body.recognises(document)] == [name]
    results = {"coco_captions": CAPTIONS, "coco_panoptic": truths["coco_panoptic"]}
    for name, document in results.items():
        assert [form for form, body in PREDICTIONS.items() if body.recognises(document)] == [name]
    dense = {"image_id": 1, "id": 2, "bbox": [0, 0, 1, 1], "caption": "a"}
    assert not TRUTHS["coco_captions"].recognises({"annotations": [dense]})
    assert not TRUTHS["glamm_regions"].recognises({"annotations": [dense]})
    assert not PREDICTIONS["coco_captions"].recognises([dense])
    for nothing in (None, 3, [], {}, [3], {"annotations": None}, {"annotations": [3]}):
        assert not TRUTHS["coco_captions"].recognises(nothing)
        assert not TRUTHS["glamm_regions"].recognises(nothing)
        assert not PREDICTIONS["coco_captions"].recognises(nothing)
