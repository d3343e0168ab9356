from __future__ import annotations

import numpy as np
import pytest

from locap.evaluation.average_precision import average_precision

HUNDRED = np.arange(100) / 100


@pytest.mark.parametrize(
    ("hits", "positives", "at_101", "at_100"),
    [([1, 0, 1, 1], 4, 0.6287128712871287, 0.635), ([0, 1, 1, 0, 1], 5, 0.389439, 0.393333)],
)
def test_known_values(hits, positives, at_101, at_100):
    assert float(average_precision(hits, positives)) == pytest.approx(at_101, abs=1e-6)
    assert float(average_precision(hits, positives, HUNDRED)) == pytest.approx(at_100, abs=1e-6)


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
