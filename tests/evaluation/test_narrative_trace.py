from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.records import Narrative, Record, TimedWord, write_records
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.narrative_trace import NarrativeTrace, token_utterances, utterance_boxes
from locap.evaluation.narratives import align_words, located_words, normal_form
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError

WIDTH, HEIGHT = 100, 50
VARIANTS = ("standard", "upstream")


def narrative(*words, traces=()):
    """A narrative of (text, start, end) and strokes."""
    timed = tuple(TimedWord(*word) for word in words)
    return Narrative(" ".join(word.text for word in timed), timed, tuple(tuple(stroke) for stroke in traces))


def pointing(*words):
    """A narrative with a stroke of points per (text, points), a second each."""
    timed = [(text, float(i), i + 1.0) for i, (text, _) in enumerate(words)]
    return narrative(*timed, traces=[[(x, y, i + 0.5) for x, y in points] for i, (_, points) in enumerate(words)])


def image(*narratives, image_id=1):
    return Record(image_id, HEIGHT, WIDTH, narratives=narratives)


def evaluate(pairs, variant="standard"):
    evaluator = NarrativeTrace((), variant=variant)
    for truth, predicted in pairs:
        evaluator.update(truth, predicted)
    return evaluator.compute()


class TestPointsOfWords:
    def test_points_of_the_time_span_without_its_end(self):
        path = [(0, 0, 0.0), (10, 0, 1.0), (20, 0, 2.0), (30, 0, 3.0)]
        words = located_words(narrative(("a", 0.0, 2.0), ("red dog", 2.0, 3.5), ("in", 3.0, 3.0), traces=[path]), "")
        assert [word.text for word in words] == ["a", "red", "dog", "in"]
        assert [word.points[:, 0].tolist() for word in words] == [[0, 10], [20, 30], [20, 30], [30]]

    def test_between_two_points_the_place_is_interpolated_and_beyond_the_path_there_is_none(self):
        strokes = [[(0, 0, 1.0)], [(10, 20, 2.0)]]
        words = located_words(narrative(("a", 0.0, 0.5), ("b", 1.2, 1.4), ("c", 2.5, 3.0), traces=strokes), "")
        assert [word.points.tolist() for word in words] == [[], [[pytest.approx(3.0), pytest.approx(6.0)]], []]

    def test_one_stroke_per_word_keeps_its_ends(self):
        strokes = [[(1, 1, 0.0), (2, 2, 1.0)], [(3, 3, 1.0), (4, 4, 2.0)]]
        words = located_words(narrative(("a", 0.0, 1.0), ("b", 1.0, 2.0), traces=strokes), "")
        assert [word.points[:, 0].tolist() for word in words] == [[1, 2], [3, 4]]

    @pytest.mark.fault("R13")
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (narrative(("a", 1.0, 0.5)), "A word has no valid time"),
            (narrative(("a", float("nan"), 0.5)), "A word has no valid time"),
            (narrative(("a", 0.0, 0.5), traces=[[(float("inf"), 0, 0)]]), "A point of a trace is not finite"),
        ],
    )
    def test_values_that_are_no_numbers(self, bad, message):
        good = narrative(("a", 0.0, 1.0), traces=[[(1, 1, 0.0), (2, 2, 1.0)]])
        for variant in VARIANTS:
            with pytest.raises(DataError, match=message):
                evaluate([(image(bad), image(good))], variant)
            with pytest.raises(DataError, match=message):
                evaluate([(image(good), image(bad))], variant)


class TestAlignment:
    def test_normal_form(self):
        assert [normal_form(word) for word in ("Dog,", "it's", "...", "É2")] == ["dog", "its", "", "é2"]

    def test_longest_common_subsequence(self):
        assert align_words(["the", "red", "dog", "and", "the", "cat"], ["the", "dog", "the", "big", "cat"]) == [
            (0, 0), (2, 1), (4, 2), (5, 4),
        ]  # fmt: skip
        assert align_words([], ["a"]) == align_words(["a"], []) == []

    @settings(max_examples=50, deadline=None)
    @given(a=st.lists(st.sampled_from("abc"), max_size=8), b=st.lists(st.sampled_from("abc"), max_size=8))
    def test_against_the_textbook(self, a, b):
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        pairs = align_words(a, b)
        assert len(pairs) == table[-1][-1]
        assert all(a[i] == b[j] for i, j in pairs)
        assert all(p[0] < q[0] and p[1] < q[1] for p, q in itertools.pairwise(pairs))


class TestStandard:
    def test_by_hand(self):
        truth = pointing(("A", [(10, 10), (20, 10)]), ("dog", [(50, 25)]), ("runs", [(0, 0)]))
        predicted = pointing(("a", [(10, 15), (26, 10)]), ("dog.", [(80, 25)]), ("runs", []))
        result = evaluate([(image(truth), image(predicted))])
        # a: 5 of 50 high -> .05; 6 of 100 wide -> .03; dog: 30 of 100 wide -> .15
        assert result.figures["point_l1"] == pytest.approx(((0.05 + 0.03) / 2 + 0.15) / 2)
        diagonal = math.hypot(WIDTH, HEIGHT)
        assert result.figures["euclidean_error"] == pytest.approx(((5 + 6) / 2 + 30) / 2 / diagonal)
        assert result.figures["coverage"] == pytest.approx(2 / 3)
        assert (result.counts["pairs"], result.counts["predicted_without_location"]) == (2, 1)
        assert result.regions.rows[0][:4] == (1, 0, 3, 2)

    def test_free_words_are_aligned(self):
        truth = pointing(("a", [(0, 0)]), ("dog", [(50, 0)]), ("here", [(90, 0)]))
        predicted = pointing(("dog", [(50, 0)]), ("is", [(3, 3)]), ("HERE", [(80, 0)]))
        result = evaluate([(image(truth), image(predicted))])
        assert result.figures["point_l1"] == pytest.approx(0.05 / 2)
        assert (result.counts["words_not_predicted"], result.counts["predicted_words_not_true"]) == (1, 1)
        assert result.figures["coverage"] == pytest.approx(2 / 3)

    def test_every_word_of_the_data_set_weighs_the_same(self):
        first = (image(pointing(("a", [(0, 0)]))), image(pointing(("a", [(20, 0)]))))
        three = pointing(("a", [(0, 0)]), ("b", [(0, 0)]), ("c", [(0, 0)]))
        second = (image(three, image_id=2), image(three, image_id=2))
        assert evaluate([first, second]).figures["point_l1"] == pytest.approx(0.1 / 4)

    def test_missing_narratives_are_counted_and_further_ones_refused(self):
        word = pointing(("a", [(5, 5)]))
        result = evaluate([(image(word, word), image(word))])
        assert (result.figures["coverage"], result.counts["narratives_without_prediction"]) == (0.5, 1)
        with pytest.raises(DataError, match="More narratives are predicted"):
            evaluate([(image(word), image(word, word))])

    def test_nothing_to_compare_is_undefined(self):
        silent = evaluate([(image(), image(pointing(("a", [(5, 5)]))))])
        assert (silent.figures, silent.counts["images_without_narrative"]) == ({}, 1)
        nowhere = evaluate([(image(narrative(("...", 0.0, 1.0), ("a", 1.0, 2.0))), image())])
        assert set(nowhere.undefined) == {"point_l1", "euclidean_error", "coverage"}
        assert (nowhere.counts["words"], nowhere.counts["words_without_location"]) == (1, 1)


class TestUpstream:
    def test_tokens_take_utterances_in_proportion(self):
        assert token_utterances(10, 4).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 3, 3]
        assert token_utterances(1, 1).tolist() == [0]

    def test_box_of_an_utterance(self):
        """The pointer moves 10 px a second to the right; an utterance after its end is extrapolated, then clipped."""
        path = [(10.0, 20.0, 1.0), (20.0, 20.0, 2.0)]
        said = narrative(("a", 1.26, 1.5), ("b", 2.0, 20.0), (" ", 1.0, 2.0), traces=[path])
        assert utterance_boxes(said, (WIDTH, HEIGHT)).tolist() == [[[13, 20], [15, 20]], [[20, 20], [100, 20]]]

    def test_narratives_without_a_target_are_left_out(self):
        one_point = pointing(("a", [(10, 20)]))
        in_the_corner = narrative(("a", 0.0, 1.0), traces=[[(0.0, 0.0, 0.0), (0.0, 0.0, 1.0)]])
        result = evaluate([(image(one_point, in_the_corner), image())], "upstream")
        assert result.counts["narratives_left_out"] == 2
        assert result.undefined == {"point_l1": "no image has a usable narrative"}

    def test_repeated_times_do_not_divide_by_zero(self):
        path = [(10.0, 20.0, 1.0), (30.0, 20.0, 1.0), (40.0, 20.0, 2.0)]
        assert utterance_boxes(narrative(("a", 1.0, 1.0), traces=[path]), (WIDTH, HEIGHT)).tolist() == [[[30, 20]] * 2]

    def test_by_hand(self):
        truth = narrative(("a dog", 1.0, 2.0), traces=[[(10.0, 20.0, 1.0), (20.0, 30.0, 2.0)]])
        tokens = pointing(("a", [(12, 20)]), ("do", [(10, 20), (26, 30)]), ("##g", [(50, 25)]))
        # corners (10, 20), (20, 30); "##g": 30/100 and 5/50 to the second, 40/100 and 5/50 to the first
        expected = (0.01 + (0 + 0.03) / 2 + 0.2) / 3
        result = evaluate([(image(truth), image(tokens))], "upstream")
        assert result.figures == {"point_l1": pytest.approx(expected)}
        other = (image(truth, image_id=2), image(pointing(("a", [(10, 20)])), image_id=2))
        both = evaluate([(image(truth), image(tokens)), other], "upstream")
        assert both.figures["point_l1"] == pytest.approx(expected / 2)

    def test_every_token_needs_a_point(self):
        truth = narrative(("a", 1.0, 2.0), traces=[[(10.0, 20.0, 1.0), (20.0, 30.0, 2.0)]])
        with pytest.raises(DataError, match="A predicted word has no point"):
            evaluate([(image(truth), image(pointing(("a", []))))], "upstream")
        with pytest.raises(DataError, match="A narrative has no prediction"):
            evaluate([(image(truth), image())], "upstream")


@pytest.mark.parametrize("variant", VARIANTS)
class TestBoth:
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10**6), ranks=st.sampled_from([1, 2, 4]))
    def test_ranks_and_order_give_the_same_bits(self, variant, seed, ranks):
        images = _random_images(7, seed)
        whole = evaluate(images, variant)
        parts = [NarrativeTrace((), variant=variant) for _ in range(ranks)]
        for index, pair in enumerate(reversed(images)):
            parts[index % ranks].update(*pair)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == whole

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_repeating_a_point_changes_nothing(self, variant, seed):
        images = _random_images(3, seed)
        doubled = [(truth, dataclasses.replace(p, narratives=tuple(map(_twice, p.narratives)))) for truth, p in images]
        assert evaluate(doubled, variant).figures == pytest.approx(evaluate(images, variant).figures, abs=1e-12)

    def test_real_narratives(self, coco_mini, tmp_path, variant):
        truth = _real_records(coco_mini)
        stored = load_predictions(write_records(tmp_path / "p.json", truth), truth)
        truth, _ = load_ground_truth(write_records(tmp_path / "t.json", truth))
        (result,) = evaluate_stored(truth, stored, ["narrative_trace"], ())
        assert result.figures["point_l1"] == result.figures["euclidean_error"] == 0.0
        assert result.figures["coverage"] == 1.0
        assert result.counts["words"] > 400
        assert result.counts["words_without_location"] < 0.05 * result.counts["words"]
        centre = [_at_centre(record) for record in truth]
        options = {"narrative_trace": {"variant": variant}}
        (guess,) = evaluate_stored(truth, centre, ["narrative_trace"], (), options=options)
        assert 0.1 < guess.figures["point_l1"] < 0.3  # of a quarter in the mean, were the pointer anywhere


def test_a_perfect_prediction_has_no_error():
    for truth, _ in _random_images(5):
        figures = evaluate([(truth, truth)]).figures
        assert figures == {"point_l1": 0.0, "euclidean_error": 0.0, "coverage": 1.0}


def _twice(said):
    return dataclasses.replace(said, traces=tuple(stroke * 2 for stroke in said.traces))


def _random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (image(*_random(rng, 2), image_id=index), image(*_random(rng, 2), image_id=index)) for index in range(count)
    ]


def _random(rng, count):
    texts = ("a", "dog", "runs", "on", "grass")
    return [
        pointing(
            *((str(rng.choice(texts)), rng.integers(1, 49, (int(rng.integers(1, 4)), 2)).tolist()) for _ in range(6))
        )
        for _ in range(count)
    ]


def _real_records(coco_mini):
    path = coco_mini / "localized_narratives" / "coco_val_localized_narratives.jsonl"
    return load_ground_truth(path, coco_mini / "val2017")[0]


def _at_centre(record):
    """Every word in the middle of the image."""
    middle = [(record.width / 2, record.height / 2)]
    said = tuple(pointing(*((text, middle) for text in one.caption.split())) for one in record.narratives)
    return dataclasses.replace(record, narratives=said)
