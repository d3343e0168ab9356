"""The published evaluators of dense captioning."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.coco_geometry import box_fields
from locap.datasets.records import Record, Region
from locap.evaluation import dense_captioning_upstream as upstream
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.matching.region_groups import sides_of
from locap.evaluation.runner import evaluate_stored

from .dense_scenes import breakdown, dense_images, detection, evaluate, grid_image, one_image

PUBLISHED = tuple(upstream.RULES)
EVERY_VARIANT = ("standard", *PUBLISHED)
PROPERTY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PEERS = {
    "densecap_lua_torch7": ("densecap", "vg_instances_results", 1e-9),
    "densecap_lua_torch7_default_float": ("densecap_float", "vg_instances_results", 2e-4),
    "soloist97_densecap_pytorch": ("soloist97", "pixelllm_predictions", 1e-6),
    "pixelllm_scenic": ("pixelllm", "pixelllm_predictions", 1e-6),
}


class TestPublishedFigures:
    @pytest.fixture
    def cases(self, shared):
        folder = shared / "golden" / "eval" / "densecap_map"
        expected = json.loads((folder / "expected.json").read_text())
        return {name: (folder / name, body) for name, body in expected["cases"].items()}

    def test_every_peer_of_every_case(self, cases, meteor):
        for folder, expected in cases.values():
            truth, categories = load_ground_truth(folder / "vg_gt.json")
            for peer in PEERS.keys() & expected.keys():
                variant, file, tolerance = PEERS[peer]
                stored = load_predictions(folder / f"{file}.json", truth)
                options = {"dense_captioning": {"variant": variant, "meteor": "all"}}
                (result,) = evaluate_stored(truth, stored, ["dense_captioning"], categories, options=options)
                self.check(result, _plain_names(expected[peer]), tolerance)
                if "records" in expected[peer]:
                    self.check_records(result, expected[peer]["records"])

    def check(self, result, expected, tolerance):
        for name, value in expected["figures"].items():
            assert result.figures[name] == pytest.approx(value, abs=tolerance)
        assert result.counts["groups"] == expected["npos"]
        assert breakdown(result).keys() == expected["breakdown"].keys()
        for key, value in breakdown(result).items():
            assert value == pytest.approx(expected["breakdown"][key], abs=tolerance)

    def check_records(self, result, expected):
        rows = [dict(zip(result.regions.columns, row, strict=True)) for row in result.regions.rows]
        assert [row["matched"] for row in rows] == [bool(ok) for ok in expected["ok"]]
        assert [row["reference_count"] for row in rows] == expected["nref"]
        assert np.abs(np.array([row["iou"] for row in rows]) - expected["ov"]).max() <= 1e-12
        meteor = [row["meteor"] or 0.0 for row in rows]
        assert np.abs(np.array(meteor) - expected["score"]).max() <= 1e-9

    def test_what_the_lua_evaluator_received(self, cases):
        """Captions and boxes after the preparation, from the files that others would give."""
        for folder, expected in cases.values():
            images = json.loads((folder / "evaluator_inputs.json").read_text())["images"]
            received = {image["image_id"]: image for image in images}
            truth, _ = load_ground_truth(folder / "vg_gt.json")
            dropped = 0
            for file in ("vg_instances_results", "pixelllm_predictions"):
                for record in load_predictions(folder / f"{file}.json", truth):
                    framed = upstream.frame_predictions(_sized(record.regions), record.height, record.width)
                    stated = received.get(record.image_id, {"boxes": framed})["boxes"]
                    assert np.abs(framed - np.reshape(stated, (-1, 4))).max(initial=0) < 1e-9
            for record in truth:
                regions = [region for region in record.regions if not region.is_crowd]
                captions = [upstream.clean_caption((region.captions or ("",))[0]) for region in regions]
                kept = [i for i, text in enumerate(captions) if upstream.is_kept(text)]
                dropped += len(captions) - len(kept)
                stated = received.get(record.image_id, {"gt_captions": [], "gt_boxes": []})
                assert [captions[i] for i in kept] == stated["gt_captions"]
                boxes = _sized([regions[i] for i in kept])
                assert upstream.frame_truth(boxes, record.height, record.width).tolist() == stated["gt_boxes"]
            assert dropped == expected["gt_regions_dropped_over_15_tokens"]


def _sized(regions):
    """Return the regions' boxes as (x, y, width, height) [N, 4]."""
    rows = [(*region.box_xyxy[:2], *sides_of(region, region.box_xyxy)) for region in regions]
    return np.array(rows, float).reshape(-1, 4)


def _plain_names(expected):
    """Return a peer's figures under our names; the peers name them in two ways."""
    found = {"figures": {}, "breakdown": {}, "npos": expected["npos"]}
    flat = expected | expected.get("ap_breakdown", {}) | expected.get("det_breakdown", {})
    for key, value in flat.items():
        if key.lower() in ("map", "detmap", "map_detection"):
            found["figures"]["map" if key.lower() == "map" else "detection_map"] = value
        elif isinstance(value, float):
            iou, *meteor = map(float, re.findall(r"[\d.]+", key))
            found["breakdown"][(iou, meteor[0] if meteor else None)] = value
    return found


class TestPublishedRules:
    def test_captions_as_densecap_prepares_them(self):
        assert upstream.clean_caption("The MAN's cap—it's ½ off, 20° C…") == "the mans capits half off 20 degree c"
        assert upstream.clean_caption("?!") == ""
        assert upstream.is_kept(" ".join(["a"] * 15))
        assert not upstream.is_kept(" ".join(["a"] * 16))

    def test_frame_of_the_ground_truth(self):
        boxes = np.array([[0, 0, 10, 20], [300, 2, 200, 373], [1, 1, 1.5, 1.5]], float)
        framed = upstream.frame_truth(boxes, 375, 500)  # scale 1.44
        # x: 1.44 * -1 + 1 rounds to 0 and is clamped to 1; 1.44 * 299 + 1 = 431.56; width 288 fits, height 537.12
        assert framed.tolist() == [[8, 15, 14, 29], [576, 270, 288, 537], [2, 2, 2, 2]]

    def test_sides_are_those_of_the_file(self):
        """229.9 + 105.5 - 229.9 is less than 105.5, which rounds up."""
        truth = Region(1, 1, **box_fields(229.9, 10.0, 105.5, 10.0))
        assert upstream.frame_truth(_sized([truth]), 720, 720)[0, 2] == 106

    @pytest.mark.parametrize(
        ("x", "height", "sides", "groups"), [(164.6, 31.1, (10.0, 7.0), 1), (250.8, 5.4, (18.0, 12.6), 2)]
    )
    def test_pixelllm_merges_in_the_arithmetic_of_its_boxes(self, x, height, sides, groups, equal_words):
        """IoU of 0.7 but for the rounding; how many groups the published code made of the two boxes."""
        truth = [
            Region(i, 1, captions=("a",), **box_fields(x, 5.3, width, height)) for i, width in enumerate(sides, start=1)
        ]
        assert evaluate(one_image(truth, []), "pixelllm").counts["groups"] == groups

    def test_equal_scores_of_two_images(self, equal_words):
        """Python walks the set {3, 2} from 2: there the false positive comes first."""
        images = [
            (Record(image_id, 100, 100, regions=[grid_image(["a"], side=100).regions[0]]),
             Record(image_id, 100, 100, regions=[detection((1, 1, 99, 99), 0.5, caption)]))
            for image_id, caption in ((3, "a"), (2, "b"))
        ]  # fmt: skip
        found = {variant: evaluate(images, variant).figures["map"] for variant in ("densecap", "pixelllm", "soloist97")}
        assert found == pytest.approx({"densecap": 0.5, "pixelllm": 0.51 / 2, "soloist97": 0.51})
        assert upstream.set_order(["b", "a"]) == ["b", "a"]

    def test_rounding_is_half_away_from_zero(self):
        assert upstream._round(np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999999999999994])).tolist() == [
            1,
            2,
            3,
            -1,
            -2,
            0,
        ]

    def test_a_poor_overlap_blocks_the_group_unless_standard(self, equal_words):
        truth = [Region(1, 1, box_xyxy=(0, 0, 40, 40), captions=("a",))]
        predicted = [detection((35, 35, 60, 60), 0.9, "a", 1), detection((0, 0, 40, 40), 0.8, "a", 2)]
        images = one_image(truth, predicted)
        assert evaluate(images).figures["map"] > 0
        assert {evaluate(images, variant).figures["map"] for variant in PUBLISHED} == {0.0}

    def test_no_overlap_takes_the_last_group_in_densecap_alone(self, equal_words):
        truth = [Region(1, 1, box_xyxy=(0, 0, 40, 40), captions=("a",))]
        predicted = [detection((60, 60, 90, 90), 0.9, "a", 1), detection((0, 0, 40, 40), 0.8, "a", 2)]
        found = {variant: evaluate(one_image(truth, predicted), variant).figures["map"] for variant in PUBLISHED}
        assert found == {"densecap": 0.0, "densecap_float": 0.0, "pixelllm": 0.5, "soloist97": 0.5}

    def test_an_empty_caption_of_the_truth_is_matched_by_anything_in_pixelllm(self, meteor):
        truth = [Region(1, 1, box_xyxy=(0, 0, 40, 40), captions=("",))]
        images = one_image(truth, [detection((0, 0, 40, 40), caption="whatever")])
        found = {variant: evaluate(images, variant).figures["map"] for variant in PUBLISHED}
        assert found == pytest.approx({"densecap": 0.0, "densecap_float": 0.0, "pixelllm": 1.0, "soloist97": 0.0})

    def test_long_captions_are_left_out_and_so_is_an_image_of_nothing_else(self, equal_words):
        long = Region(1, 1, box_xyxy=(0, 0, 40, 40), captions=(" ".join(["a"] * 16),))
        images = [*one_image([long], [detection((0, 0, 40, 40))]), (grid_image(["a"], 2), grid_image(["a"], 2))]
        result = evaluate(images, "soloist97")
        assert result.figures == {"map": 1.0, "detection_map": 1.0}
        assert (result.counts["truth_over_15_words"], result.counts["images_left_out"]) == (1, 1)
        assert "were left out" in result.notes[-1]
        assert evaluate(images, "pixelllm").counts["groups"] == 2

    def test_an_image_without_detections_has_missed_groups(self, equal_words):
        images = [(grid_image(["a"], 1), grid_image(["a"], 1)), (grid_image(["a"], 2), grid_image([], 2))]
        results = {variant: evaluate(images, variant) for variant in EVERY_VARIANT}
        assert {r.counts["groups"] for r in results.values()} == {2}
        assert {r.counts["images_without_detections"] for r in results.values()} == {1}
        assert all(0.5 <= r.figures["detection_map"] <= 0.51 for r in results.values())
        told = {variant for variant, r in results.items() if any("does not run" in note for note in r.notes)}
        assert told == {"densecap", "densecap_float", "soloist97"}

    def test_empty_boxes_of_the_truth_make_a_group_only_in_densecap(self, equal_words):
        truth = [Region(1, 1, box_xyxy=(10, 10, 10, 40), captions=("a",)), *grid_image(["b"]).regions]
        found = {
            variant: evaluate(one_image(truth, [], 200, 200), variant).counts["groups"] for variant in EVERY_VARIANT
        }
        assert found == {"standard": 1, "densecap": 2, "densecap_float": 2, "pixelllm": 1, "soloist97": 1}


class TestAgainstLoops:
    """The published definition written down box by box."""

    @PROPERTY
    @given(seed=st.integers(0, 10**6))
    def test_densecap(self, seed, equal_words):
        images = dense_images(5, seed)
        rng = np.random.default_rng(seed)
        for truth, predicted in images:  # empty boxes, boxes outside, distinct scores
            truth.regions[0].box_xyxy = (30.0, 30.0, 30.0, 45.0)
            predicted.regions.append(detection((-500, -500, -400, -300), region_id=98))
            predicted.regions.append(detection((50, 50, 50, 40), region_id=99))
            for region in predicted.regions:
                region.score = float(rng.random())
        result = evaluate(images, "densecap")
        records = [record for truth, predicted in images for record in _loops(truth, predicted)]
        rows = [dict(zip(result.regions.columns, row, strict=True)) for row in result.regions.rows]
        assert [row["matched"] for row in rows] == [good for good, *_ in records]
        assert [row["iou"] for row in rows] == pytest.approx([iou for _, iou, *_ in records], abs=1e-12)
        assert [row["reference_count"] for row in rows] == [len(references) for *_, references in records]
        groups = result.counts["groups"]
        for (threshold, least), value in breakdown(result).items():
            ranked = sorted(zip(records, rows, strict=True), key=lambda pair: -pair[1]["score"])
            hits = [
                good and iou >= threshold and (least is None or float(row["prediction"] in references) > least)
                for (good, iou, references), row in ranked
            ]
            assert value == pytest.approx(_average_precision(hits, groups), abs=1e-12)


def _loops(truth, predicted):
    """Return (good, best IoU, references) of each detection, best score first."""
    size = (truth.height, truth.width)

    def ends(frame, region):
        return upstream.box_ends(frame(_sized([region]), *size))[0]

    boxes = [ends(upstream.frame_truth, region) for region in truth.regions]
    groups = []
    left = set(range(len(boxes)))
    while left:
        near = {i: [j for j in sorted(left) if i == j or _iou(boxes[i], boxes[j]) >= 0.7] for i in sorted(left)}
        members = max(near.values(), key=len)  # the first of several
        left -= set(members)
        mean = np.mean([boxes[i] for i in members], 0).astype(np.float32).astype(float)
        groups.append((mean, [truth.regions[i].captions[0] for i in members]))
    records, used = [], set()
    for region in sorted(predicted.regions, key=lambda region: -region.score):
        box, best, place = ends(upstream.frame_predictions, region), 0.0, None
        for index, (group, _) in enumerate(groups):
            if _iou(box, group) > best:
                best, place = _iou(box, group), index
        asked = len(groups) - 1 if place is None else place
        records.append((asked not in used, best, [] if place is None else groups[place][1]))
        used.add(asked)
    return records


def _iou(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height) if width > 0 and height > 0 else 0.0


def _average_precision(hits, positives):
    found = np.cumsum(hits)
    recall, precision = found / positives, found / np.arange(1, len(hits) + 1)
    point, total, points = 0.0, 0.0, 0
    while point <= 1:
        total += max(precision[recall >= point], default=0.0)
        point, points = point + 0.01, points + 1
    return total / points
