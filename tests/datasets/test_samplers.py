"""Order, sharing and resuming as arithmetic."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.samplers import EvalSampler, TrainSampler
from locap.utils.errors import DataError, UsageError

SIZES = st.integers(1, 40)
WORLDS = st.sampled_from([1, 2, 3, 4, 8])


@pytest.mark.fault("C5")
@settings(max_examples=150, deadline=None)
@given(SIZES, WORLDS, st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_ranks_together_make_the_batches_of_one(length, world, per_rank, seed, epoch):
    total = world * per_rank
    alone = list(TrainSampler(length, total, seed=seed).batches(epoch))
    ranks = [TrainSampler(length, total, rank=r, world_size=world, seed=seed) for r in range(world)]
    shares = [list(rank.batches(epoch)) for rank in ranks]
    assert all(len(share) == len(rank) == len(alone) for share, rank in zip(shares, ranks, strict=True))
    for step, batch in enumerate(alone):
        parts = [share[step] for share in shares]
        merged = [part[k] for k in range(len(parts[0])) for part in parts if k < len(part)]
        assert merged == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len(batch) == total or step == len(alone) - 1
    assert sorted(chain.from_iterable(alone)) == list(range(length))  # the tail included, nothing twice


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(1, 7), st.integers(0, 12))
def test_resuming_continues_the_same_stream(length, total, start):
    sampler = TrainSampler(length, total, seed=3)
    assert list(sampler.batches(2, start)) == list(sampler.batches(2))[start:]


def test_order_depends_on_seed_and_epoch_only():
    orders = [tuple(TrainSampler(30, 4, seed=s).order(e).tolist()) for s in (0, 1) for e in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert TrainSampler(30, 6, seed=0).order(1).tolist() == list(orders[1])
    assert TrainSampler(5, 2, shuffle=False).order(1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.fault("C5")
def test_a_small_tail_leaves_some_ranks_empty_but_in_step():
    shares = [list(TrainSampler(9, 4, rank=r, world_size=4).batches(0)) for r in range(4)]
    assert [len(share) for share in shares] == [3, 3, 3, 3]
    assert [len(share[-1]) for share in shares] == [1, 0, 0, 0]


def test_epoch_length_with_and_without_the_tail():
    assert len(TrainSampler(18_212, 32, world_size=8)) == 570
    original = TrainSampler(18_212, 32, world_size=8, drop_last=True)
    assert len(original) == 569
    assert sum(1 for _ in original.batches(0)) == 569


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 17), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_deals_whole_batches(length, size, world):
    alone = list(EvalSampler(length, size))
    dealt = [list(EvalSampler(length, size, rank=r, world_size=world)) for r in range(world)]
    assert [len(EvalSampler(length, size, rank=r, world_size=world)) for r in range(world)] == [len(d) for d in dealt]
    assert sorted(chain.from_iterable(dealt)) == alone
    assert list(chain.from_iterable(alone)) == list(range(length))


def test_impossible_sizes_show_the_arithmetic():
    with pytest.raises(UsageError, match=r"5 samples over 2 processes(.|\n)*a multiple of 2"):
        TrainSampler(10, 5, world_size=2)
    with pytest.raises(UsageError, match="smaller than one global batch"):
        TrainSampler(3, 4, drop_last=True)
    with pytest.raises(DataError, match="empty"):
        TrainSampler(0, 4)
    with pytest.raises(UsageError, match="not positive"):
        EvalSampler(3, 0)
