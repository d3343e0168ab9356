"""Readers and mappers run in worker processes; batches come out in the order of the samplers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from ..utils.errors import LocapError
from .batches import Batch
from .collate import collate
from .mixtures import Mixture, MixtureSampler
from .reader import Reader
from .samplers import EvalSampler, TrainSampler
from .transforms.mapper import Mapper, Sample


class TrainLoader:
    """Training batches of one rank, resumable at any global batch.

    Args:
        reader: where records come from.
        mapper: called with (record, epoch, index), its randomness depends on nothing else; of a mixture, the pass over
            the source takes the place of the epoch.
        batch_size_total: samples in a global batch, a multiple of ``world_size``.
        rank, world_size: this process and how many there are.
        num_workers: loader processes; 0 reads in this one. It changes no batch.
        seed: of the order.
        shuffle, drop_last: as `TrainSampler`.
        mixture: how the sources of a `MixedReader` are weighted (`MixtureSampler`); None visits each record once.
    """

    def __init__(
        self,
        reader: Reader,
        mapper: Mapper,
        *,
        batch_size_total: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        mixture: Mixture | None = None,
    ) -> None:
        self.reader = reader
        order = {"rank": rank, "world_size": world_size, "seed": seed, "shuffle": shuffle, "drop_last": drop_last}
        if mixture is None:
            self.sampler = TrainSampler(len(reader), batch_size_total, blocks=getattr(reader, "blocks", None), **order)
        else:
            self.sampler = MixtureSampler(mixture, batch_size_total, **order)
        self._plan = _Plan()
        self._loader = _data_loader(reader, mapper, self._plan, num_workers)

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank."""
        return len(self.sampler)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from global batch ``start_batch`` on.

        The last one may be smaller, and empty where the tail is smaller than the number of ranks (`TrainSampler`).

        Raises:
            LocapError: as the reader or mapper raised it, in whichever process.
        """
        self._plan.batches = self.sampler.keys(epoch, start_batch)
        return _unwrapped(self._loader)


class EvalLoader:
    """Evaluation batches of one rank: whole batches, the same whatever the number of ranks.

    Args:
        reader, mapper, rank, world_size, num_workers: as `TrainLoader`.
        batch_size: samples in a batch.
    """

    def __init__(
        self,
        reader: Reader,
        mapper: Mapper,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.reader = reader
        self.sampler = EvalSampler(len(reader), batch_size, rank=rank, world_size=world_size)
        self._plan = _Plan()
        self._loader = _data_loader(reader, mapper, self._plan, num_workers)

    def __len__(self) -> int:
        """Return the number of batches of this rank; ranks may differ by one."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._plan.batches = ([(0, index) for index in indices] for indices in self.sampler)
        return _unwrapped(self._loader)


class _Plan:
    """The batch sampler of a `DataLoader` that lives over many epochs: what the next pass yields is set before it."""

    def __init__(self) -> None:
        self.batches: Iterator[list[tuple[int, int]]] = iter(())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches


class _Mapped(Dataset):
    """Samples addressed by (epoch, index). A user error is returned: torch would make a traceback of a raised one."""

    def __init__(self, reader: Reader, mapper: Mapper) -> None:
        self.reader, self.mapper = reader, mapper

    def __getitem__(self, key: tuple[int, int]) -> Sample | LocapError:
        epoch, index = key
        try:
            return self.mapper(self.reader[index], epoch, index)
        except LocapError as err:
            return err


def _collate(samples: Sequence[Sample | LocapError]) -> Batch | LocapError:
    failed = next((sample for sample in samples if isinstance(sample, LocapError)), None)
    return collate(samples) if failed is None else failed


def _data_loader(reader: Reader, mapper: Mapper, plan: _Plan, num_workers: int) -> DataLoader:
    if num_workers:
        _allow_open_files()
    return DataLoader(
        _Mapped(reader, mapper),
        batch_sampler=plan,
        collate_fn=_collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # torch draws a worker seed even where nothing uses it; not from the global stream
    )


def _allow_open_files(wanted: int = 65_536) -> None:
    """Raise the limit on open files: every tensor on its way from a worker is one, and 1024 is a common limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; a fixed limit may still suffice
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _unwrapped(loader: DataLoader) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, LocapError):
            try:
                raise batch
            finally:
                del batch  # else error, traceback and frame hold each other, and workers end only after a time-out
        yield batch
