"""An order that is random, yet reads together what lies together: shards are shuffled, then windows of samples.

Blocks are runs of samples that lie together, such as those of a shard. Their order is drawn, they are cut into windows
of several blocks each, and the samples of a window are permuted. Each sample comes once. So an epoch reads each shard
during one window only, and few archives are in use at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..utils.errors import DataError

WINDOW_BLOCKS = 8  # of the largest block's size; fewer than the archives that a process holds open


def draw_order(random: np.random.Generator, length: int, blocks: Sequence[int] | None = None) -> np.ndarray:
    """Return a random order of ``length`` samples, int64 (length,).

    Args:
        random: what is drawn depends on it alone.
        length: number of samples.
        blocks: lengths of the runs that should be read together, which add up to ``length``; None: any order will do.
    """
    if blocks is None:
        return random.permutation(length)
    blocks = np.asarray(blocks, np.int64)
    if blocks.sum() != length or (blocks < 1).any():
        raise DataError("The blocks do not make up the data set.", value=int(blocks.sum()), allowed=f"{length} samples")
    starts, drawn = np.cumsum(blocks) - blocks, random.permutation(len(blocks))
    samples = np.repeat(starts[drawn] - (np.cumsum(blocks[drawn]) - blocks[drawn]), blocks[drawn]) + np.arange(length)
    for window in _windows(blocks[drawn]):
        samples[window] = random.permutation(samples[window])
    return samples


def _windows(blocks: np.ndarray) -> Iterator[slice]:
    """Yield runs of whole blocks, each as long as `WINDOW_BLOCKS` of the largest allow."""
    most, start, end = WINDOW_BLOCKS * int(blocks.max()), 0, 0
    for block in blocks.tolist():
        if end + block - start > most:
            yield slice(start, end)
            start = end
        end += block
    yield slice(start, end)
