from __future__ import annotations

import numpy as np
import pytest

from locap.evaluation.ranking.average_precision import ADDED_POINTS, HUNDRED_POINTS, average_precision


@pytest.mark.parametrize(
    ("hits", "positives", "at_101", "at_100", "added"),
    [([1, 0, 1, 1], 4, 0.6287128712871287, 0.635, 0.625), ([0, 1, 1, 0, 1], 5, 0.389439, 0.393333, 0.386667)],
)
def test_known_values(hits, positives, at_101, at_100, added):
    assert float(average_precision(hits, positives)) == pytest.approx(at_101, abs=1e-6)
    assert float(average_precision(hits, positives, HUNDRED_POINTS)) == pytest.approx(at_100, abs=1e-6)
    assert float(average_precision(hits, positives, ADDED_POINTS)) == pytest.approx(added, abs=1e-6)


def test_added_points_miss_what_exact_ones_reach():
    assert ADDED_POINTS[-1] == 0.9900000000000007
    assert (len(ADDED_POINTS), len(HUNDRED_POINTS)) == (100, 100)


def test_curves_in_single_precision():
    """1/3 in float32 is above 1/3: a recall of 1 in 3 reaches the point 0.33333334."""
    third = np.array([np.float32(1) / np.float32(3)], np.float64)
    assert average_precision([True], 3, third) == 0.0
    assert average_precision([True], 3, third, curve=np.float32, total=np.float32) == 1.0


def test_equals_the_definition_for_many_curves_at_once():
    rng = np.random.default_rng(0)
    hits = rng.random((3, 4, 60)) < 0.4
    found = average_precision(hits, 40)
    assert found.shape == (3, 4)
    for index in np.ndindex(3, 4):
        true = np.cumsum(hits[index])
        recall, precision = true / 40, true / np.arange(1, 61)
        best = [max(precision[recall >= t], default=0.0) for t in np.arange(0, 1.01, 0.01)]
        assert found[index] == np.mean(best)


def test_nothing_to_find_or_nothing_found():
    assert average_precision(np.zeros((2, 0), bool), 5).tolist() == [0.0, 0.0]
    assert average_precision([True], 0) == 0.0
    assert average_precision([True] * 3, 3) == 1.0
