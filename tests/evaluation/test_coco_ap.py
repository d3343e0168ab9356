"""COCO and VOC average precision: reference scores, both back ends, invariants, bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Category, Record, Region, encode_mask
from locap.evaluation import EVALUATORS
from locap.evaluation.coco_ap import BoxAveragePrecision, KeypointAveragePrecision, MaskAveragePrecision
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError, UsageError

TASKS = {  # of the reference scores -> protocol, variant, files
    "bbox": ("detection", "standard", "instances"),
    "segm": ("instances", "standard", "instances"),
    "bbox_class_agnostic": ("detection", "class_agnostic", "instances"),
    "keypoints": ("keypoints", "standard", "person_keypoints"),
}
DETECTION_STATS = (
    "ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large",
    "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
KEYPOINT_STATS = (
    "ap", "ap_50", "ap_75", "ap_medium", "ap_large", "ar", "ar_50", "ar_75", "ar_medium", "ar_large",
)  # fmt: skip
CLASSES = (Category(1, "cat"), Category(5, "dog"), Category(9, "grass", is_thing=False))
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def evaluate(images, protocol="detection", categories=CLASSES, **options):
    evaluator = EVALUATORS[protocol](categories, **options)
    for truth, predicted in images:
        evaluator.update(truth, predicted)
    return evaluator.compute()


def golden_cases(shared):
    folder = shared / "golden" / "eval" / "coco_detection"
    for case, tasks in json.loads((folder / "expected.json").read_text())["cases"].items():
        for task, expected in tasks.items():
            protocol, variant, files = TASKS[task]
            truth = folder / case / f"{files}_gt.json"
            if not truth.exists():
                truth = shared / "data" / "coco_mini" / "annotations" / f"{files}.json"
            yield f"{case} {task}", protocol, variant, truth, folder / case / f"{files}_results.json", expected


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_equals_the_peers(shared, backend):
    for name, protocol, variant, truth_file, results_file, expected in golden_cases(shared):
        truth, categories = load_ground_truth(truth_file)
        predicted = load_predictions(results_file, truth)
        options = {protocol: {"variant": variant, "backend": backend}}
        (result,) = evaluate_stored(truth, predicted, [protocol], categories, options=options)
        check_stats(name, result, expected["stats"])
        check_tables(name, result, expected)
        for match in expected.get("matches_first_threshold_first_6_images", ()):
            check_match(name, result, match)


def check_stats(name, result, stats):
    names = KEYPOINT_STATS if result.protocol == "keypoints" else DETECTION_STATS
    found = [result.figures.get(figure, -1) for figure in names]
    assert found == pytest.approx(stats, abs=1e-12), name
    assert set(result.undefined) == {figure for figure, value in zip(names, stats, strict=True) if value == -1}
    assert set(result.figures) | set(result.undefined) == set(names)


def check_tables(name, result, expected):
    rows = {
        str(row[0]): [-1 if value is None else value for value in row[2:4]] for row in result.tables["categories"].rows
    }
    assert rows.keys() == expected["per_category_AP_AP50"].keys(), name
    for key, values in expected["per_category_AP_AP50"].items():
        assert rows[key] == pytest.approx(values, abs=1e-12), (name, key)
    for table, key in (("precision", "mean_precision_TKAM"), ("recall", "recall_TKAM")):
        if key in expected:
            stored = np.moveaxis(np.array(expected[key]), 0, -1)  # K, A, M, T
            found = [[-1 if value is None else value for value in row[3:]] for row in result.tables[table].rows]
            assert np.array(found) == pytest.approx(stored.reshape(-1, stored.shape[-1]), abs=1e-12), (name, table)


def check_match(name, result, match):
    rows = [row for row in result.regions.rows if row[0] == match["image_id"] and match["category_id"] in (-1, row[1])]
    found = [row for row in rows if row[2] is not None]
    assert [row[2] for row in found] == match["dtIds"], name
    assert [row[4] or 0 for row in found] == match["dtMatches"], name
    assert [int(row[6]) for row in found] == match["dtIgnore"], name
    truth = {row[4]: int(row[6]) for row in rows if row[4] is not None}
    assert truth == dict(zip(match["gtIds"], match["gtIgnore"], strict=True)), name


def region(i, box, category=1, **more):
    return Region(i, category, box_xyxy=tuple(map(float, box)), **more)


def one_image(truth, predicted):
    return [(Record(1, 100, 100, regions=truth), Record(1, 100, 100, regions=predicted))]


@st.composite
def scenes(draw, apart=False, distinct=False):
    """Up to three images; boxes on a coarse grid, so that overlaps and scores coincide often."""
    scores = iter(draw(st.permutations(range(60)))) if distinct else None
    images = []
    for image_id in range(draw(st.integers(1, 3))):
        truth = []
        for i in range(draw(st.integers(0, 5))):
            x, y = (
                (25 * (i % 4), 25 * (i // 4)) if apart else (draw(st.integers(0, 6)) * 10, draw(st.integers(0, 6)) * 10)
            )
            w, h = (
                (draw(st.integers(1, 2)) * 10 for _ in range(2))
                if apart
                else (draw(st.integers(0, 4)) * 10 for _ in range(2))
            )
            truth.append(
                region(
                    i + 1, (x, y, x + w, y + h), draw(st.sampled_from([1, 5])), is_crowd=draw(st.integers(0, 4)) == 0
                )
            )
        predicted = []
        for i in range(draw(st.integers(0, 7))):
            near = draw(st.sampled_from(truth)).box_xyxy if truth and draw(st.booleans()) else (10, 10, 30, 40)
            dx, dy, dw = (draw(st.integers(-1, 1)) * 5 for _ in range(3))
            box = (near[0] + dx, near[1] + dy, max(near[2] + dx + dw, near[0] + dx), near[3] + dy)
            score = next(scores) / 60 if distinct else draw(st.integers(0, 4)) / 4
            predicted.append(region(i + 1, box, draw(st.sampled_from([1, 5])), score=score))
        images.append((Record(image_id, 100, 100, regions=truth), Record(image_id, 100, 100, regions=predicted)))
    return images


def with_masks(images):
    """Replace the boxes by masks of the same pixels."""

    def mask(record):
        pixels = []
        for item in record.regions:
            ids = np.zeros((100, 100), bool)
            x0, y0, x1, y1 = (int(max(side, 0)) for side in item.box_xyxy)
            ids[y0:y1, x0:x1] = True
            pixels.append(replace(item, box_xyxy=None, mask=encode_mask(ids)))
        return replace(record, regions=pixels)

    return [(mask(truth), mask(predicted)) for truth, predicted in images]


@FEW
@given(scenes(), st.sampled_from(["standard", "class_agnostic"]), st.booleans())
def test_back_ends_agree(images, variant, masks):
    protocol, images = ("instances", with_masks(images)) if masks else ("detection", images)
    first, second = (evaluate(images, protocol, variant=variant, backend=b) for b in ("faster", "pycocotools"))
    assert first.figures == pytest.approx(second.figures, abs=1e-12)
    assert first.undefined == second.undefined
    assert first.regions == second.regions


@FEW
@given(scenes())
def test_matches_are_those_of_pycocotools(images):
    from locap.evaluation.coco.backends import coco_curves
    from locap.evaluation.coco.matches import match

    evaluator = BoxAveragePrecision(CLASSES)
    for pair in images:
        evaluator.update(*pair)
    coco_images = [evaluator._image(entry) for _, entry in evaluator._ordered()]
    curves = coco_curves(coco_images, [1, 5], "bbox", max_detections=(1, 10, 100), backend="pycocotools")
    for (index, category_id), overlaps in curves.overlaps.items():
        truth = [body for body in coco_images[index].truth if body["category_id"] == category_id]
        predicted = [body for body in coco_images[index].predicted if body["category_id"] == category_id]
        crowds = [body["iscrowd"] for body in truth]
        taken = match(overlaps, [bool(crowd) for crowd in crowds], crowds, len(predicted))
        assert len(taken) == len(predicted)
        normal = [g for g in taken if g >= 0 and not crowds[g]]
        assert len(set(normal)) == len(normal)
        recall = curves.recall[0, [1, 5].index(category_id), 0, -1]
        if len(images) == 1 and recall >= 0:
            assert len(normal) / crowds.count(0) == pytest.approx(recall, abs=1e-12)


@FEW
@given(scenes(apart=True), st.sampled_from(["standard", "class_agnostic", "voc", "voc07"]))
def test_perfect_predictions_score_one(images, variant):
    perfect = [
        (truth, replace(truth, regions=[replace(r, score=0.5) for r in truth.regions if not r.is_crowd]))
        for truth, _ in images
    ]
    result = evaluate(perfect, variant=variant)
    assert {name: value for name, value in result.figures.items() if name not in ("ar_1", "ar_10")} == pytest.approx(
        {name: 1.0 for name in result.figures if name not in ("ar_1", "ar_10")}, abs=1e-12
    )
    assert bool(result.figures) == any(not r.is_crowd for truth, _ in images for r in truth.regions)


@FEW
@given(scenes(apart=True), st.sampled_from(["standard", "voc", "voc07"]))
def test_duplicates_never_help(images, variant):
    doubled = [(truth, replace(p, regions=[*p.regions, *p.regions])) for truth, p in images]
    before, after = (evaluate(pairs, variant=variant).figures for pairs in (images, doubled))
    assert before.keys() == after.keys()
    assert all(after[name] <= before[name] + 1e-12 for name in before if name.startswith("ap"))


@FEW
@given(scenes(distinct=True), st.randoms(), st.sampled_from(["standard", "class_agnostic", "voc"]))
def test_order_does_not_matter(images, random, variant):
    expected = evaluate(images, variant=variant)
    shuffled = [(t, replace(p, regions=random.sample(p.regions, len(p.regions)))) for t, p in images]
    random.shuffle(shuffled)
    assert evaluate(shuffled, variant=variant).figures == expected.figures


@FEW
@given(scenes(), st.sampled_from(["detection", "instances"]))
def test_any_number_of_ranks_gives_the_same_bits(images, protocol):
    images = with_masks(images) if protocol == "instances" else images
    whole = evaluate(images, protocol)
    for ranks in (2, 4):
        parts = [EVALUATORS[protocol](CLASSES) for _ in range(ranks)]
        for index, pair in enumerate(reversed(images)):
            parts[index % ranks].update(*pair)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == whole


def voc_reference(images, category, recalls=None):
    """The devkit's loop, one prediction at a time."""
    predicted = [(r, truth) for truth, p in images for r in p.regions if r.category_id == category]
    predicted.sort(key=lambda item: -item[0].score)
    positives = sum(r.category_id == category and not r.is_crowd for truth, _ in images for r in truth.regions)
    hits, found = [], set()
    for r, truth in predicted:
        best, overlap = None, 0.0
        for g in truth.regions:
            if g.category_id != category:
                continue
            a, b = r.box_xyxy, g.box_xyxy
            shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared
            if union and shared / union > overlap:
                best, overlap = g, shared / union
        if overlap >= 0.5:
            if not best.is_crowd:
                hits.append((truth.image_id, best.id) not in found)
                found.add((truth.image_id, best.id))
        else:
            hits.append(False)
    if not positives:
        return None
    recall, precision = np.cumsum(hits) / positives, np.cumsum(hits) / np.arange(1, len(hits) + 1)
    if recalls is not None:
        return sum(max(precision[recall >= t], default=0.0) for t in recalls) / len(recalls)
    steps = np.diff(recall, prepend=0.0)
    return sum(step * max(precision[i:]) for i, step in enumerate(steps))


@FEW
@given(scenes(distinct=True))
def test_voc_equals_the_devkits_loop(images):
    for variant, recalls in (("voc", None), ("voc07", np.arange(0.0, 1.1, 0.1))):
        rows = {row[0]: row[2] for row in evaluate(images, variant=variant).tables["categories"].rows}
        for category in (1, 5):
            assert rows[category] == pytest.approx(voc_reference(images, category, recalls), abs=1e-12)


class TestBoxesKeepTheirNumbers:
    """x + width - x is not width for most decimal numbers."""

    def figures(self, tmp_path, truth_box, result_box, strip=False):
        truth = {
            "id": 3,
            "image_id": 1,
            "category_id": 1,
            "bbox": truth_box,
            "area": truth_box[2] * truth_box[3],
            "iscrowd": 0,
        }
        document = {
            "images": [{"id": 1, "height": 100, "width": 100}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [truth],
        }
        (tmp_path / "t.json").write_text(json.dumps(document))
        (tmp_path / "p.json").write_text(
            json.dumps([{"image_id": 1, "category_id": 1, "bbox": result_box, "score": 0.5}])
        )
        records, categories = load_ground_truth(tmp_path / "t.json")
        predicted = load_predictions(tmp_path / "p.json", records)
        for record in [*records, *predicted] if strip else ():
            record.regions = [replace(r, box_size=None) for r in record.regions]
        return evaluate(zip(records, predicted, strict=True), categories=categories).figures

    def test_an_overlap_of_exactly_one_half_counts(self, tmp_path):
        boxes = [0.23, 10, 0.2, 20], [0.23, 10, 0.1, 20]
        assert self.figures(tmp_path, *boxes)["ap_50"] == pytest.approx(1, abs=1e-12)
        assert self.figures(tmp_path, *boxes, strip=True)["ap_50"] == 0

    def test_sizes_that_contradict_the_corners_are_ignored(self):
        truth, predicted = region(1, (0, 0, 10, 10)), region(1, (0, 0, 10, 10), score=1.0, box_size=(50.0, 50.0))
        assert evaluate(one_image([truth], [predicted])).figures["ap"] == pytest.approx(1, abs=1e-12)


def test_nothing_predicted_and_nothing_there():
    found = evaluate(one_image([region(1, (0, 0, 10, 10))], []))
    assert found.figures["ap"] == 0
    assert found.regions.rows == [(1, 1, None, None, 1, None, False)]
    empty = evaluate(one_image([], [region(1, (0, 0, 10, 10), score=1.0)]))
    assert not empty.figures
    assert set(empty.undefined) == set(DETECTION_STATS)
    assert set(evaluate([]).undefined) == set(DETECTION_STATS)


def test_stuff_is_left_out_and_counted():
    images = one_image(
        [region(1, (0, 0, 10, 10)), region(2, (0, 0, 50, 50), 9)],
        [region(1, (0, 0, 10, 10), score=0.5), region(2, (0, 0, 50, 50), 9, score=0.9)],
    )
    result = evaluate(images)
    assert result.figures["ap"] == pytest.approx(1, abs=1e-12)
    assert (result.counts["stuff"], result.counts["truth"], result.counts["predicted"]) == (2, 1, 1)


def test_instances_beside_panoptic_segments_are_preferred():
    images = one_image([region(1, (0, 0, 10, 10))], [region(1, (50, 50, 60, 60), score=1.0)])
    images[0][1].instances = [region(1, (0, 0, 10, 10), score=1.0)]
    assert evaluate(images).figures["ap"] == pytest.approx(1, abs=1e-12)


def test_panoptic_truth_and_masks_serve_both_protocols():
    ids = np.zeros((100, 100), np.int32)
    ids[10:30, 20:50] = 7
    truth = Record(1, 100, 100, regions=[Region(7, 1)], id_map=ids)
    predicted = Record(1, 100, 100, regions=[Region(1, 1, mask=encode_mask(ids == 7), score=0.5)])
    for protocol in ("detection", "instances"):
        assert evaluate([(truth, predicted)], protocol).figures["ap"] == pytest.approx(1, abs=1e-12)


@pytest.mark.fault("R6")
def test_boxes_outside_the_image_are_scored_and_counted():
    images = one_image(
        [region(1, (0, 0, 10, 10))], [region(1, (0, 0, 10, 10), score=0.5), region(2, (200, 0, 210, 9), score=0.9)]
    )
    result = evaluate(images)
    assert result.counts["predicted_outside"] == 1
    assert result.figures["ap"] == pytest.approx(0.5, abs=1e-12)


def test_class_agnostic_needs_no_categories():
    images = one_image([region(1, (0, 0, 10, 10), None)], [region(1, (0, 0, 10, 10), None, score=0.5)])
    for categories in (CLASSES, ()):
        assert evaluate(images, categories=categories, variant="class_agnostic").figures["ap"] == pytest.approx(
            1, abs=1e-12
        )


def test_max_detections_change_names_and_are_noted():
    images = one_image(
        [region(1, (0, 0, 10, 10)), region(2, (50, 0, 60, 10))],
        [region(1, (0, 0, 10, 10), score=0.5), region(2, (50, 0, 60, 10), score=0.4)],
    )
    result = evaluate(images, max_detections="1,2")
    assert (result.figures["ar_1"], result.figures["ar_2"]) == (0.5, 1.0)
    assert "(1, 2)" in result.notes[0]
    assert evaluate(images, max_detections="1").figures["ap"] == pytest.approx(51 / 101, abs=1e-12)


class TestKeypoints:
    POINTS = tuple((float(10 + 3 * i), float(20 + 2 * i), 2) for i in range(17))

    def images(self, truth, predicted):
        box = (5.0, 15.0, 70.0, 60.0)
        return one_image(
            [Region(1, 1, box_xyxy=box, keypoints=truth, area=2000)], [Region(1, 1, keypoints=predicted, score=0.5)]
        )

    def test_perfect(self):
        figures = evaluate(self.images(self.POINTS, self.POINTS), "keypoints").figures
        assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=1e-12)
        assert set(figures) == set(KEYPOINT_STATS) - {"ap_large", "ar_large"}

    def test_people_without_labels_are_not_to_be_found(self):
        result = evaluate(self.images((), self.POINTS), "keypoints")
        assert set(result.undefined) == set(KEYPOINT_STATS)

    def test_other_skeletons_need_sigmas(self):
        images = self.images(self.POINTS[:3], self.POINTS[:3])
        with pytest.raises(DataError, match=r"another number of keypoints(.|\n)*value:   3(.|\n)*sigmas"):
            evaluate(images, "keypoints")
        for backend in ("faster", "pycocotools"):
            result = evaluate(images, "keypoints", sigmas="0.05,0.05,0.1", backend=backend)
            assert result.figures["ap"] == pytest.approx(1, abs=1e-12)

    def test_predictions_without_keypoints_are_counted(self):
        images = self.images(self.POINTS, self.POINTS)
        images[0][1].regions.append(region(2, (0, 0, 5, 5), score=1.0))
        result = evaluate(images, "keypoints")
        assert result.counts["predicted_without_keypoints"] == 1
        assert result.figures["ap"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("variant", ["standard", "class_agnostic", "voc"])
def test_predictions_of_unknown_classes_are_left_out(variant):
    truth, found = [region(1, (0, 0, 50, 50))], [region(1, (0, 0, 50, 40), score=0.5)]
    images = one_image(truth, [region(2, (0, 0, 50, 50), 77, score=0.9), *found])
    result = evaluate(images, variant=variant)
    assert result.figures == evaluate(one_image(truth, found), variant=variant).figures
    assert (result.counts["predicted_unknown_class"], result.counts["predicted"]) == (1, 1)
    assert "1 predictions are of categories" in result.notes[0]


@pytest.mark.fault("R11")
@pytest.mark.parametrize(
    ("protocol", "change", "message"),
    [
        ("detection", {"category_id": None}, r"category that the data set does not have(.|\n)*prediction 8"),
        ("detection", {"score": None}, "no finite score"),
        ("detection", {"score": float("nan")}, "no finite score"),
        ("detection", {"box_xyxy": None}, "neither box nor mask"),
        ("detection", {"box_xyxy": (0.0, 0.0, float("nan"), 4.0)}, r"A box is not(.|\n)*image_id 1, prediction 8"),
        ("detection", {"box_xyxy": (5.0, 0.0, 4.0, 4.0)}, "A box is not"),
        ("detection", {"box_xyxy": (0.0, 0.0, float("inf"), 4.0)}, "A box is not"),
        ("detection", {"box_xyxy": (0.0, 0.0, 1e6, 4.0)}, "A box is not"),
        ("instances", {}, "no mask"),
        ("instances", {"mask": {"size": [5, 5], "counts": [25]}}, r"differs in size(.|\n)*prediction 8"),
        ("instances", {"mask": {"size": [100, 100], "counts": [25]}}, r"do not fill its size(.|\n)*prediction 8"),
        ("keypoints", {"keypoints": ((0.0, 0.0, 1),) * 16 + ((float("nan"), 0.0, 1),)}, "Keypoints are not finite"),
    ],
)
def test_bad_predictions_name_their_place(protocol, change, message):
    predicted = replace(region(8, (0, 0, 5, 5), score=0.5), **change)
    with pytest.raises(DataError, match=message):
        evaluate(one_image([], [predicted]), protocol)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (BoxAveragePrecision, {"backend": "fast"}, r"backend has no such value(.|\n)*pycocotools"),
        (BoxAveragePrecision, {"max_detections": "10,1"}, "ascending whole numbers"),
        (BoxAveragePrecision, {"max_detections": "0"}, "numbers above 0"),
        (BoxAveragePrecision, {"max_detections": "1.5"}, "ascending whole numbers"),
        (MaskAveragePrecision, {"variant": "voc"}, "no such variant"),
        (KeypointAveragePrecision, {"sigmas": "a"}, "numbers above 0"),
        (KeypointAveragePrecision, {"max_detections": "1,20"}, "takes one max_detections"),
    ],
)
def test_wrong_options_say_what_is_allowed(protocol, options, message):
    with pytest.raises(UsageError, match=message):
        protocol(CLASSES, **options)
