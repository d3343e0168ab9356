"""Readers and mappers run in worker processes; batches come out in the order of the samplers."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ..utils.errors import DataError, LocapError
from . import workers
from .bad_samples import BadSample
from .batches import Batch
from .collate import collate
from .mixtures import MixedReader, Mixture, MixtureSampler
from .reader import Reader
from .records import Record
from .samplers import EvalSampler, TrainSampler
from .transforms.mapper import Mapper, Sample

_log = logging.getLogger(__name__)


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
        prefetch: batches that each loader process has ready.
        timeout: seconds to wait for a loader process; 0: for ever.
        skip_bad: leave out samples that reader or mapper refuse with a `DataError`, and list them in ``Batch.bad``;
            what else is in a batch, and in which order, does not change.
        sources: names of the sources of a `MixedReader`, for ``Batch.bad``.
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
        prefetch: int = 2,
        timeout: float = 0.0,
        skip_bad: bool = True,
        sources: Sequence[str] = (),
    ) -> None:
        self.reader = reader
        order = {"rank": rank, "world_size": world_size, "seed": seed, "shuffle": shuffle, "drop_last": drop_last}
        if mixture is None:
            self.sampler = TrainSampler(len(reader), batch_size_total, blocks=getattr(reader, "blocks", None), **order)
        else:
            self.sampler = MixtureSampler(mixture, batch_size_total, **order)
        samples = _Mapped(reader, mapper, workers.Board(num_workers), sources, skip_bad)
        self._stream = _Stream(samples, num_workers, prefetch, timeout)

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank."""
        return len(self.sampler)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from global batch ``start_batch`` on.

        The last one may be smaller, and empty where the tail is smaller than the number of ranks (`TrainSampler`).
        Any may be where samples are bad.

        Raises:
            LocapError: as the reader or mapper raised it, in whichever process; or a loader process was killed, or
                hangs.
        """
        return self._stream.batches(self.sampler.keys(epoch, start_batch))


class EvalLoader:
    """Evaluation batches of one rank: whole batches, the same whatever the number of ranks.

    A sample that cannot be used is an error: figures of fewer samples would be wrong.

    Args:
        reader, mapper, rank, world_size, num_workers, prefetch, timeout: as `TrainLoader`.
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
        prefetch: int = 2,
        timeout: float = 0.0,
    ) -> None:
        self.reader = reader
        self.sampler = EvalSampler(len(reader), batch_size, rank=rank, world_size=world_size)
        samples = _Mapped(reader, mapper, workers.Board(num_workers))
        self._stream = _Stream(samples, num_workers, prefetch, timeout)

    def __len__(self) -> int:
        """Return the number of batches of this rank; ranks may differ by one."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.batches([(0, index) for index in indices] for indices in self.sampler)


class _Plan:
    """The batch sampler of a `DataLoader` that lives over many epochs: what the next pass yields is set before it."""

    def __init__(self) -> None:
        self.batches: Iterator[list[tuple[int, int]]] = iter(())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches


class _Mapped(Dataset):
    """Samples addressed by (epoch, index). A user error is returned: torch would make a traceback of a raised one."""

    def __init__(
        self,
        reader: Reader,
        mapper: Mapper,
        board: workers.Board,
        sources: Sequence[str] = (),
        skip_bad: bool = False,
    ) -> None:
        self.reader, self.mapper, self.board = reader, mapper, board
        self.sources, self.skip_bad = list(sources), skip_bad

    def __getitem__(self, key: tuple[int, int]) -> Sample | BadSample | LocapError:
        epoch, index = key
        record = None
        with self.board.at(index):
            try:
                record = self.reader[index]
                return self.mapper(record, epoch, index)
            except DataError as err:
                return self._bad(err, index, record) if self.skip_bad else err
            except LocapError as err:
                return err
            except Exception as err:  # a defect of a reader or mapper; without the sample nobody could find it
                return _defect(err, index, record)

    def _bad(self, err: DataError, index: int, record: Record | None) -> BadSample:
        source, item = self._origin(index)
        image_id = None if record is None else record.image_id
        where = err.where or (f"sample {index}" if record is None else workers.file_of(record))
        return BadSample(source, item, image_id, where, err.what)

    def _origin(self, index: int) -> tuple[str, int]:
        """Return the name of a sample's source and its index there."""
        if not isinstance(self.reader, MixedReader):
            return self.sources[0] if self.sources else "", index
        source, item = self.reader.locate(index)
        return self.sources[source] if self.sources else str(source), item


def _defect(err: Exception, index: int, record: Record | None) -> LocapError:
    _log.error("Sample %d could not be made.", index, exc_info=err)
    frames = traceback.extract_tb(err.__traceback__)
    code = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name}" if frames else None
    return LocapError(
        f"A sample could not be made: {type(err).__name__}: {err}",
        where=f"sample {index}" + ("" if record is None else f", image {record.image_id} ({workers.file_of(record)})"),
        value=code,
    )


def _collate(samples: Sequence[Sample | BadSample | LocapError]) -> Batch | LocapError:
    failed = next((sample for sample in samples if isinstance(sample, LocapError)), None)
    if failed is not None:
        return failed
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    batch = collate([sample for sample in samples if not isinstance(sample, BadSample)])
    if bad:
        batch.bad = bad
    workers.trim_worker()
    return batch


def _collate_by_value(samples: Sequence[Sample | BadSample | LocapError]) -> workers.ByValue | LocapError:
    batch = _collate(samples)
    return batch if isinstance(batch, LocapError) else workers.ByValue.pack(batch)


class _Stream:
    """A `DataLoader` whose processes live over many epochs, and whose errors say what happened.

    Args:
        samples: what the batches are made of.
        num_workers, prefetch, timeout: as `TrainLoader`.
    """

    def __init__(self, samples: _Mapped, num_workers: int, prefetch: int, timeout: float) -> None:
        self._samples, self._timeout, self._plan = samples, timeout, _Plan()
        options = {}
        if num_workers:
            workers.allow_open_files()
            options = {"prefetch_factor": prefetch, "timeout": timeout, "worker_init_fn": samples.board.enter}
        shared = not num_workers or workers.shares_memory(num_workers, prefetch)
        self._loader = DataLoader(
            samples,
            batch_sampler=self._plan,
            collate_fn=_collate if shared else _collate_by_value,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # torch draws a worker seed even where nothing uses it; not the global stream
            **options,
        )

    def batches(self, keys: Iterator[list[tuple[int, int]]]) -> Iterator[Batch]:
        """Yield the batches of some lists of (epoch, index)."""
        self._plan.batches = keys
        stream = self._raw()
        for batch in stream:
            if isinstance(batch, LocapError):
                try:
                    raise batch
                finally:
                    del batch  # else error, traceback and frame hold each other, and workers end only after a time-out
            yield batch.batch() if isinstance(batch, workers.ByValue) else batch

    def _raw(self) -> Iterator[Batch | workers.ByValue | LocapError]:
        iterator = None
        while True:
            try:
                with workers.deaths.waiting():
                    if iterator is None:
                        iterator = iter(self._loader)
                        workers.deaths.watch()
                    batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as err:
                raise workers.explained(err, self._samples.board, self._samples.reader, self._timeout) from None
            yield batch
