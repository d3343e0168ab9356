"""What holds for every protocol, whoever adds one: `SAMPLES` in samples.py needs records for it."""

from __future__ import annotations

import json
from itertools import accumulate

import pytest

from locap.evaluation import EVALUATORS
from locap.utils.errors import DataError

from .conftest import CATEGORIES
from .samples import SAMPLES

SHARES = [(1.0,), (0.6, 0.4), (0.0, 1.0), (0.5, 0.1, 0.4, 0.0), (0.0, 0.0, 0.9, 0.1), (0.3, 0.3, 0.3, 0.1)]
EVERY = [(protocol, variant) for protocol, evaluator in EVALUATORS.items() for variant in evaluator.variants]

pytestmark = pytest.mark.usefixtures("meteor")


@pytest.fixture
def sample(protocol, variant, request):
    assert protocol in SAMPLES, f"tests/evaluation/samples.py: SAMPLES has no records for the protocol {protocol}"
    return SAMPLES[protocol](variant, request)


@pytest.fixture
def make(protocol, variant, sample):
    order = [record.image_id for record in sample.truth]
    return lambda: EVALUATORS[protocol](CATEGORIES, variant=variant, image_order=order, **sample.options)


def split(items, shares):
    """Return consecutive parts of about these shares; some are empty, none need be equal."""
    ends = [round(len(items) * total) for total in accumulate(shares)]
    return [items[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def evaluated(evaluator, pairs):
    for truth, prediction in pairs:
        evaluator.update(truth, prediction)
    return evaluator


@pytest.mark.parametrize(("protocol", "variant"), EVERY)
def test_any_number_of_ranks_gives_the_same_bits(protocol, variant, make, sample):
    pairs = list(zip(sample.truth, sample.predictions, strict=True))
    whole = evaluated(make(), pairs).compute()
    assert whole.figures, "a sample without figures shows nothing"
    assert not whole.unavailable
    for shares in SHARES:
        parts = split(pairs, shares)
        assert sum(map(len, parts)) == len(pairs)
        states = [json.dumps(evaluated(make(), part[::-1]).state()) for part in parts]
        merged = make()
        for state in reversed(states):
            merged.merge_state(json.loads(state))
        assert merged.compute() == whole, f"{len(shares)} ranks with {list(map(len, parts))} images"


@pytest.mark.parametrize(("protocol", "variant"), EVERY)
def test_no_sample_is_scored_twice(make, sample):
    pairs = list(zip(sample.truth, sample.predictions, strict=True))
    evaluator, other = evaluated(make(), pairs[:2]), evaluated(make(), pairs[1:3])
    before = json.dumps(evaluator.state())
    with pytest.raises(DataError, match=r"1 image\(s\) were evaluated twice"):
        evaluator.update(*pairs[0])
    with pytest.raises(DataError, match=r"1 image\(s\) were evaluated twice"):
        evaluator.merge_state(json.loads(json.dumps(other.state())))
    assert json.dumps(evaluator.state()) == before


@pytest.mark.parametrize(("protocol", "variant"), EVERY)
def test_without_images_nothing_fails(make):
    result = make().compute()
    assert all(value == 0 or name in result.undefined for name, value in result.figures.items())


def test_every_protocol_is_listed_under_its_own_name():
    assert {name: evaluator.protocol for name, evaluator in EVALUATORS.items()} == {name: name for name in EVALUATORS}
    assert all(set(evaluator.decisive) <= set(evaluator.options) for evaluator in EVALUATORS.values())
    assert not any("key" in name or "url" in name for e in EVALUATORS.values() for name in e.decisive)  # maybe secrets
