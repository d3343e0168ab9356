"""Mixtures as arithmetic: quotas, passes, interleaving, sharing and resuming."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.loader import TrainLoader
from locap.datasets.mixtures import MixedMapper, MixedReader, Mixture, MixtureSampler
from locap.datasets.records import Category, Record
from locap.utils.errors import DataError, UsageError

SOURCES = st.lists(
    st.tuples(st.integers(1, 23), st.floats(0.25, 6, allow_nan=False)), min_size=1, max_size=4
)  # (length, weight)
WORLDS = st.sampled_from([1, 2, 3, 4])


def mixture_of(sources, samples_per_epoch=None):
    lengths, weights = zip(*sources, strict=True)
    return Mixture(lengths, weights, samples_per_epoch)


def source_of(sampler, index):
    return int(np.searchsorted(np.cumsum(sampler.lengths), index, side="right"))


@settings(max_examples=80, deadline=None)
@given(SOURCES, st.integers(0, 3), st.booleans())
def test_every_item_comes_once_in_each_pass(sources, seed, shuffle):
    sampler = MixtureSampler(mixture_of(sources), 4, seed=seed, shuffle=shuffle)
    keys = list(chain.from_iterable(chain.from_iterable(sampler.keys(epoch)) for epoch in range(3)))
    assert len(keys) == 3 * sum(sampler.quotas)
    assert len(set(keys)) == len(keys)  # never twice in a pass
    offset = 0
    for length, quota in zip(sampler.lengths, sampler.quotas, strict=True):
        own = [key for key in keys if offset <= key[1] < offset + length]
        assert len(own) == 3 * quota
        full, rest = divmod(3 * quota, length)
        passes = Counter(number for number, _ in own)
        assert [passes[number] for number in range(full)] == [length] * full  # complete, the tail included
        assert passes[full] == rest
        assert [number for number, _ in own] == sorted(number for number, _ in own)  # one pass after the other
        offset += length


@settings(max_examples=80, deadline=None)
@given(SOURCES, WORLDS, st.integers(1, 4), st.integers(0, 2), st.integers(0, 9))
def test_ranks_together_make_the_batches_of_one_from_any_batch_on(sources, world, per_rank, epoch, start):
    mixture, total = mixture_of(sources), world * per_rank
    alone = list(MixtureSampler(mixture, total, seed=1).keys(epoch))
    ranks = [MixtureSampler(mixture, total, rank=r, world_size=world, seed=1) for r in range(world)]
    shares = [list(rank.keys(epoch, start)) for rank in ranks]
    assert all(len(rank) == len(alone) for rank in ranks)
    assert all(len(share) == max(len(alone) - start, 0) for share in shares)
    for step, batch in enumerate(alone[start:]):
        parts = [share[step] for share in shares]
        assert [part[k] for k in range(len(parts[0])) for part in parts if k < len(part)] == batch
    indices = [[index for _, index in batch] for batch in alone]
    assert list(MixtureSampler(mixture, total, seed=1).batches(epoch)) == indices


@settings(max_examples=80, deadline=None)
@given(SOURCES, st.integers(0, 4), st.integers(1, 30))
def test_every_stretch_holds_each_source_by_its_share(sources, epoch, size):
    sampler = MixtureSampler(mixture_of(sources), 1)
    order = [source_of(sampler, index) for index in sampler.order(epoch)]
    for start in range(0, len(order) - size + 1, 7):
        counts = Counter(order[start : start + size])
        for source, quota in enumerate(sampler.quotas):
            assert abs(counts[source] - size * quota / len(order)) < 2 + len(sampler.quotas)


@settings(max_examples=100, deadline=None)
@given(SOURCES)
def test_quotas_follow_the_weights_and_leave_nothing_out(sources):
    mixture = mixture_of(sources)
    quotas = mixture.quotas()
    longest = max(range(len(sources)), key=lambda s: sources[s][0] / sources[s][1])
    assert quotas[longest] == sources[longest][0]
    for (length, weight), quota in zip(sources, quotas, strict=True):
        assert quota >= length
        assert quota == pytest.approx(weight * sources[longest][0] / sources[longest][1], abs=0.5 + 1e-6)


@settings(max_examples=100, deadline=None)
@given(SOURCES, st.integers(200, 500))
def test_a_given_number_of_samples_is_shared_out(sources, total):
    quotas = mixture_of(sources, total).quotas()
    weights = sum(weight for _, weight in sources)
    assert sum(quotas) == total
    assert all(abs(q - total * w / weights) < 1 for q, (_, w) in zip(quotas, sources, strict=True))


def test_the_published_trace_mixture():
    mixture = Mixture((113_287, 118_287), (1.0, 2.0))  # COCO captions, Localized Narratives
    assert mixture.quotas() == [113_287, 226_574]
    sampler = MixtureSampler(mixture, 256, world_size=8)
    counts = [sum(index < 113_287 for index in batch) for batch in MixtureSampler(mixture, 256).batches(0)]
    assert len(sampler) == len(counts) == 1328
    assert min(counts[:-1]) >= 83
    assert max(counts[:-1]) <= 88


def test_order_depends_on_seed_and_epoch_only():
    mixture = Mixture((20, 30), (1, 2))
    orders = {tuple(MixtureSampler(mixture, 4, seed=s).order(e).tolist()) for s in (0, 1) for e in (0, 1, 2)}
    assert len(orders) == 6
    one, other = MixtureSampler(mixture, 4), MixtureSampler(mixture, 6)
    assert one.order(2).tolist() == other.order(2).tolist()
    assert MixtureSampler(Mixture((2, 4), (1, 2)), 3, shuffle=False).order(1).tolist() == [2, 0, 3, 4, 1, 5]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Mixture((1, 2), (1,)), UsageError, "2 weights"),
        (lambda: Mixture((), ()), UsageError, "differ in number"),
        (lambda: Mixture((1, 2), (1, 0)), UsageError, "not positive"),
        (lambda: Mixture((1, 2), (1, float("nan"))), UsageError, "not positive"),
        (lambda: Mixture((1, 0), (1, 1)), DataError, "source is empty"),
        (lambda: Mixture((1, 1), (1, 1e-9), 10).quotas(), UsageError, r"(?s)no sample in an epoch.*\[10, 0\]"),
        (lambda: Mixture((10**6, 10), (1e-6, 1)).quotas(), UsageError, "too long"),
        (lambda: MixtureSampler(Mixture((3, 3), (1, 1)), 3, world_size=2), UsageError, "a multiple of 2"),
    ],
)
def test_impossible_mixtures(make, error, says):
    with pytest.raises(error, match=says):
        make()


class Numbers:
    """Records whose ids say which source and item they are."""

    categories = (Category(1, "object"),)

    def __init__(self, source: int, length: int) -> None:
        self.source, self.length = source, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return Record(f"{self.source}/{index}", 1, 1)


def test_mixed_readers_and_mappers_agree_on_the_source():
    reader = MixedReader([Numbers(0, 2), Numbers(1, 3)])
    assert [reader[i].image_id for i in range(len(reader))] == ["0/0", "0/1", "1/0", "1/1", "1/2"]
    with pytest.raises(IndexError):
        reader[5]
    mapper = MixedMapper(reader, [lambda *given: ("a", *given[1:]), lambda *given: ("b", *given[1:])])
    assert [mapper(reader[i], 7, i) for i in (1, 2)] == [("a", 7, 1), ("b", 7, 2)]
    with pytest.raises(UsageError, match="mappers differ in number"):
        MixedMapper(reader, [None])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_follows_the_mixture(monkeypatch, workers):
    monkeypatch.setattr("locap.datasets.loader.collate", lambda samples: samples)
    reader = MixedReader([Numbers(0, 2), Numbers(1, 3)])
    mixture = Mixture(reader.lengths, (2, 1))
    loader = TrainLoader(reader, keep, batch_size_total=4, mixture=mixture, num_workers=workers)
    keys = list(MixtureSampler(mixture, 4).keys(1, 1))
    wanted = [[(reader[index].image_id, number, index) for number, index in batch] for batch in keys]
    assert list(loader.batches(1, 1)) == wanted
    assert len(loader) == len(wanted) + 1 == 3


def keep(record, epoch, index):
    return (record.image_id, epoch, index)
