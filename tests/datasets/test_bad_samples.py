"""The list of samples that could not be used, and its cap."""

from __future__ import annotations

import json

import pytest

from locap.datasets.bad_samples import BadSample, BadSampleLog, from_text, most_bad, to_text
from locap.utils.errors import DataError


def bad(index, source="a_set", reason="The image does not exist."):
    return BadSample(source, index, 100 + index, f"/images/{index}.jpg", reason)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_sample_is_listed_once(tmp_path):
    log = BadSampleLog(tmp_path / "run" / "bad_samples.jsonl", samples=1000)
    assert log.add(3, 0, [bad(5), bad(6), bad(5)]) == 2
    assert log.add(9, 1, [bad(6), bad(6, "another")]) == 1
    assert log.add(10, 1, []) == 0
    assert [(line["step"], line["source"], line["index"]) for line in lines(log.path)] == [
        (3, "a_set", 5),
        (3, "a_set", 6),
        (9, "another", 6),
    ]
    assert lines(log.path)[0] == {
        "step": 3,
        "epoch": 0,
        "source": "a_set",
        "index": 5,
        "image": 105,
        "where": "/images/5.jpg",
        "reason": "The image does not exist.",
    }


def test_samples_travel_between_ranks_as_text():
    bads = [bad(1), BadSample("", 2, None, "größe\n", "x"), BadSample("s", 3, "name", "w", "y")]
    assert from_text(to_text(bads)) == bads
    assert from_text(to_text([])) == []


def test_the_larger_of_number_and_share_counts():
    assert most_bad(5000, 100, 0.001) == 100
    assert most_bad(200_000, 100, 0.001) == 200
    assert most_bad(10, 0, 0.0) == 0


@pytest.mark.fault("R14")
def test_beyond_the_cap_the_run_stops_with_reasons_and_paths(tmp_path):
    log = BadSampleLog(tmp_path / "bad_samples.jsonl", samples=5000, max_bad_samples=411, max_bad_share=0.0)
    missing = [bad(index) for index in range(400)]
    torn = [bad(400 + k, reason=f"The image is truncated or corrupt: {k} bytes not processed.") for k in range(11)]
    assert log.add(1, 0, [*missing, *torn]) == 411
    with pytest.raises(DataError) as caught:
        log.add(2, 0, [bad(4999, reason="The image is a directory.")])
    text = str(caught.value)
    assert text.startswith("412 of 5 000 samples unusable:\n  400 x The image does not exist: /images/0.jpg, /images/1")
    assert "  11 x The image is truncated or corrupt: … bytes not processed: /images/400.jpg" in text
    assert "  1 x The image is a directory: /images/4999.jpg\n" in text
    assert len(text.splitlines()) <= 12
    assert "up to 411" in text
    assert "MAX_BAD_SAMPLES" in text
    assert len(lines(log.path)) == 412


@pytest.mark.fault("R15")
def test_a_data_set_without_any_good_sample_stops_before_its_second_epoch(tmp_path):
    log = BadSampleLog(tmp_path / "bad_samples.jsonl", samples=7)
    log.add(1, 0, [bad(index) for index in range(6)])
    with pytest.raises(DataError, match="7 of 7 samples unusable"):
        log.add(2, 0, [bad(6)])


def test_a_cap_of_zero_allows_none(tmp_path):
    log = BadSampleLog(tmp_path / "bad_samples.jsonl", samples=7, max_bad_samples=0, max_bad_share=0.0)
    with pytest.raises(DataError, match=r"1 of 7 samples unusable:\n  1 x The image does not exist"):
        log.add(1, 0, [bad(2)])


def test_a_resumed_run_counts_on_from_its_step(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    log = BadSampleLog(path, samples=1000)
    for step in (2, 4, 6):
        log.add(step, 0, [bad(step)])
    with path.open("a") as file:
        file.write('{"step": 3, "epo')  # killed while it wrote
    resumed = BadSampleLog(path, samples=1000, max_bad_samples=3, max_bad_share=0.0, resume_step=4)
    assert len(resumed) == 2
    assert [line["step"] for line in lines(path)] == [2, 4]
    assert resumed.add(5, 0, [bad(2)]) == 0
    assert resumed.add(6, 0, [bad(6)]) == 1
    assert [line["step"] for line in lines(path)] == [2, 4, 6]
    with pytest.raises(DataError, match="4 of 1 000"):
        resumed.add(7, 0, [bad(7)])
    assert len(BadSampleLog(path, samples=1000)) == 0
    assert path.read_text() == ""
