"""Areas and boxes of segments."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.utils.id_maps import measure_segments


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_measures_equal_the_masks(height, width, count, seed):
    generator = np.random.default_rng(seed)
    names = generator.choice(256**3, count, replace=False).astype(np.int32)
    ids = names[generator.integers(0, count, (height, width))]
    segments = measure_segments(ids)
    assert segments.ids.tolist() == np.unique(ids).tolist()
    for i, area, box in zip(*segments, strict=True):
        ys, xs = np.nonzero(ids == i)
        assert area == len(ys)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
