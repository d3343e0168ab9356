from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record, Region, encode_mask
from locap.evaluation import dense_captioning_upstream as upstream
from locap.evaluation.dense_captioning import DenseCaptioning
from locap.evaluation.ranking import dense_average_precision
from locap.utils.errors import DataError, UsageError

from .dense_scenes import WORDS, breakdown, dense_images, detection, evaluate, grid_image, one_image

PUBLISHED = tuple(upstream.RULES)
EVERY_VARIANT = ("standard", *PUBLISHED)
PROPERTY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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

    @pytest.mark.fault("R6")
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

    @pytest.mark.fault("N1")
    def test_without_java_detection_stands(self, monkeypatch):
        monkeypatch.setattr(
            dense_average_precision, "meteor_scores", lambda *_: "METEOR not computed: Java is missing."
        )
        result = evaluate(dense_images(2))
        assert result.unavailable == {"map": "METEOR not computed: Java is missing."}
        assert "detection_map" in result.figures
        assert {row[5] for row in result.regions.rows} == {None}


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

    @pytest.mark.parametrize(
        ("size", "scale", "message"),
        [
            ((800, 1000), 0.72, "look like boxes of the 720-pixel frame"),
            ((300, 400), 1.8, "predicted boxes leave their image"),
            ((800, 1000), 1.0, None),
            ((300, 400), 1.0, None),
        ],
    )
    def test_predictions_of_another_frame_are_noted(self, variant, size, scale, message, equal_words):
        rng = np.random.default_rng(0)
        boxes = [
            (x * size[1], y * size[0], (x + 0.3) * size[1], (y + 0.3) * size[0]) for x, y in rng.random((40, 2)) * 0.7
        ]
        truth = [detection(box, caption="a") for box in boxes]
        predicted = [detection(tuple(side * scale for side in box)) for box in boxes]
        notes = evaluate(one_image(truth, predicted, *size), variant).notes
        assert [message in note for note in notes] == ([] if message is None else [True])

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

    @pytest.mark.fault("R11")
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


@pytest.mark.fault("R10")
def test_strange_captions_are_scored(meteor):
    texts = ["a dog", "", "...", "naïve café 日本語 😀", "a\nb ||| c", "\u2028"]
    truth = grid_image(texts)
    predicted = copy.deepcopy(truth)
    result = evaluate([(truth, predicted)])
    assert [row[5] for row in result.regions.rows if row[7] == "a dog"] == [1.0]
    assert result.counts["truth_without_caption"] == 2
    assert result.counts["predicted_without_score"] == 6
