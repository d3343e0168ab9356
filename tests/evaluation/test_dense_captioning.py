from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record, Region, encode_mask
from locap.evaluation import dense_average_precision
from locap.evaluation import dense_captioning_upstream as upstream
from locap.evaluation.captions.meteor import MeteorScores
from locap.evaluation.dense_captioning import DenseCaptioning
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError, UsageError

from .dense_scenes import WORDS, dense_images, grid_image

PUBLISHED = tuple(upstream.RULES)
EVERY_VARIANT = ("standard", *PUBLISHED)
PROPERTY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PEERS = {
    "densecap_lua_torch7": ("densecap", "vg_instances_results", 1e-9),
    "densecap_lua_torch7_default_float": ("densecap_float", "vg_instances_results", 2e-4),
    "soloist97_densecap_pytorch": ("soloist97", "pixelllm_predictions", 1e-6),
    "pixelllm_scenic": ("pixelllm", "pixelllm_predictions", 1e-6),
}


def evaluate(images, variant="standard", **options):
    evaluator = DenseCaptioning((), variant=variant, image_order=[truth.image_id for truth, _ in images], **options)
    for truth, predicted in images:
        evaluator.update(truth, predicted)
    return evaluator.compute()


def breakdown(result):
    return {row[:2]: row[2] for row in result.tables["average_precision"].rows}


def detection(box, score=0.5, caption="a red dog", region_id=1):
    return Region(region_id, 1, box_xyxy=box, captions=(caption,), score=score)


def one_image(truth, predicted, height=100, width=100):
    return [(Record(1, height, width, regions=truth), Record(1, height, width, regions=predicted))]


@pytest.fixture
def equal_words(monkeypatch):
    """In place of METEOR: 1 for a caption that is among its references, else 0; no process is started."""

    def scores(candidates, references):
        values = [float(c in r and bool(c)) for c, r in zip(candidates, references, strict=True)]
        return MeteorScores(np.array(values), 0.0)

    monkeypatch.setattr(dense_average_precision, "meteor_scores", scores)


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
                    boxes = np.array([region.box_xyxy for region in record.regions])
                    framed = upstream.frame_predictions(boxes.reshape(-1, 4), record.height, record.width)
                    stated = received.get(record.image_id, {"boxes": framed})["boxes"]
                    assert np.abs(framed - np.reshape(stated, (-1, 4))).max(initial=0) < 1e-9
            for record in truth:
                captions = [upstream.clean_caption(region.captions[0]) for region in record.regions]
                kept = [i for i, text in enumerate(captions) if upstream.is_kept(text)]
                dropped += len(captions) - len(kept)
                if record.image_id not in received:
                    assert not kept
                    continue
                assert [captions[i] for i in kept] == received[record.image_id]["gt_captions"]
                boxes = np.array([record.regions[i].box_xyxy for i in kept])
                framed = upstream.frame_truth(boxes, record.height, record.width)
                assert framed.tolist() == received[record.image_id]["gt_boxes"]
            assert dropped == expected["gt_regions_dropped_over_15_tokens"]

    def test_a_file_in_the_wrong_frame_is_noted(self, cases, equal_words):
        folder, _ = next(iter(cases.values()))
        truth, categories = load_ground_truth(folder / "vg_gt.json")
        for variant in EVERY_VARIANT:
            options = {"dense_captioning": {"variant": variant}}
            right = load_predictions(folder / "pixelllm_predictions.json", truth)
            (result,) = evaluate_stored(truth, right, ["dense_captioning"], categories, options=options)
            assert result.notes == []
            body = json.loads((folder / "vg_instances_results.json").read_text())
            sizes = {record.image_id: max(record.height, record.width) for record in truth}
            small = {image_id for image_id, side in sizes.items() if side <= 720}
            for chosen, message in ((small, "leave their image"), (sizes.keys() - small, "the 720-pixel frame")):
                some = [record for record in truth if record.image_id in chosen]
                mixed = [
                    Record(
                        record.image_id,
                        record.height,
                        record.width,
                        regions=[
                            detection((x, y, x + w, y + h))
                            for x, y, w, h in (row["bbox"] for row in body if row["image_id"] == record.image_id)
                        ],
                    )
                    for record in some
                ]
                (result,) = evaluate_stored(some, mixed, ["dense_captioning"], categories, options=options)
                assert message in "\n".join(result.notes)


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


class TestStandard:
    def test_overlapping_truth_is_one_group_with_all_captions(self, meteor):
        truth = [
            Region(1, 1, box_xyxy=(0, 0, 10, 10), captions=("a red dog",)),
            Region(2, 1, box_xyxy=(0, 0, 10, 8), captions=("the big table",)),
            Region(3, 1, box_xyxy=(50, 50, 60, 60), captions=("grass",)),
        ]
        result = evaluate(one_image(truth, [detection((0, 0, 10, 9), caption="the big table")]))
        assert result.counts["groups"] == 2
        assert result.figures["detection_map"] == pytest.approx(51 / 101)  # one of two found, precision 1 up to .5
        assert result.figures["map"] == pytest.approx(51 / 101)
        row = dict(zip(result.regions.columns, result.regions.rows[0], strict=True))
        assert (row["iou"], row["meteor"], row["references"]) == (1.0, 1.0, "a red dog | the big table")

    def test_a_detection_takes_the_best_free_group_at_each_threshold(self, equal_words):
        truth = [Region(i, 1, box_xyxy=box, captions=("a",)) for i, box in ((1, (0, 0, 10, 10)), (2, (5, 0, 15, 10)))]
        both = [detection((0, 0, 10, 10), 0.9, "a", 1), detection((1, 0, 11, 10), 0.8, "a", 2)]
        found = breakdown(evaluate(one_image(truth, both)))
        # the second overlaps the first group by 9/11 and the other by 6/14, which is free and enough up to .4
        assert [found[t, None] for t in (0.3, 0.4)] == [1.0, 1.0]
        assert [found[t, None] for t in (0.5, 0.6, 0.7)] == pytest.approx([51 / 101] * 3)

    def test_a_group_without_caption_has_no_part_in_map(self, equal_words):
        truth = [
            Region(1, 1, box_xyxy=(0, 0, 10, 10), captions=("a",)),
            Region(2, 1, box_xyxy=(50, 0, 60, 10), captions=(" ",)),
        ]
        predicted = [detection((50, 0, 60, 10), 0.9, "b", 1), detection((0, 0, 10, 10), 0.8, "a", 2)]
        result = evaluate(one_image(truth, predicted))
        assert result.figures == {"map": 1.0, "detection_map": 1.0}
        assert result.counts["truth_without_caption"] == 1
        bare = evaluate(one_image(truth[1:], predicted))
        assert bare.undefined == {"map": "no ground-truth region has a caption"}

    def test_odd_boxes_are_counted(self, equal_words):
        truth = [
            Region(1, 1, box_xyxy=(0, 0, 10, 10), captions=("a",)),
            Region(2, 1, box_xyxy=(20, 20, 20, 30), captions=("b",)),
            Region(3, 1, box_xyxy=(40, 40, 30, 50), captions=("c",)),
            Region(4, 1, box_xyxy=(0, 0, 100, 100), captions=("d",), is_crowd=True),
            Region(5, 1, box_xyxy=(-20, 60, 10, 90), captions=("e",)),
        ]
        predicted = [
            detection((0, 0, 10, 10), 0.9, "a", 1),
            detection((20, 20, 20, 30), 0.8, "b", 2),
            detection((40, 40, 30, 50), 0.7, "c", 3),
            detection((-20, 60, 10, 90), 0.6, "", 4),
        ]
        counts = evaluate(one_image(truth, predicted)).counts
        assert counts["groups"] == 2
        names = ("truth_boxes_empty", "truth_boxes_inverted", "truth_crowds", "truth_outside_image")
        assert [counts[name] for name in names] == [1, 1, 1, 1]
        names = ("predicted_boxes_empty", "predicted_without_caption", "predicted_outside_image")
        assert [counts[name] for name in names] == [2, 1, 1]

    def test_a_mask_serves_for_a_box(self, equal_words):
        mask = np.zeros((100, 100), bool)
        mask[10:30, 20:40] = True
        regions = [Region(1, 1, mask=encode_mask(mask), captions=("a",), score=0.5)]
        assert evaluate(one_image(regions, [detection((20, 10, 40, 30), caption="a")])).figures["map"] == 1.0
        assert evaluate(one_image(regions, regions)).figures["map"] == 1.0

    def test_without_java_detection_stands(self, monkeypatch):
        monkeypatch.setattr(
            dense_average_precision, "meteor_scores", lambda *_: "METEOR not computed: Java is missing."
        )
        result = evaluate(dense_images(2))
        assert result.unavailable == {"map": "METEOR not computed: Java is missing."}
        assert "detection_map" in result.figures
        assert {row[5] for row in result.regions.rows} == {None}


class TestPublishedRules:
    def test_captions_as_densecap_prepares_them(self):
        assert upstream.clean_caption("The MAN's cap—it's ½ off, 20° C…") == "the mans capits half off 20 degree c"
        assert upstream.clean_caption("?!") == ""
        assert upstream.is_kept(" ".join(["a"] * 15))
        assert not upstream.is_kept(" ".join(["a"] * 16))

    def test_frame_of_the_ground_truth(self):
        boxes = np.array([[0, 0, 10, 20], [300, 2, 500, 375], [1, 1, 2.5, 2.5]], float)
        framed = upstream.frame_truth(boxes, 375, 500)  # scale 1.44
        # x: 1.44 * -1 + 1 rounds to 0 and is clamped to 1; 1.44 * 299 + 1 = 431.56; width 288 fits, height 537.12
        assert framed.tolist() == [[8, 15, 14, 29], [576, 270, 288, 537], [2, 2, 2, 2]]

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

    def test_empty_boxes_of_the_truth_make_a_group_only_in_densecap(self, equal_words):
        truth = [Region(1, 1, box_xyxy=(10, 10, 10, 40), captions=("a",)), *grid_image(["b"]).regions]
        found = {
            variant: evaluate(one_image(truth, [], 200, 200), variant).counts["groups"] for variant in EVERY_VARIANT
        }
        assert found == {"standard": 1, "densecap": 2, "densecap_float": 2, "pixelllm": 1, "soloist97": 1}


@pytest.mark.parametrize("variant", EVERY_VARIANT)
class TestEveryVariant:
    @PROPERTY
    @given(texts=st.lists(st.sampled_from(WORDS), min_size=1, max_size=9))
    def test_perfect_predictions_score_one(self, variant, texts, equal_words):
        truth = grid_image(texts, side=720)
        predicted = copy.deepcopy(truth)
        for index, region in enumerate(predicted.regions):
            region.score = 1 / (index + 1)
        assert evaluate([(truth, predicted)], variant).figures == pytest.approx({"map": 1.0, "detection_map": 1.0})

    @PROPERTY
    @given(seed=st.integers(0, 10**6), count=st.integers(1, 6), order=st.randoms(use_true_random=False))
    def test_order_of_images_and_of_distinct_scores_does_not_matter(self, variant, seed, count, order, equal_words):
        images = dense_images(count, seed)
        if variant != "standard":  # equal scores keep the order of the file there, by definition
            places = iter(order.sample(range(1000), 100))
            for _, predicted in images:
                predicted.regions = [dataclasses.replace(r, score=next(places) / 1000) for r in predicted.regions]
        whole = evaluate(images, variant)
        shuffled = [
            (truth, dataclasses.replace(p, regions=order.sample(p.regions, len(p.regions)))) for truth, p in images
        ]
        order.shuffle(shuffled)
        other = evaluate(shuffled, variant)
        assert (other.figures, other.tables, other.counts) == (whole.figures, whole.tables, whole.counts)

    @PROPERTY
    @given(seed=st.integers(0, 10**6), ranks=st.sampled_from([1, 2, 4]))
    def test_ranks_give_the_same_bits(self, variant, seed, ranks, equal_words):
        images = dense_images(7, seed)
        order = [truth.image_id for truth, _ in images]
        parts = [DenseCaptioning((), variant=variant, image_order=order) for _ in range(ranks)]
        for index, image in enumerate(reversed(images)):
            parts[index % ranks].update(*image)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == evaluate(images, variant)

    @PROPERTY
    @given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
    def test_duplicates_never_help(self, variant, seed, share, equal_words):
        """In ``standard`` this holds when no box reaches two groups, as on a grid."""
        rng = np.random.default_rng(seed)
        if variant == "standard":
            truth = grid_image([str(rng.choice(WORDS)) for _ in range(6)])
            predicted = copy.deepcopy(truth)
            for region in predicted.regions:
                region.score, region.captions = float(rng.random()), (str(rng.choice(WORDS)),)
            images = [(truth, predicted)]
        else:
            images = dense_images(4, seed)
        before = evaluate(images, variant).figures
        for _, predicted in images:
            copies = [region for region in predicted.regions if rng.random() < share]
            predicted.regions += [dataclasses.replace(region, id=region.id + 100) for region in copies]
        after = evaluate(images, variant).figures
        assert all(after[name] <= before[name] + 1e-12 for name in before)

    def test_nothing_predicted_scores_zero(self, variant, equal_words):
        images = [(truth, Record(truth.image_id, truth.height, truth.width)) for truth, _ in dense_images(2)]
        assert evaluate(images, variant).figures == {"map": 0.0, "detection_map": 0.0}

    def test_nothing_to_find_is_undefined(self, variant, equal_words):
        result = evaluate(one_image([], [detection((0, 0, 10, 10))]), variant)
        assert result.figures == {}
        assert set(result.undefined) == {"map", "detection_map"}
        assert evaluate([], variant).figures == {}

    def test_meteor_of_all_changes_no_figure(self, variant, equal_words):
        images = dense_images(4)
        assert evaluate(images, variant, meteor="all").figures == evaluate(images, variant).figures

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"score": float("nan")}, "A score is not a finite number"),
            ({"box_xyxy": (0.0, 0.0, float("inf"), 1.0)}, "A box is not four finite numbers"),
            ({"box_xyxy": None}, "neither a box nor a mask"),
        ],
    )
    def test_values_that_are_no_numbers(self, variant, change, message):
        bad = dataclasses.replace(detection((0, 0, 10, 10)), **change)
        with pytest.raises(DataError, match=message):
            evaluate(one_image([detection((0, 0, 10, 10))], [bad]), variant)
        if "score" not in change:
            with pytest.raises(DataError, match=message):
                evaluate(one_image([bad], []), variant)


def test_no_such_choice():
    with pytest.raises(UsageError, match="matches, all"):
        DenseCaptioning((), meteor="some")


def test_strange_captions_are_scored(meteor):
    texts = ["a dog", "", "...", "naïve café 日本語 😀", "a\nb ||| c", "\u2028"]
    truth = grid_image(texts)
    predicted = copy.deepcopy(truth)
    result = evaluate([(truth, predicted)])
    assert [row[5] for row in result.regions.rows if row[7] == "a dog"] == [1.0]
    assert result.counts["truth_without_caption"] == 2
    assert result.counts["predicted_without_score"] == 6
