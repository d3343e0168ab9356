"""Several sources in one stream of batches, as arithmetic: no state to save, the same for any number of ranks.

Every source s has a length n_s and a weight w_s > 0. A *pass* over a source visits each of its items once. A mixture
epoch takes a fixed number m_s of samples from each source, its *quota*:

    by default m_s = round(w_s max_r (n_r / w_r)): the source that is longest for its weight is passed exactly once,
    every other at least once; or, for a given number of samples per epoch, this number shared out in proportion to the
    weights by the method of largest remainders.

Passes go on from one mixture epoch to the next: sample j of source s in epoch e is item k mod n_s of pass k // n_s,
where k = e m_s + j, so every item occurs exactly once in each pass, the tail included, whatever the quotas are. The
order of a pass is f(seed, source, pass).

Within an epoch sample j of source s stands at (j + u) / m_s, u uniform in [0, 1) and f(seed, epoch), and samples are
sorted by that place: any stretch of the epoch holds of each source its share, give or take a few samples, so tasks meet
in one batch. Cutting the stretch into global batches and dealing those to ranks is as in `TrainSampler`.

A sample is addressed by (pass, index): index counts through the sources one after the other, and the pass takes the
place of the epoch in augmentation, so an item that comes twice in a mixture epoch is augmented differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..utils.errors import DataError, UsageError
from .reader import Reader
from .records import Record
from .samplers import TrainSampler
from .shard_order import draw_order

if TYPE_CHECKING:
    from .transforms.mapper import Mapper, Sample

_PLACES, _PASS = 0x6D6978, 0x70617373  # keep the streams of random numbers of one seed apart
_MOST_SAMPLES = 10**9


@dataclass(frozen=True)
class Mixture:
    """How many samples of each source an epoch takes.

    Attributes:
        lengths: numbers of items.
        weights: how often the sources are drawn, relative to each other.
        samples_per_epoch: None lets the source that is longest for its weight be passed exactly once.
        blocks: of each source the runs of items that should be read together, or None (`draw_order`); empty: of none.
    """

    lengths: Sequence[int]
    weights: Sequence[float]
    samples_per_epoch: int | None = None
    blocks: Sequence[Sequence[int] | None] = ()

    def __post_init__(self) -> None:
        if not self.lengths or len(self.weights) != len(self.lengths):
            allowed = f"{len(self.lengths)} weights, one per source"
            raise UsageError("Sources and weights differ in number.", value=list(self.weights), allowed=allowed)
        if not all(np.isfinite(weight) and weight > 0 for weight in self.weights):
            raise UsageError("A weight is not positive.", value=list(self.weights), allowed="finite numbers above 0")
        if min(self.lengths) < 1:
            raise DataError("A source is empty.", value=list(self.lengths))

    def quotas(self) -> list[int]:
        """Return the number of samples of each source in an epoch.

        Raises:
            UsageError: a source would never be seen, or the epoch would be absurdly long.
        """
        weights = np.asarray(self.weights, np.float64)
        if self.samples_per_epoch is None:
            exact = weights * (np.asarray(self.lengths) / weights).max()
            if exact.sum() > _MOST_SAMPLES:
                fix = "give the number of samples per epoch, or less uneven weights"
                raise UsageError("An epoch of the mixture is too long.", value=float(exact.sum()), fix=fix)
            return [max(round(count), length) for count, length in zip(exact.tolist(), self.lengths, strict=True)]
        return self._shared_out(self.samples_per_epoch, weights / weights.sum())

    def _shared_out(self, total: int, shares: np.ndarray) -> list[int]:
        exact = shares * total
        quotas = np.floor(exact).astype(int)
        largest = np.argsort(quotas - exact, kind="stable")
        quotas[largest[: total - quotas.sum()]] += 1
        if quotas.min() < 1:
            allowed = f"more than {total}, so that each of the {len(quotas)} sources has a sample"
            raise UsageError("A source has no sample in an epoch.", value=quotas.tolist(), allowed=allowed)
        return quotas.tolist()


class MixtureSampler(TrainSampler):
    """Global batches of a mixture, see the module's description.

    Args:
        mixture: lengths and weights of the sources.
        batch_size_total, rank, world_size, seed: as `TrainSampler`.
        shuffle: False takes the items of each source as they are stored, and spreads sources evenly.
        drop_last: leave out a last batch that is not full; its items are then missing in that pass.
    """

    def __init__(
        self,
        mixture: Mixture,
        batch_size_total: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.lengths, self.quotas = list(mixture.lengths), mixture.quotas()
        self._blocks_of = list(mixture.blocks) or [None] * len(self.lengths)
        self._offsets = np.cumsum([0, *self.lengths])
        super().__init__(
            sum(self.quotas),
            batch_size_total,
            rank=rank,
            world_size=world_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
        )

    def order(self, epoch: int) -> np.ndarray:
        """Return the sample indices of an epoch, (sum of the quotas,)."""
        return self.order_of_keys(epoch)[:, 1]

    def order_of_keys(self, epoch: int) -> np.ndarray:
        """Return (pass, index) of the samples of an epoch, int64 (sum of the quotas, 2)."""
        random = np.random.default_rng([_PLACES, self.seed, epoch])
        places = [(np.arange(quota) + (random.random(quota) if self.shuffle else 0.5)) / quota for quota in self.quotas]
        keys = np.concatenate([self._taken(source, epoch) for source in range(len(self.quotas))])
        return keys[np.argsort(np.concatenate(places), kind="stable")]

    def keys(self, epoch: int, start_batch: int = 0) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's share of each global batch as (pass, index), from batch ``start_batch`` on."""
        keys = self.order_of_keys(epoch)
        for share in self._shares(start_batch):
            yield [tuple(key) for key in keys[share].tolist()]

    def _taken(self, source: int, epoch: int) -> np.ndarray:
        """Return (pass, index) of a source's samples in an epoch, in its own order, int64 (quota, 2)."""
        length, quota = self.lengths[source], self.quotas[source]
        passes, items = np.divmod(np.arange(epoch * quota, (epoch + 1) * quota), length)
        if self.shuffle:
            for number in range(int(passes[0]), int(passes[-1]) + 1):
                random = np.random.default_rng([_PASS, self.seed, source, number])
                order = draw_order(random, length, self._blocks_of[source])
                inside = slice(*np.searchsorted(passes, [number, number + 1]))
                items[inside] = order[items[inside]]
        return np.stack([passes, items + self._offsets[source]], 1)


class MixedReader:
    """Several readers behind one index, which counts through them one after the other.

    Args:
        readers: the sources; their categories may differ, ``categories`` are those of the first.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers, self.categories = list(readers), tuple(readers[0].categories)
        self.lengths = [len(reader) for reader in self.readers]
        self.blocks_of = [getattr(reader, "blocks", None) for reader in self.readers]
        self._ends = np.cumsum(self.lengths)

    @property
    def blocks(self) -> list[int] | None:
        """Runs of items that should be read together; items of a source that has none are runs of their own."""
        if not any(self.blocks_of):
            return None
        runs = [blocks or [1] * length for blocks, length in zip(self.blocks_of, self.lengths, strict=True)]
        return [run for blocks in runs for run in blocks]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        source, item = self.locate(index)
        return self.readers[source][item]

    def locate(self, index: int) -> tuple[int, int]:
        """Return (source, index in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        source = int(np.searchsorted(self._ends, index, side="right"))
        return source, index - int(self._ends[source]) + self.lengths[source]


class MixedMapper:
    """The mapper of each source, for the samples of a `MixedReader`.

    Args:
        reader: whose indices are mapped.
        mappers: one per source.
    """

    def __init__(self, reader: MixedReader, mappers: Sequence[Mapper]) -> None:
        if len(mappers) != len(reader.readers):
            allowed = f"{len(reader.readers)}, one per source"
            raise UsageError("Sources and mappers differ in number.", value=len(mappers), allowed=allowed)
        self._reader, self.mappers = reader, list(mappers)

    def __call__(self, record: Record, epoch: int, index: int) -> Sample:
        source, _ = self._reader.locate(index)
        return self.mappers[source](record, epoch, index)
