"""Orders that keep blocks together: as exact as those that don't, and local."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.loader import TrainLoader
from locap.datasets.mixtures import MixedReader, Mixture, MixtureSampler
from locap.datasets.records import Record
from locap.datasets.samplers import TrainSampler
from locap.datasets.shard_order import WINDOW_BLOCKS, draw_order
from locap.datasets.transforms.mapper import EvalMapper
from locap.utils.errors import DataError

BLOCKS = st.lists(st.integers(1, 9), min_size=1, max_size=24)


class Numbers:
    """Records that are their index, in blocks."""

    categories = ()

    def __init__(self, length: int, blocks: list[int] | None = None) -> None:
        self.length = length
        if blocks:
            self.blocks = blocks

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return Record(index, 2, 2, np.zeros((2, 2, 3), np.uint8))


@settings(max_examples=150, deadline=None)
@given(BLOCKS, st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3), st.integers(0, 9))
def test_ranks_together_read_each_sample_once_from_any_batch_on(blocks, world, per_rank, seed, epoch, start):
    length, total = sum(blocks), world * per_rank
    alone = list(TrainSampler(length, total, seed=seed, blocks=blocks).batches(epoch))
    assert sorted(chain.from_iterable(alone)) == list(range(length))
    ranks = [TrainSampler(length, total, rank=r, world_size=world, seed=seed, blocks=blocks) for r in range(world)]
    shares = [list(rank.batches(epoch, start)) for rank in ranks]
    for step, batch in enumerate(alone[start:]):
        parts = [share[step] for share in shares]
        assert [part[k] for k in range(len(parts[0])) for part in parts if k < len(part)] == batch


@settings(max_examples=100, deadline=None)
@given(BLOCKS, st.integers(0, 5))
def test_a_block_is_read_within_one_window(blocks, seed):
    order = draw_order(np.random.default_rng(seed), sum(blocks), blocks)
    block_of = np.repeat(np.arange(len(blocks)), blocks)[order]
    window = WINDOW_BLOCKS * max(blocks)
    for block in range(len(blocks)):
        places = np.flatnonzero(block_of == block)
        assert places[-1] - places[0] < window
    for start in range(0, len(order), window):  # a stretch meets at most two windows, each of whole blocks
        inside = set(block_of[start : start + window].tolist())
        assert sum(blocks[block] for block in inside) <= 2 * window + max(blocks)


def test_shards_and_samples_are_shuffled_by_seed_and_epoch():
    blocks = [10] * 40
    orders = [TrainSampler(400, 4, seed=s, blocks=blocks).order(e).tolist() for s in (0, 1) for e in (0, 1, 2)]
    assert len(set(map(tuple, orders))) == 6
    assert TrainSampler(400, 8, seed=1, blocks=blocks).order(2).tolist() == orders[-1]
    first = [order[:80] for order in orders]
    assert all(len({index // 10 for index in window}) == WINDOW_BLOCKS for window in first)
    assert len({tuple(sorted({index // 10 for index in window})) for window in first}) == 6
    assert len({index // 10 for index in orders[0][:10]}) > 3, "samples of several shards are mixed"
    assert TrainSampler(400, 4, shuffle=False, blocks=blocks).order(1).tolist() == list(range(400))


def test_without_blocks_the_order_is_the_plain_permutation():
    """Bits that older runs depend on."""
    plain = np.random.default_rng([0x6F72646572, 3, 2]).permutation(17).tolist()
    assert TrainSampler(17, 4, seed=3).order(2).tolist() == plain
    mixture = MixtureSampler(Mixture([5, 7], [1, 1]), 4, seed=3)
    assert (
        mixture.order(1).tolist()
        == MixtureSampler(Mixture([5, 7], [1, 1], None, [None, None]), 4, seed=3).order(1).tolist()
    )
    taken = MixtureSampler(Mixture([5], [1]), 4, seed=3).order(1).tolist()
    assert taken == np.random.default_rng([0x70617373, 3, 0, 1]).permutation(5).tolist()


@settings(max_examples=60, deadline=None)
@given(BLOCKS, st.integers(1, 30), st.sampled_from([1, 2, 4]), st.integers(0, 6))
def test_a_mixture_passes_over_shards_exactly_once(blocks, other, world, start):
    lengths, total = [sum(blocks), other], 4
    mixture = Mixture(lengths, lengths, None, [blocks, None])
    alone = list(MixtureSampler(mixture, total, seed=1).keys(2))
    assert sorted(chain.from_iterable(alone)) == [(2, index) for index in range(sum(lengths))]
    ranks = [MixtureSampler(mixture, total, rank=rank, world_size=world, seed=1) for rank in range(world)]
    shares = [list(rank.keys(2, start)) for rank in ranks]
    for step, batch in enumerate(alone[start:]):
        assert sorted(chain.from_iterable(share[step] for share in shares)) == sorted(batch)


def test_the_pass_over_shards_in_a_mixture_is_local():
    blocks = [10] * 40
    order = MixtureSampler(Mixture([400, 400], [1, 1], None, [blocks, None]), 8, seed=1).order(0)
    of_shards = order[order < 400]
    assert len({index // 10 for index in of_shards[:80].tolist()}) == WINDOW_BLOCKS


def test_a_reader_tells_the_loader_its_blocks():
    mixed = MixedReader([Numbers(40, [10] * 4), Numbers(5)])
    assert mixed.blocks_of == [[10] * 4, None]
    assert mixed.blocks == [10] * 4 + [1] * 5
    assert MixedReader([Numbers(3), Numbers(4)]).blocks is None
    loader = TrainLoader(mixed, EvalMapper(shortest=None), batch_size_total=3, seed=2)
    expected = list(TrainSampler(45, 3, seed=2, blocks=mixed.blocks).batches(1))
    assert [batch.image_ids for batch in loader.batches(1, 4)] == [
        [i if i < 40 else i - 40 for i in batch] for batch in expected[4:]
    ]


@pytest.mark.parametrize("blocks", [[3, 3], [4, 0, 3], [8, -1]])
def test_blocks_must_make_up_the_data_set(blocks):
    with pytest.raises(DataError, match="do not make up"):
        TrainSampler(7, 2, blocks=blocks).order(0)
