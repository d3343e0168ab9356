"""Broken files and dying loader processes: what training leaves out, and what stops it."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from locap.datasets import workers
from locap.datasets.bad_samples import BadSampleLog
from locap.datasets.benchmarks.memory import children
from locap.datasets.benchmarks.scenes import draw_data_set, open_data_set
from locap.datasets.categories import COCO_PANOPTIC
from locap.datasets.loader import EvalLoader, TrainLoader
from locap.datasets.transforms.mapper import EvalMapper, PanopticCaptionMapper
from locap.utils.errors import DataError, LocapError, UsageError

TOKENIZER = SimpleNamespace(pad_id=0, encode=lambda text: [1, len(text), 2])


def mapper_for(size=32):
    return PanopticCaptionMapper(COCO_PANOPTIC, TOKENIZER, image_size=size, min_scale=0.5, seed=3)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_crc(path):
    body = bytearray(path.read_bytes())
    body[body.index(b"IDAT") + 40] ^= 0xFF
    path.write_bytes(body)


def to_directory(path):
    path.unlink()
    path.mkdir()


INJECTED = {  # what is done to a file after the index was read: (folder, ending, how, a part of the reason)
    "empty": ("images", "jpg", lambda path: path.write_bytes(b""), "the file is empty"),
    "html": ("images", "jpg", lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "HTML page"),
    "truncated JPEG": ("images", "jpg", truncate, "truncated or corrupt"),
    "truncated PNG": ("panoptic", "png", truncate, "truncated or corrupt"),
    "bad CRC": ("panoptic", "png", flip_crc, "truncated or corrupt"),
    "vanished": ("images", "jpg", lambda path: path.unlink(), "does not exist"),
    "directory": ("images", "jpg", to_directory, "is a directory"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """200 scenes of 32 x 24 pixels; ten of them are then broken: (reader, mapper, {index: kind})."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_data_set(folder, 200, height=24, width=32, segments=3)
    reader = open_data_set(folder)
    whole = sequence(TrainLoader(reader, mapper_for(), batch_size_total=8, seed=1).batches(1))
    kinds = [*INJECTED, "empty", "vanished", "truncated JPEG"]
    broken = dict(zip(range(7, 200, 20), kinds, strict=True))
    for index, kind in broken.items():
        where, ending, spoil, _ = INJECTED[kind]
        spoil(folder / where / f"{index + 1}.{ending}")
    return SimpleNamespace(reader=reader, broken=broken, whole=whole, folder=folder)


def sequence(batches):
    """Return per batch its samples: id and everything random about it."""
    return [
        [
            (image_id, int(image.sum()), target.seed)
            for image_id, image, target in zip(b.image_ids, b.images, b.targets, strict=True)
        ]
        for b in batches
    ]


@pytest.mark.fault("E1", "E10")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_corrupted_set_is_trained_on_without_its_broken_samples(drawn, world, num_workers, figure, tmp_path):
    bad_ids = {index + 1 for index in drawn.broken}
    expected = [[sample for sample in batch if sample[0] not in bad_ids] for batch in drawn.whole]
    options = {"batch_size_total": 8, "world_size": world, "seed": 1, "num_workers": num_workers}
    loaders = [TrainLoader(drawn.reader, mapper_for(), rank=rank, **options) for rank in range(world)]
    shares = [list(loader.batches(1)) for loader in loaders]
    steps = [[share[step] for share in shares] for step in range(len(expected))]
    for step, batches in zip(expected, steps, strict=True):
        assert step == dealt(step, sequence(batches))
    found = {bad.index: bad for share in shares for batch in share for bad in batch.bad}
    assert sorted(found) == sorted(drawn.broken)
    for index, kind in drawn.broken.items():
        assert INJECTED[kind][3] in found[index].reason
        assert str(drawn.folder) in found[index].where

    resumed = [list(loader.batches(1, start_batch=11)) for loader in loaders]
    assert [sequence(share) for share in resumed] == [sequence(share[11:]) for share in shares]
    assert [[b.bad for b in share] for share in resumed] == [[b.bad for b in share[11:]] for share in shares]

    log = BadSampleLog(tmp_path / "bad_samples.jsonl", samples=len(drawn.reader))
    for step, batches in enumerate(steps):
        log.add(step, 1, [bad for batch in batches for bad in batch.bad])
    assert sum(map(len, log.reasons().values())) == len(drawn.broken)
    assert Counter(map(len, log.reasons().values())).total() >= 5
    figure(
        "T16",
        f"{len(log)} of 200 broken: {len(found)} skips, by reason, order exact, resumed too "
        f"({world} ranks, {num_workers} workers)",
    )


def dealt(expected, shares):
    """Return the samples of all ranks in the order of the global batch, none left over."""
    by_id = {sample[0]: sample for share in shares for sample in share}
    assert len(by_id) == sum(map(len, shares)) == len(expected)
    for share in shares:  # a rank has its samples in the order of the global batch
        places = [expected.index(sample) for sample in share]
        assert places == sorted(places)
    return [by_id.get(sample[0]) for sample in expected]


@pytest.mark.fault("E1", "E10")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_evaluation_stops_at_a_broken_sample(drawn, num_workers):
    loader = EvalLoader(drawn.reader, EvalMapper(shortest=None), batch_size=4, num_workers=num_workers)
    error = error_of(loader)
    assert isinstance(error, DataError)
    assert error.where == str(drawn.folder / "images" / "8.jpg")


def error_of(batches):
    try:
        for _ in batches:
            pass
    except LocapError as err:
        return err.with_traceback(None)


@pytest.mark.fault("R15")
def test_a_set_without_a_readable_image_stops(tmp_path):
    draw_data_set(tmp_path, 6, height=24, width=32, segments=2)
    reader = open_data_set(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    log = BadSampleLog(tmp_path / "bad_samples.jsonl", samples=len(reader))
    loader = TrainLoader(reader, mapper_for(), batch_size_total=2)
    first, second, third = loader.batches(0)
    assert [len(batch) for batch in (first, second, third)] == [0, 0, 0]
    log.add(1, 0, first.bad)
    log.add(2, 0, second.bad)
    with pytest.raises(DataError, match="6 of 6 samples unusable"):
        log.add(3, 0, third.bad)


class Odd:
    """A reader of which one sample does something else."""

    def __init__(self, reader, index, act):
        self.reader, self.index, self.act, self.categories = reader, index, act, reader.categories

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == self.index:
            self.act()
        return self.reader[index]


def loader_of(drawn, act, num_workers=2, **options):
    reader = Odd(drawn.reader, 5, act)
    return TrainLoader(
        reader, mapper_for(), batch_size_total=2, shuffle=False, num_workers=num_workers, prefetch=1, **options
    )


def in_worker(action):
    owner = os.getpid()
    return lambda: action() if os.getpid() != owner else None


@pytest.mark.fault("A10")
@pytest.mark.parametrize("timeout", [0, 60])
def test_a_killed_worker_is_named(drawn, timeout):
    kill = in_worker(lambda: os.kill(os.getpid(), signal.SIGKILL))
    started = time.monotonic()
    error = error_of(loader_of(drawn, kill, timeout=timeout).batches(0))
    assert time.monotonic() - started < 10
    assert error.exit_code == 70
    assert error.what == "Loader worker 0 was killed (out of memory?)."
    assert error.where == f"sample 5 ({drawn.folder / 'images' / '6.jpg'})"
    assert "NUM_WORKERS" in error.fix
    assert workers.SHARED_MEMORY in error.fix or sys.platform != "linux"
    assert "Traceback" not in str(error)


@pytest.mark.fault("A10")
def test_a_worker_that_dies_between_two_batches_is_told_at_the_next(drawn):
    before = children()
    stream = loader_of(drawn, lambda: None).batches(0)
    next(stream)
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)  # as a training step: nothing is raised here
    error = error_of(stream)
    # it has a number only if it was at work already, which it need not be
    assert re.fullmatch(r"(Loader worker [01]|A loader process) was killed \(out of memory\?\)\.", error.what)


@pytest.mark.fault("A10")
def test_a_worker_that_leaves_is_named(drawn):
    error = error_of(loader_of(drawn, in_worker(lambda: os._exit(3))).batches(0))
    assert error.what == "Loader worker 0 ended unexpectedly."
    assert error.value == "exit code 3"


@pytest.mark.fault("A10")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_reader_that_raises_is_told_with_its_sample(drawn, num_workers):
    def fail():
        raise KeyError("width")

    error = error_of(loader_of(drawn, fail, num_workers).batches(0))
    assert (error.exit_code, error.what) == (70, "A sample could not be made: KeyError: 'width'")
    assert error.where == "sample 5"
    assert "in fail" in error.value

    def broken_mapper(record, epoch, index):
        raise ZeroDivisionError("by zero")

    error = error_of(TrainLoader(drawn.reader, broken_mapper, batch_size_total=2, shuffle=False).batches(0))
    assert error.where == f"sample 0, image 1 ({drawn.folder / 'images' / '1.jpg'})"


def test_a_wrong_use_is_no_broken_sample(drawn):
    def misuse():
        raise UsageError("No such thing.")

    error = error_of(loader_of(drawn, misuse).batches(0))
    assert isinstance(error, UsageError)


@pytest.mark.fault("A11")
def test_a_worker_that_hangs_is_named_with_its_file(drawn):
    hang = in_worker(lambda: time.sleep(600))
    started = time.monotonic()
    error = error_of(loader_of(drawn, hang, timeout=1.0).batches(0))
    assert time.monotonic() - started < 15
    assert error.exit_code == 70
    assert error.what == "Loader worker 0 hangs: it gave no batch in 1 s."
    assert error.where == f"sample 5 ({drawn.folder / 'images' / '6.jpg'})"
    assert "TIMEOUT" in error.fix
    assert sum(len(b) for b in loader_of(drawn, lambda: None, timeout=20.0).batches(0)) == 11  # the next one works


@pytest.mark.fault("A11")
def test_a_file_that_hangs_its_owner_too_is_not_waited_for(drawn):
    started = time.monotonic()
    error = error_of(loader_of(drawn, lambda: time.sleep(20), timeout=1.0).batches(0))
    assert time.monotonic() - started < 15
    assert error.where == "sample 5"


@pytest.mark.fault("A12")
def test_with_little_shared_memory_batches_go_through_pipes(drawn, monkeypatch, caplog):
    options = {"batch_size_total": 8, "seed": 1}
    expected = sequence(TrainLoader(drawn.reader, mapper_for(), **options).batches(1))
    monkeypatch.setattr(workers, "shared_memory_free", lambda: 64 * 2**20)  # as in a container
    batches = list(TrainLoader(drawn.reader, mapper_for(), num_workers=2, **options).batches(1))
    assert sequence(batches) == expected
    assert not any(image.is_shared() for batch in batches for image in batch.images)
    assert sum("--shm-size" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("free", [None, 10**12])
def test_enough_shared_memory_is_used(monkeypatch, caplog, free):
    monkeypatch.setattr(workers, "shared_memory_free", lambda: free)
    assert workers.shares_memory(8, 2)
    assert not caplog.messages
