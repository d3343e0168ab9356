from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record, Region, encode_mask
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.matching.segments import joint_histogram, measure_overlap, panoptic_ids
from locap.evaluation.panoptic import PanopticQuality, count_classes
from locap.utils.errors import DataError

from .conftest import CATEGORIES


def quality(images, categories=CATEGORIES):
    evaluator = PanopticQuality(categories)
    for truth, predicted in images:
        evaluator.update(truth, predicted)
    return evaluator.compute()


def test_crowd_void_and_class_rules(pix2cap_image):
    result = quality([pix2cap_image])
    rows = {row[0]: row for row in result.tables["classes"].rows}
    assert [rows[i][6:] for i in (1, 3, 184)] == [(2, 0, 0), (0, 1, 0), (1, 0, 0)]
    assert result.figures["pq"] == pytest.approx((49 / 60 + 0.625) / 3, abs=1e-15)
    assert result.figures["sq"] == pytest.approx(result.figures["pq"], abs=1e-15)
    assert result.figures["rq"] == pytest.approx(2 / 3, abs=1e-15)
    assert result.figures["pq_stuff"] == 0.625


def test_perfect_prediction_scores_one(make_images):
    images = [(truth, truth) for truth, _ in make_images(5)]
    figures = quality(images).figures
    assert {name: figures[name] for name in figures if name.startswith(("pq", "sq", "rq"))} == dict.fromkeys(
        figures, 1.0
    )


def test_counts_equal_a_pixelwise_reference(make_images):
    """The rules of panopticapi written down pair by pair on boolean masks."""
    expected = {category.id: [0, 0, 0, 0.0] for category in CATEGORIES}
    images = make_images(25)
    for truth, predicted in images:
        matched = set()
        for t in truth.regions:
            for p in predicted.regions:
                a, b = truth.id_map == t.id, predicted.id_map == p.id
                union = (a | b).sum() - (b & (truth.id_map == 0)).sum()
                if t.is_crowd or t.category_id != p.category_id or (a & b).sum() / union <= 0.5:
                    continue
                matched |= {("t", t.id), ("p", p.id)}
                expected[t.category_id][0] += 1
                expected[t.category_id][3] += (a & b).sum() / union
        for t in truth.regions:
            expected[t.category_id][2] += not t.is_crowd and ("t", t.id) not in matched
        for p in predicted.regions:
            b = predicted.id_map == p.id
            crowds = [t.id for t in truth.regions if t.is_crowd and t.category_id == p.category_id][-1:]
            excused = (b & np.isin(truth.id_map, [0, *crowds])).sum() / b.sum()
            expected[p.category_id][1] += ("p", p.id) not in matched and excused <= 0.5
    for row in quality(images).tables["classes"].rows:
        tp, fp, fn, total = expected[row[0]]
        assert (row[6], row[7], row[8]) == (tp, fp, fn)
        assert row[3] == pytest.approx(total / (tp + fp / 2 + fn / 2), abs=1e-14)


def test_joint_histogram_counts_every_pair():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, (7, 9)) * 4_000_000, rng.integers(0, 4, (7, 9))
    rows, columns, counts = joint_histogram(first, second)
    assert counts.sum() == 63
    assert all(
        counts[i, j] == ((first == a) & (second == b)).sum() for i, a in enumerate(rows) for j, b in enumerate(columns)
    )


def test_any_number_of_ranks_gives_the_same_bits(make_images):
    images = make_images(11)
    whole = quality(images)
    for ranks in (2, 4):
        parts = [PanopticQuality(CATEGORIES) for _ in range(ranks)]
        for index, image in enumerate(reversed(images)):
            parts[index % ranks].update(*image)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == whole


def test_an_image_counts_once(pix2cap_image):
    first, second = PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)
    first.update(*pix2cap_image)
    second.update(*pix2cap_image)
    with pytest.raises(DataError, match=r"1 image\(s\) were evaluated twice"):
        first.update(*pix2cap_image)
    with pytest.raises(DataError, match=r"1 image\(s\) were evaluated twice"):
        first.merge(second)


def test_masks_serve_in_place_of_an_id_map(pix2cap_image):
    truth, predicted = pix2cap_image
    regions = [Region(r.id, r.category_id, mask=encode_mask(predicted.id_map == r.id)) for r in predicted.regions]
    assert quality([(truth, Record(7, 10, 10, regions=regions))]) == quality([pix2cap_image])
    regions[1].mask = regions[0].mask
    with pytest.raises(DataError, match="Masks overlap"):
        quality([(truth, Record(7, 10, 10, regions=regions))])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_masks_draw_the_id_map_they_came_from(height, width, seed):
    ids = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.int32)
    regions = [Region(i, 1, mask=encode_mask(ids == i)) for i in (3, 1, 2)]  # some of them empty
    drawn = panoptic_ids(Record(1, height, width, regions=regions), "here")
    np.testing.assert_array_equal(drawn, ids)
    rows, columns, counts = joint_histogram(drawn, drawn)
    assert rows.tolist() == columns.tolist() == np.unique(ids).tolist()
    assert np.diagonal(counts).tolist() == np.bincount(ids.ravel())[rows].tolist()


def test_the_segment_that_overlaps_is_named():
    runs = {4: [0, 2, 4], 5: [2, 2, 2], 6: [1, 0, 1, 1, 3], 7: [0, 0, 5, 1]}  # of 6 pixels; some runs are empty
    regions = [Region(i, 1, mask={"size": [2, 3], "counts": counts}) for i, counts in runs.items()]
    with pytest.raises(DataError, match=r"Masks overlap(.|\n)*segment 6"):
        panoptic_ids(Record(1, 2, 3, regions=regions), "here")
    del regions[2]
    assert panoptic_ids(Record(1, 2, 3, regions=regions), "here").ravel("F").tolist() == [4, 4, 5, 5, 0, 7]
    with pytest.raises(DataError, match="A mask differs in size"):
        panoptic_ids(Record(1, 3, 2, regions=regions), "here")
    assert panoptic_ids(Record(1, 3, 2), "here").tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([Region(1, 1), Region(1, 1)], "Segment ids are not unique"),
        ([Region(1, 1), Region(-1, 1)], "Segment ids are not unique and above 0"),
        ([Region(1, 1), Region(10**30, 1)], "Segment ids are not unique and above 0"),
        ([Region(1, 77)], "1 segment.s. of a category that the data set does not have"),
        ([], "pixels of segments that are not listed"),
        ([Region(1, 1), Region(9, 1)], "Listed segments have no pixels"),
    ],
)
def test_ids_that_disagree_are_refused(regions, message):
    truth = Record(1, 2, 2, id_map=np.ones((2, 2), np.int32), regions=[Region(1, 1)])
    with pytest.raises(DataError, match=message):
        quality([(truth, Record(1, 2, 2, id_map=np.ones((2, 2), np.int32), regions=regions))])


def test_sizes_must_agree():
    truth = Record(1, 2, 2, id_map=np.ones((2, 2), np.int32), regions=[Region(1, 1)])
    with pytest.raises(DataError, match="another size than its image"):
        quality([(truth, Record(1, 2, 3, id_map=np.ones((2, 3), np.int32), regions=[Region(1, 1)]))])
    with pytest.raises(DataError, match="differ in size"):
        quality([(truth, Record(1, 2, 2, id_map=np.ones((2, 3), np.int32), regions=[Region(1, 1)]))])


def test_nothing_there_and_nothing_predicted_is_undefined_not_zero():
    empty = Record(1, 2, 2, id_map=np.zeros((2, 2), np.int32))
    result = quality([(empty, empty)])
    assert "pq" not in result.figures
    assert "no segment" in result.undefined["pq"]


def test_stated_area_of_the_ground_truth_counts():
    truth = Record(1, 2, 2, id_map=np.ones((2, 2), np.int32), regions=[Region(1, 1, area=8)])
    overlap = measure_overlap(truth, Record(1, 2, 2, id_map=truth.id_map, regions=[Region(1, 1)]), {1})
    assert overlap.iou.tolist() == [[0.5]]


class TestEqualsPanopticapi:
    @pytest.fixture
    def cases(self, shared):
        """The states of all images and the expected figures of every stored case."""
        folder = shared / "golden" / "eval" / "panoptic_quality"
        found = []
        for case, expected in json.loads((folder / "expected.json").read_text())["cases"].items():
            truth, categories = load_ground_truth(folder / case / "panoptic_gt.json")
            predicted = load_predictions(folder / case / "panoptic_pred.json", truth)
            images = {record.image_id: record for record in predicted}
            evaluator = PanopticQuality(categories)
            for record in truth:
                evaluator.update(record, images[record.image_id])
            found.append((evaluator, expected))
        return found

    def test_figures(self, cases):
        for evaluator, expected in cases:
            result = evaluator.compute()
            for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
                stated = expected["results"][group]
                assert result.counts[f"classes{suffix}"] == stated["n"]
                for name in ("pq", "sq", "rq") if stated["n"] else ():
                    assert result.figures[name + suffix] == pytest.approx(stated[name], abs=1e-12)

    def test_classes(self, cases):
        for evaluator, expected in cases:
            rows = {str(row[0]): row[3:6] for row in evaluator.compute().tables["classes"].rows}
            assert rows.keys() <= expected["results"]["per_class"].keys()
            for key, stated in expected["results"]["per_class"].items():  # also of classes that never occur
                values = [stated["pq"], stated["sq"], stated["rq"]]
                assert rows.get(key, (0.0, 0.0, 0.0)) == pytest.approx(values, abs=1e-12)

    def test_counts_of_classes_and_of_images(self, cases):
        for evaluator, expected in cases:
            state = dict(evaluator.state()["images"])
            _check_counts(state.values(), expected["per_category_tp_fp_fn_iou"])
            assert state.keys() == {image["image_id"] for image in expected["per_image"]}
            for image in expected["per_image"]:
                _check_counts([state[image["image_id"]]], image["per_category_tp_fp_fn_iou"])


def _check_counts(entries, expected):
    """Compare the counts of some images with a table of category -> [tp, fp, fn, sum of IoU]."""
    counts = count_classes(entries, {int(key): None for key in expected})
    for key, (matched, spurious, missed, iou) in expected.items():
        ours = counts[int(key)]
        assert (len(ours.ious), ours.false_positives, ours.false_negatives) == (matched, spurious, missed)
        assert sum(ours.ious) == pytest.approx(iou, abs=1e-12)
