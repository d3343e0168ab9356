"""Referring expressions and reasoning segmentation: the peers' figures, the invariants, and input that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record, Region, encode_mask, write_records
from locap.entry import main
from locap.evaluation import EVALUATORS
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError

SIZE = 12
VAL = {"split": "val"}
VARIANTS = [(protocol, v) for protocol in ("referring", "reason_seg") for v in EVALUATORS[protocol].variants]


def score(truth, predictions, protocol="referring", variant="standard"):
    (result,) = evaluate_stored(truth, predictions, [protocol], (), options={protocol: {"variant": variant}})
    return result


def column(result, name):
    return [row[result.regions.columns.index(name)] for row in result.regions.rows]


def golden(shared, name):
    folder = shared / "golden" / "eval" / name
    for case, expected in json.loads((folder / "expected.json").read_text())["cases"].items():
        yield folder / case, expected


def test_published_refcoco_precision(shared):
    for folder, expected in golden(shared, "refcoco_precision"):
        truth, _ = load_ground_truth(folder / "refcoco_gt.json")
        result = score(truth, load_predictions(folder / "refcoco_predictions.json", truth), variant="pixelllm")
        figures = result.figures
        assert figures["box_precision@0.5"] == expected["box_Precision@1"]
        assert figures["precision@0.5"] == expected["seg_AP"]
        assert figures["mask_box_precision@0.5"] == expected["seg_box_Precision@1"]
        assert figures["ciou"] == pytest.approx(expected["seg_cIoU"], abs=1e-9)
        assert figures["giou"] == pytest.approx(expected["seg_gIoU"], abs=1e-9)
        found = dict(zip(column(result, "expression_id"), column(result, "box_iou"), strict=True))
        order = [body["id"] for body in json.loads((folder / "refcoco_predictions.json").read_text())]
        np.testing.assert_allclose([found[i] for i in order], expected["box_iou_per_expression"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("protocol", "variant"), [("referring", "pixellm"), ("reason_seg", "upstream")])
def test_published_giou_and_ciou(shared, protocol, variant):
    for folder, expected in golden(shared, "referring_segmentation"):
        truth, _ = load_ground_truth(folder / "masks.json")
        result = score(truth, load_predictions(folder / "masks.json", truth), protocol, variant)
        areas = zip(column(result, "intersection"), column(result, "union"), strict=True)
        assert [list(pair) for pair in areas] == expected["foreground_intersection_union"]
        assert result.figures["giou"] == pytest.approx(expected["gIoU"], abs=1e-6)
        assert result.figures["ciou"] == pytest.approx(expected["cIoU"], abs=1e-6)


def test_the_command_line_scores_a_file_that_holds_both(shared, tmp_path):
    (folder, expected), *_ = golden(shared, "referring_segmentation")
    file = str(folder / "masks.json")
    output = tmp_path / "out.json"
    arguments = ["--protocol", "reason_seg", "--variant", "upstream", "--output", str(output), "--csv"]
    assert main(["evaluate", "--predictions", file, "--ground-truth", file, *arguments]) == 0
    figures = json.loads(output.read_text())["results"][0]["figures"]
    assert figures["giou"] == pytest.approx(expected["gIoU"], abs=1e-6)
    assert len((tmp_path / "out_reason_seg.csv").read_text().splitlines()) == 41


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def region(region_id, x0, y0, x1, y1, **more):
    box = (float(x0), float(y0), float(x1), float(y1))
    return Region(region_id, mask=encode_mask(rectangle(x0, y0, x1, y1)), box_xyxy=box, **more)


def image(image_id, *regions):
    return Record(image_id, SIZE, SIZE, regions=list(regions))


def test_figures_worked_out_by_hand():
    truth = [
        image(1, region(0, 0, 0, 4, 4, attributes=VAL), region(1, 0, 0, 10, 1, attributes=VAL)),
        image(2, region(2, 0, 0, 2, 5, attributes={"split": "testA"})),
    ]
    answers = [image(1, region(0, 0, 0, 4, 2), region(1, 0, 0, 8, 1)), image(2)]
    result = score(truth, answers)
    assert result.figures["ciou"] == 16 / 36  # 8 of 16, 8 of 10, none of 10
    assert result.figures["giou"] == pytest.approx((0.5 + 0.8) / 3)
    assert [result.figures[f"precision@{t}"] for t in (0.5, 0.6, 0.7, 0.8, 0.9)] == [1 / 3, 1 / 3, 1 / 3, 0, 0]
    assert result.figures["box_precision@0.5"] == result.figures["mask_box_precision@0.5"] == 1 / 3
    assert result.counts == {
        "images": 2, "expressions": 3, "unanswered": 1, "answers_without_box": 0, "answers_without_mask": 0
    }  # fmt: skip
    table = result.tables["splits"]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (rows["val"]["expressions"], rows["val"]["giou"], rows["testA"]["giou"]) == (2, 0.65, 0.0)


def test_an_expression_that_was_not_answered_is_wrong_but_in_pixelllm():
    truth = [image(1, region(0, 0, 0, 4, 4), region(1, 0, 0, 4, 4), region(2, 5, 5, 9, 9))]
    answers = [image(1, region(0, 8, 8, 9, 9), region(1, 0, 0, 4, 4))]
    assert score(truth, answers).figures["box_precision@0.5"] == 1 / 3
    assert score(truth, answers, variant="pixellm").figures["giou"] == pytest.approx(1 / 3, abs=1e-5)
    published = score(truth, answers, variant="pixelllm")
    assert published.figures["box_precision@0.5"] == 0.5  # the id 0 counts: the published code drops it only on writing
    assert (published.counts["unanswered"], published.counts["answered_not_above_zero"]) == (1, 1)
    assert "unanswered" in published.notes[0]


def test_an_empty_mask_is_right_for_an_empty_target_only_when_given():
    truth, empty = [image(1, region(1, 3, 3, 3, 3))], encode_mask(rectangle(0, 0, 0, 0))
    for protocol, variant in VARIANTS:
        given = score(truth, [image(1, Region(1, mask=empty))], protocol, variant).figures["giou"]
        missing = score(truth, [image(1)], protocol, variant)
        assert given == pytest.approx(0.0 if variant == "pixelllm" else 1.0, abs=2e-5)
        assert missing.figures.get("giou", 0.0) == 0.0
    assert score(truth, [image(1, Region(1, mask=empty))]).undefined["ciou"] == "no mask has a pixel"


def test_what_no_answer_holds_is_undefined_not_zero():
    truth = [image(1, region(1, 0, 0, 4, 4))]
    boxes = score(truth, [image(1, Region(1, box_xyxy=(0.0, 0.0, 4.0, 4.0)))])
    assert boxes.figures == {"box_precision@0.5": 1.0}
    assert boxes.undefined["giou"] == boxes.undefined["mask_box_precision@0.5"] == "no answer has a mask"
    none = score(truth, [image(1)])
    assert set(none.figures.values()) == {0.0}
    only_boxes = [image(1, Region(1, box_xyxy=(0.0, 0.0, 4.0, 4.0)))]
    assert score(only_boxes, only_boxes).undefined["ciou"] == "no expression has a true mask"
    assert score([image(1)], [image(1)]).undefined["giou"] == "there are no expressions"


def test_ignored_pixels_are_in_no_area():
    target, answer, ignore = rectangle(0, 0, 6, 6), rectangle(2, 2, 9, 9), rectangle(0, 4, 12, 8)
    truth = [image(1, Region(1, mask=encode_mask(target), ignore=encode_mask(ignore)))]
    for protocol, variant in VARIANTS:
        result = score(truth, [image(1, Region(1, mask=encode_mask(answer)))], protocol, variant)
        assert column(result, "intersection") == [int((target & answer & ~ignore).sum())]
        assert column(result, "union") == [int(((target | answer) & ~ignore).sum())]


CORNERS = st.tuples(*[st.integers(0, SIZE)] * 4).map(lambda c: (*np.minimum(c[:2], c[2:]), *np.maximum(c[:2], c[2:])))
EXPRESSIONS = st.lists(st.tuples(CORNERS, st.none() | CORNERS), min_size=1, max_size=4)


def pairs_of(images):
    """Return truth and predictions of drawn images."""
    truth = [image(i, *(region(k, *true) for k, (true, _) in enumerate(e))) for i, e in enumerate(images)]
    predictions = [
        image(i, *(region(k, *given) for k, (_, given) in enumerate(e) if given is not None))
        for i, e in enumerate(images)
    ]
    return truth, predictions


@settings(max_examples=8, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_and_parts_do_not_matter(images, random):
    truth, predictions = pairs_of(images)
    order = [record.image_id for record in truth]
    for protocol, variant in VARIANTS:
        whole = score(truth, predictions, protocol, variant)
        shuffled = [
            replace(record, regions=random.sample(record.regions, len(record.regions))) for record in predictions
        ]
        assert score(truth, random.sample(shuffled, len(shuffled)), protocol, variant) == whole
        for parts in (2, 4):
            objects = [EVALUATORS[protocol]((), variant=variant, image_order=order) for _ in range(parts)]
            for index, pair in enumerate(zip(truth, predictions, strict=True)):
                objects[index % parts].update(*pair)
            merged = EVALUATORS[protocol]((), variant=variant, image_order=order)
            for part in random.sample(objects, parts):
                merged.merge_state(json.loads(json.dumps(part.state())))
            assert merged.compute() == whole


@settings(max_examples=25, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=4))
def test_exact_figures_of_dense_masks(images):
    truth, predictions = pairs_of(images)
    result = score(truth, predictions)
    intersections, unions, ious = [], [], []
    for true, answer in (pair for expressions in images for pair in expressions):
        a, b = rectangle(*true), rectangle(*answer) if answer is not None else np.zeros((SIZE, SIZE), bool)
        intersections.append(int((a & b).sum()))
        unions.append(int((a | b).sum()))
        ious.append(0.0 if answer is None else intersections[-1] / unions[-1] if unions[-1] else 1.0)
    assert column(result, "intersection") == intersections
    assert column(result, "union") == unions
    assert column(result, "mask_iou") == ious
    if sum(unions):
        assert result.figures["ciou"] == sum(intersections) / sum(unions)
    assert all(0 <= value <= 1 for value in result.figures.values())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(CORNERS.filter(lambda c: c[2] > c[0] and c[3] > c[1]), min_size=1), min_size=1, max_size=4))
def test_perfect_answers_score_one(images):
    truth, predictions = pairs_of([[(corners, corners) for corners in image] for image in images])
    for protocol, variant in VARIANTS:
        figures = score(truth, predictions, protocol, variant).figures
        assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=0.0 if variant == "standard" else 2e-5)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([region(1, 0, 0, 2, 2), region(9, 0, 0, 2, 2)], r"1 answer\(s\) are to no expression(.|\n)*9"),
        ([region(1, 0, 0, 2, 2), region(1, 0, 0, 3, 3)], r"Ids occur twice(.|\n)*image_id 1, prediction"),
        ([Region(1, box_xyxy=(4.0, 0.0, 2.0, 2.0))], "box is inverted(.|\n)*expression 1"),
        ([Region(1, box_xyxy=(0.0, float("nan"), 2.0, 2.0))], "not four finite numbers"),
        ([Region(1, mask={"size": [4, 4], "counts": [16]})], r"differs in size(.|\n)*\[4, 4\](.|\n)*\[12, 12\]"),
        ([Region(1, mask={"size": [12, 12], "counts": [3]})], "do not fill its size(.|\n)*expression 1"),
    ],
)  # fmt: skip
def test_wrong_answers_are_refused(answers, message):
    with pytest.raises(DataError, match=message):
        score([image(1, region(1, 0, 0, 4, 4))], [image(1, *answers)])


def test_expressions_that_occur_twice_are_refused():
    with pytest.raises(DataError, match="ground truth"):
        score([image(1, region(1, 0, 0, 4, 4), region(1, 0, 0, 4, 4))], [image(1)])


def test_boxes_outside_the_image_are_not_clipped():
    truth = [image(1, Region(1, box_xyxy=(0.0, 0.0, 4.0, 4.0)))]
    (row,) = score(truth, [image(1, Region(1, box_xyxy=(-4.0, 0.0, 4.0, 4.0)))]).regions.rows
    assert row[5] == 0.5


REFCOCO = {
    "images": [{"id": 5, "height": 12, "width": 12}, {"id": 6, "height": 12, "width": 12, "split": "testB"}],
    "annotations": [
        {
            "id": 1, "image_id": 5, "bbox": [1, 1, 4, 4], "refexp_id": [0, 3], "refexp_sent": ["left one", "small"],
            "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]], "split": "val",
        },
        {
            "id": 2, "image_id": 6, "bbox": [0, 0, 6, 6], "refexp_id": [4],
            "segmentation": {"size": [12, 12], "counts": [0, 72, 72]},
        },
    ],
}  # fmt: skip
ANSWERS = [
    {"id": 3, "image_id": 5, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]], "score": 0.5},
    {"id": 0, "image_id": 5, "bbox": [1, 1, 4, 4], "refexp": "left one", "segmentation": []},
]


def written(tmp_path, name, body):
    path = tmp_path / name
    path.write_text(json.dumps(body))
    return path


def test_refcoco_files(tmp_path):
    truth, _ = load_ground_truth(written(tmp_path, "gt.json", REFCOCO))
    answers = load_predictions(written(tmp_path, "p.json", ANSWERS), truth)
    result = score(truth, answers)
    assert column(result, "expression") == ["left one", "small", ""]
    assert column(result, "split") == ["val", "val", "testB"]
    assert column(result, "box_iou") == [1.0, 1.0, 0.0]
    assert column(result, "mask_iou") == [0.0, 1.0, 0.0]
    assert column(result, "union") == [16, 16, 72]


def changed(body, place, value):
    body = json.loads(json.dumps(body))
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return body


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("annotations", 1, "image_id"), 7, r"not listed(.|\n)*annotations\[1\](.|\n)*7"),
        (("annotations", 1, "refexp_id"), [3], r"occur twice(.|\n)*3"),
        (("annotations", 1, "refexp_id"), ["3"], r'"refexp_id" is missing(.|\n)*annotations\[1\]'),
        (("annotations", 0, "refexp_sent"), ["a"], "differ in number"),
        (("annotations", 0, "bbox"), [1, 2, 3], "not four finite numbers"),
        (("annotations", 0, "segmentation"), [[1, 2, 3]], r"polygon is malformed(.|\n)*annotations\[0\]"),
        (("annotations", 1), None, r"annotations\[1\]"),
        (("images", 0, "height"), None, r'"height" is missing(.|\n)*images\[0\]'),
        (("images",), None, '"images" is missing'),
    ],
)
def test_malformed_refcoco_truth_names_its_place(tmp_path, place, value, message):
    with pytest.raises(DataError, match=message):
        load_ground_truth(written(tmp_path, "gt.json", changed(REFCOCO, place, value)))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((0, "image_id"), 7, r"not in the ground truth(.|\n)*7"),
        ((0, "id"), "3", r'"id" is missing(.|\n)*\[0\]'),
        ((1, "bbox"), [0, 0, "1", 1], r"not four finite numbers(.|\n)*\[1\]"),
        ((1, "bbox"), [0, 0, True, 1], "not four finite numbers"),
        ((1,), 5, r"\[1\]"),
    ],
)
def test_malformed_refcoco_answers_name_their_place(tmp_path, place, value, message):
    truth, _ = load_ground_truth(written(tmp_path, "gt.json", REFCOCO))
    with pytest.raises(DataError, match=message):
        load_predictions(written(tmp_path, "p.json", changed(ANSWERS, place, value)), truth)


def test_an_inverted_box_in_a_file_is_refused(tmp_path):
    truth, _ = load_ground_truth(written(tmp_path, "gt.json", REFCOCO))
    answers = load_predictions(written(tmp_path, "p.json", changed(ANSWERS, (0, "bbox"), [3, 3, -2, 2])), truth)
    with pytest.raises(DataError, match="inverted"):
        score(truth, answers)


def test_mdetr_files_group_expressions_by_image(coco_mini):
    for path in sorted((coco_mini / "refcoco_mdetr").glob("*.json")):
        document = json.loads(path.read_text())
        truth, _ = load_ground_truth(path)
        assert {record.image_id for record in truth} == {item["original_id"] for item in document["images"]}
        texts = {region.id: region.expressions for record in truth for region in record.regions}
        assert texts == {item["refexp_id"]: (item["caption"],) for item in document["images"]}
        perfect = score(truth, truth)
        assert set(perfect.figures.values()) == {1.0}
        assert [row[:2] for row in perfect.tables["splits"].rows] == [("refcoco", len(texts))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["annotations"].append(body["annotations"][0]), "two annotations"),
        (lambda body: body["annotations"].pop(), "no annotation"),
        (lambda body: body["images"][1].update(refexp_id=body["images"][0]["refexp_id"]), "occur twice"),
    ],
)
def test_malformed_mdetr_files_are_refused(coco_mini, tmp_path, change, message):
    body = json.loads((coco_mini / "refcoco_mdetr" / "refcoco_unc_testA.json").read_text())
    change(body)
    with pytest.raises(DataError, match=message):
        load_ground_truth(written(tmp_path, "gt.json", body))


MASK = {"size": [12, 12], "counts": [72, 72]}
MASKS = [
    {
        "image_id": 1, "height": 12, "width": 12,
        "expressions": [
            {"sentence": "a", "target": MASK, "prediction": MASK, "ignore": None},
            {"sentence": "b", "target": MASK, "prediction": None},
        ],
    }
]  # fmt: skip


def test_a_prediction_may_be_missing_in_a_file_of_masks(tmp_path):
    path = written(tmp_path, "masks.json", MASKS)
    truth, _ = load_ground_truth(path)
    result = score(truth, load_predictions(path, truth), "reason_seg")
    assert (result.figures["giou"], result.counts["unanswered"]) == (0.5, 1)


def test_a_file_of_masks_may_begin_with_an_image_without_expressions_and_lack_sentences(tmp_path):
    masks = [{name: value for name, value in body.items() if name != "sentence"} for body in MASKS[0]["expressions"]]
    path = written(
        tmp_path, "masks.json", [MASKS[0] | {"image_id": 2, "expressions": []}, MASKS[0] | {"expressions": masks}]
    )
    truth, _ = load_ground_truth(path)
    result = score(truth, load_predictions(path, truth), "reason_seg", "upstream")
    assert (result.counts["images"], result.counts["expressions"]) == (2, 2)
    assert result.figures["giou"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((0, "expressions", 1), "b", r"expressions\[1\]"),
        ((0, "expressions", 1, "target"), None, r'"target" is missing(.|\n)*expressions\[1\]'),
        ((0, "expressions", 0, "prediction"), "abc", '"prediction" is missing'),
        ((0, "expressions", 0, "sentence"), 5, '"sentence" is missing'),
        ((0, "width"), 2.5, '"width" is missing'),
    ],
)
def test_malformed_files_of_masks_name_their_place(tmp_path, place, value, message):
    path = written(tmp_path, "masks.json", changed(MASKS, place, value))
    with pytest.raises(DataError, match=message):
        load_predictions(path, load_ground_truth(path)[0])


def test_record_files_are_scored(tmp_path):
    truth = [image(1, region(4, 0, 0, 4, 4, expressions=("it",), ignore=encode_mask(rectangle(0, 0, 1, 1))))]
    read, _ = load_ground_truth(write_records(tmp_path / "t.json", truth))
    assert read == truth
    assert score(read, load_predictions(tmp_path / "t.json", read), "reason_seg").regions.rows[0][6:9] == (15, 15, 1.0)
