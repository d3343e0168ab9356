"""What must hold for any panoptic prediction, and what a strange one gives, in both panoptic protocols."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Category, Record, Region
from locap.evaluation import panoptic_captioning
from locap.evaluation.captions import java, ptb
from locap.evaluation.captions.meteor import MeteorScores
from locap.evaluation.panoptic import PanopticQuality
from locap.evaluation.panoptic_captioning import PanopticCaptioning
from locap.utils.errors import DataError, MissingDependencyError

from .conftest import CATEGORIES

PROTOCOLS = [(PanopticQuality, "standard"), (PanopticCaptioning, "standard"), (PanopticCaptioning, "upstream")]
PROPERTY = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR is 1 for a caption among its references, else 0; the other metrics use the built-in tokeniser."""

    def missing():
        raise MissingDependencyError("Java is missing.")

    def scores(candidates, references):
        values = [float(c in r) for c, r in zip(candidates, references, strict=True)]
        return MeteorScores(np.array(values), sum(values) / max(len(values), 1))

    monkeypatch.setattr(java, "find_java", missing)
    monkeypatch.setattr(ptb, "shared_tokenizer", ptb.PtbTokenizer)
    monkeypatch.setattr(panoptic_captioning, "meteor_scores", scores)


def evaluate(images, protocol, variant="standard", categories=CATEGORIES):
    evaluator = protocol(categories, variant=variant, image_order=[truth.image_id for truth, _ in images])
    for truth, predicted in images:
        evaluator.update(truth, predicted)
    return evaluator.compute()


@pytest.mark.parametrize(("protocol", "variant"), PROTOCOLS)
class TestProperties:
    @PROPERTY
    @given(seed=SEEDS, ranks=st.sampled_from([1, 2, 4]))
    def test_ranks_give_the_same_bits(self, make_images, protocol, variant, seed, ranks):
        images = make_images(7, seed)
        order = [truth.image_id for truth, _ in images]
        parts = [protocol(CATEGORIES, variant=variant, image_order=order) for _ in range(ranks)]
        for index, image in enumerate(reversed(images)):
            parts[index % ranks].update(*image)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == evaluate(images, protocol, variant)

    @PROPERTY
    @given(seed=SEEDS, order=st.randoms(use_true_random=False))
    def test_order_of_predicted_segments_does_not_matter(self, make_images, protocol, variant, seed, order):
        images = make_images(4, seed)
        shuffled = copy.deepcopy(images)
        for _, predicted in shuffled:
            order.shuffle(predicted.regions)
        assert evaluate(shuffled, protocol, variant).figures == evaluate(images, protocol, variant).figures

    @PROPERTY
    @given(seed=SEEDS, order=st.randoms(use_true_random=False))
    def test_order_of_images_does_not_matter(self, make_images, protocol, variant, seed, order):
        """For the published code it does; there the order of the ground truth is kept."""
        images = make_images(5, seed)
        whole = evaluate(images, protocol, variant)
        evaluator = protocol(CATEGORIES, variant=variant, image_order=[truth.image_id for truth, _ in images])
        order.shuffle(images)
        for image in images:
            evaluator.update(*image)
        assert evaluator.compute() == whole

    @PROPERTY
    @given(seed=SEEDS)
    def test_perfect_predictions_score_one(self, make_images, protocol, variant, seed):
        images = []
        for truth, _ in make_images(3, seed):
            truth.regions = [region for region in truth.regions if not region.is_crowd]
            truth.id_map = np.where(np.isin(truth.id_map, [r.id for r in truth.regions]), truth.id_map, 0)
            images.append((truth, copy.deepcopy(truth)))
        figures = evaluate(images, protocol, variant).figures
        names = {"pq", "sq", "rq"} | ({"map", "detection_map"} if protocol is PanopticCaptioning else set())
        names -= {"map", "detection_map"} if variant == "upstream" else set()  # its best depends on the wording
        assert {name: figures[name] for name in names} == pytest.approx(dict.fromkeys(names, 1.0))

    @PROPERTY
    @given(seed=SEEDS)
    def test_segments_of_a_class_that_is_not_there_never_help(self, make_images, protocol, variant, seed):
        categories = (*CATEGORIES, Category(7, "unicorn"))
        images = make_images(3, seed)
        before = evaluate(images, protocol, variant, categories).figures
        for _, predicted in images:
            free = predicted.id_map == 0
            predicted.id_map[free] = 77
            predicted.regions += [Region(77, 7, captions=("a unicorn",), score=1.0)] if free.any() else []
        after = evaluate(images, protocol, variant, categories).figures
        names = ("pq", "rq", "pq_stuff") if variant == "standard" else ("pq",)
        assert all(after[name] <= before[name] + 1e-12 for name in names if name in before)

    def test_nothing_predicted_scores_zero(self, make_images, protocol, variant):
        images = [
            (truth, Record(truth.image_id, 24, 24, id_map=np.zeros((24, 24), np.int32))) for truth, _ in make_images(3)
        ]
        result = evaluate(images, protocol, variant)
        assert set(result.figures.values()) == {0.0}
        assert result.counts["matched"] == result.counts["false_positives"] == 0

    @pytest.mark.parametrize("crowd", [True, False])
    def test_crowd_only_and_void_only_images_forgive_what_lies_in_them(self, protocol, variant, crowd):
        ids = np.full((4, 4), 5 if crowd else 0, np.int32)
        truth = Record(1, 4, 4, id_map=ids, regions=[Region(5, 1, is_crowd=True)] if crowd else [])
        predicted = Record(1, 4, 4, id_map=np.full((4, 4), 9, np.int32), regions=[Region(9, 1, captions=("a dog",))])
        result = evaluate([(truth, predicted)], protocol, variant)
        assert "pq" in result.undefined
        assert result.counts["false_positives"] == 0
        predicted.regions[0].category_id = 3  # another class than the crowd's; void has no class
        assert evaluate([(truth, predicted)], protocol, variant).counts["false_positives"] == int(crowd)

    def test_no_image_at_all(self, protocol, variant):
        result = evaluate([], protocol, variant)
        assert {"pq"} | ({"map"} if protocol is PanopticCaptioning else set()) <= set(result.undefined)
        assert result.counts["images"] == 0

    def test_a_truth_that_does_not_fit_its_id_map_is_noted(self, protocol, variant):
        ids = np.array([[1, 1], [2, 3]], np.int32)
        truth = Record(1, 2, 2, id_map=ids, regions=[Region(1, 1, area=3), Region(2, 1), Region(4, 1)])
        predicted = Record(1, 2, 2, id_map=np.ones((2, 2), np.int32), regions=[Region(1, 1)])
        result = evaluate([(truth, predicted)], protocol, variant)
        assert (result.counts["truth_areas_differ"], result.counts["truth_ids_unlisted"]) == (1, 1)
        assert len([note for note in result.notes if "true segments" in note]) == 2
        assert result.counts["false_negatives"] == 3  # 2 / (4 + 3 - 2) of the first; the last has no pixels
        truth.regions[0].area = None
        assert "truth_areas_differ" not in evaluate([(truth, predicted)], protocol, variant).counts

    @pytest.mark.parametrize("area", [-1, float("nan"), float("inf")])
    def test_areas_must_be_numbers_of_pixels(self, protocol, variant, area):
        ids = np.ones((2, 2), np.int32)
        truth = Record(1, 2, 2, id_map=ids, regions=[Region(1, 1, area=area)])
        with pytest.raises(DataError, match="An area is no number of pixels"):
            evaluate([(truth, Record(1, 2, 2, id_map=ids, regions=[Region(1, 1)]))], protocol, variant)
