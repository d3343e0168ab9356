"""Run-length encodings and polygons of strangers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from locap.utils.errors import DataError
from locap.utils.untrusted import compressed_rle, decode_rle, polygons_to_mask, polygons_to_rle, rle_runs


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_decoding_equals_pycocotools(height, width, density, seed):
    mask = np.random.default_rng(seed).random((height, width)) < density
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (rle["counts"], rle["counts"].decode()):
        decoded = decode_rle({"size": rle["size"], "counts": counts})
        assert decoded.dtype == bool
        np.testing.assert_array_equal(decoded, mask)


def test_long_runs_decode():
    rle = coco_mask.encode(np.asfortranarray(np.pad(np.ones((1, 900), np.uint8), ((1500, 400), (700, 3)))))
    np.testing.assert_array_equal(decode_rle(rle), coco_mask.decode(rle).astype(bool))


def test_uncompressed_runs_go_down_the_columns():
    mask = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_checked_runs_merge_as_masks_do_even_with_empty_ones(first, second):
    size = [1, sum(first) + sum(second) + 1]
    rles = [{"size": size, "counts": [*runs, size[1] - sum(runs)]} for runs in (first, second)]
    a, b = (decode_rle(rle) for rle in rles)
    for operation, intersect in ((a & b, True), (a | b, False)):
        assert coco_mask.area(coco_mask.merge([compressed_rle(rle) for rle in rles], intersect)) == operation.sum()


def test_compressed_runs_are_checked_without_being_decoded():
    rle = coco_mask.encode(np.asfortranarray(np.eye(5, dtype=np.uint8)))
    assert compressed_rle(rle) == {"size": [5, 5], "counts": rle["counts"].decode()}


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ([200_000, 200_000], "0"),
        ([0, 4], []),
        ([4], [4]),
        ([-2, -2], [4]),
        ([2.0, 2], [4]),
        ([True, 4], [4]),
        ("22", [4]),
        ([2, 2], [3]),
        ([2, 2], [5]),
        ([2, 2], [-1, 5]),
        ([2, 2], [2**62, 2**62]),
        ([2, 2], [4.0]),
        ([2, 2], ["4"]),
        ([2, 2], None),
        ([2, 2], ""),
        ([2, 2], "é"),
        ([2, 2], b"\xff\xff"),
        ([2, 2], "oooooooooooooooooooo"),
        ([2, 2], "1"),
    ],
)
def test_bad_rle_is_refused(size, counts):
    with pytest.raises(DataError):
        compressed_rle({"size": size, "counts": counts})
    with pytest.raises(DataError):
        decode_rle({"size": size, "counts": counts})
    with pytest.raises(DataError, match="Not a run-length encoding"):
        decode_rle([1, 2])


@pytest.mark.fault("R8")
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12) | st.text(max_size=12) | st.lists(st.integers(-3, 20), max_size=6))
def test_any_counts_give_a_full_mask_or_an_error(counts):
    try:
        mask = decode_rle({"size": [3, 5], "counts": counts})
    except DataError:
        return
    assert mask.shape == (3, 5)


def test_polygons_fill():
    mask = polygons_to_mask([[1, 1, 5, 1, 5, 4, 1, 4], [6.0, 0, 8, 0, 8, 2]], 6, 8)
    assert mask.dtype == bool
    assert mask[1:4, 1:5].all()
    assert mask[:, :6].sum() == 12
    assert mask[:, 6:].any()


def test_polygons_and_runs_in_text_form_are_the_same_pixels():
    polygons = [[1, 1, 5, 1, 5, 4, 1, 4], [6.0, 0, 8, 0, 8, 2]]
    mask = polygons_to_mask(polygons, 6, 8)
    text = polygons_to_rle(polygons, 6, 8)
    assert isinstance(text["counts"], str)
    assert np.array_equal(decode_rle(text), mask)
    size, runs = rle_runs(text)
    assert (size, int(runs[1::2].sum())) == ((6, 8), int(mask.sum()))
    assert compressed_rle({"size": [6, 8], "counts": runs.tolist()}) == text
    assert compressed_rle({"size": [6, 8], "counts": text["counts"].encode()}) == text
    with pytest.raises(DataError, match="do not fill"):
        compressed_rle({"size": [6, 9], "counts": text["counts"]})


@pytest.mark.fault("R7")
def test_far_points_are_clipped_not_fatal():
    assert polygons_to_mask([[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]], 6, 8).all()


@pytest.mark.fault("R7")
@pytest.mark.parametrize(
    "polygons",
    [[], [[]], [[1, 1]], [[1, 1, 2, 2]], [[1, 1, 2, 2, 3]], [[1, 1, 2, 2, 3, float("nan")]], [["a"] * 6], None, [None]],
)
def test_bad_polygons_are_refused(polygons):
    with pytest.raises(DataError):
        polygons_to_mask(polygons, 6, 8)


@pytest.mark.fault("R7")
def test_the_number_of_points_is_bounded():
    with pytest.raises(DataError, match="too many points"):
        polygons_to_mask([[0.0] * 200_002], 6, 8)
