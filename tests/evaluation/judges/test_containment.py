from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locap.evaluation.judges import containment_score

WORDS = st.lists(st.sampled_from(["red", "mug", "-1", "3/4", "0.75", "a", "+"]), min_size=1, max_size=3).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("-1 <AND> -5", "x = -1 or x = -5", 1.0),
        ("-1 <AND> -5", "x=-5, or x=\u22121.", 1.0),
        ("-1 <AND> -5", "x = -1", 0.0),
        ("-1", "x = 1", 0.0),
        ("1", "x = -1", 0.0),
        ("1", "3-1", 1.0),
        ("0.75<OR>x=0.75<OR>3/4", "The value is 3/4.", 1.0),
        ("0.75<OR>x=0.75<OR>3/4", "3 / 4", 0.0),
        ("a <AND> b <OR> c", "c", 1.0),
        ("a <AND> b <OR> c", "a", 0.0),
        ("5", "15", 0.0),
        ("cat", "a category", 0.0),
        ("Red Mug", "the red, mug", 1.0),
        ("1,000", "1000 people", 1.0),
        ("1,00", "100", 0.0),
        ("caf\u00e9", "CAFE\u0301", 1.0),
        ("+", "The sign is +.", 1.0),
        ("+", "The sign is -.", 0.0),
        ("yes", "", 0.0),
        ("<OR>", "anything", 0.0),
        ("yes<OR>", "no", 0.0),
    ],
)
def test_containment_by_hand(reference, answer, score):
    assert containment_score(reference, answer) == score


@given(st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_an_alternative_is_enough_and_all_its_elements_are_needed(alternatives, data):
    reference = "<OR>".join("<AND>".join(elements) for elements in alternatives)
    chosen = data.draw(st.sampled_from(alternatives))
    assert containment_score(reference, " ; ".join(data.draw(st.permutations(chosen)))) == 1.0
    assert containment_score(reference, "nothing of it") == 0.0
    assert containment_score(reference + "<AND>zebra", " ".join(alternatives[-1])) == float(
        any(containment_score("<AND>".join(a), " ".join(alternatives[-1])) for a in alternatives[:-1])
    )
