"""Which samples form which batch, as arithmetic: no state to save, the same order for any number of ranks or workers.

A step is a *global batch*, and every rank takes its share of it, so W ranks with b samples each see in a step exactly
what one rank with W * b samples sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..utils.errors import DataError, UsageError
from .shard_order import draw_order

_ORDER = 0x6F72646572  # keeps the shuffling stream apart from the augmentation streams of the same seed


class TrainSampler:
    """Global batches of an epoch, each sample once, the tail included.

    Order = f(seed, epoch). The last batch holds what is left; it may be too small for all ranks, and then some get an
    *empty* list in that step: every rank makes the same number of steps, so a rank with an empty batch must still join
    the collectives of the step.

    Args:
        length: number of samples.
        batch_size_total: samples in a global batch, a multiple of ``world_size``.
        rank, world_size: this process and how many there are.
        seed: of the run.
        shuffle: False visits the samples as they are stored.
        drop_last: leave out a last batch that is not full, as the original Pix2Cap loader does.
        blocks: lengths of the runs of samples that should be read together, see `draw_order`; None: there are none.
    """

    def __init__(
        self,
        length: int,
        batch_size_total: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> None:
        _check(length, batch_size_total)
        if batch_size_total % world_size:
            raise UsageError(
                f"The global batch cannot be shared evenly: {batch_size_total} samples over {world_size} processes.",
                where="TRAIN.BATCH_SIZE_TOTAL",
                value=batch_size_total,
                allowed=f"a multiple of {world_size}",
            )
        if drop_last and length < batch_size_total:
            raise UsageError(
                "The data set is smaller than one global batch, and incomplete batches are dropped.",
                where="TRAIN.BATCH_SIZE_TOTAL",
                value=batch_size_total,
                allowed=f"up to {length}",
            )
        self.length, self.batch_size_total, self.rank, self.world_size = length, batch_size_total, rank, world_size
        self.seed, self.shuffle, self.drop_last, self.blocks = seed, shuffle, drop_last, blocks

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank."""
        full, rest = divmod(self.length, self.batch_size_total)
        return full + (rest > 0 and not self.drop_last)

    def order(self, epoch: int) -> np.ndarray:
        """Return the sample indices of an epoch, (length,)."""
        if not self.shuffle:
            return np.arange(self.length)
        return draw_order(np.random.default_rng([_ORDER, self.seed, epoch]), self.length, self.blocks)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[list[int]]:
        """Yield this rank's share of each global batch, from batch ``start_batch`` of the epoch on."""
        order = self.order(epoch)
        for share in self._shares(start_batch):
            yield order[share].tolist()

    def keys(self, epoch: int, start_batch: int = 0) -> Iterator[list[tuple[int, int]]]:
        """Yield what `batches` does, each sample as (epoch, index): what its augmentation depends on."""
        for indices in self.batches(epoch, start_batch):
            yield [(epoch, index) for index in indices]

    def _shares(self, start_batch: int) -> Iterator[slice]:
        """Yield where in an epoch's order this rank's share of each global batch is."""
        for start in range(
            start_batch * self.batch_size_total, len(self) * self.batch_size_total, self.batch_size_total
        ):
            yield slice(start + self.rank, min(start + self.batch_size_total, self.length), self.world_size)


class EvalSampler:
    """Whole batches dealt to the ranks in turn; how samples are batched does not depend on the number of ranks.

    Args:
        length: number of samples.
        batch_size: samples in a batch.
        rank, world_size: this process and how many there are.
    """

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        _check(length, batch_size)
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size

    def __len__(self) -> int:
        """Return the number of batches of this rank; ranks may differ by one."""
        total = -(-self.length // self.batch_size)
        return len(range(self.rank, total, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        step = self.batch_size * self.world_size
        for start in range(self.rank * self.batch_size, self.length, step):
            yield list(range(start, min(start + self.batch_size, self.length)))


def _check(length: int, batch_size: int) -> None:
    if length < 1:
        raise DataError("The data set is empty.", value=length)
    if batch_size < 1:
        raise UsageError(
            "The batch size is not positive.", where="BATCH_SIZE_TOTAL", value=batch_size, allowed="1 or more"
        )
