"""Batches out of worker processes."""

from __future__ import annotations

import pytest
import torch

from locap.datasets import workers
from locap.datasets.bad_samples import BadSample
from locap.datasets.benchmarks.memory import bytes_of
from locap.datasets.loader import EvalLoader, TrainLoader
from locap.datasets.mixtures import MixedReader
from locap.datasets.transforms.mapper import EvalMapper, PanopticCaptionMapper
from locap.utils.errors import DataError, LocapError


class Repeated:
    """A reader of ``count`` records that are copies of two."""

    def __init__(self, reader, count):
        self.reader, self.count, self.categories = reader, count, reader.categories

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        record = self.reader[index % 2]
        record.image_id = index
        return record


@pytest.fixture
def parts(panoptic_set, tokenizer):
    reader = Repeated(panoptic_set.open(), 7)
    return reader, PanopticCaptionMapper(reader.categories, tokenizer, image_size=32, min_scale=0.5, seed=2)


def digest(batches):
    return [
        (b.image_ids, [i.sum().item() for i in b.images], [t.seed for t in b.targets], b.output_sizes) for b in batches
    ]


def test_workers_ranks_and_resuming_change_no_sample(parts):
    reader, mapper = parts
    whole = TrainLoader(reader, mapper, batch_size_total=4, seed=1)
    expected = [digest(whole.batches(epoch)) for epoch in (0, 1)]
    assert [len(batch[0]) for batch in expected[0]] == [4, 3]
    assert sorted(expected[1][0][0] + expected[1][1][0]) == list(range(7))
    assert expected[0] != expected[1]

    workers = TrainLoader(reader, mapper, batch_size_total=4, seed=1, num_workers=2)
    next(workers.batches(0))  # an epoch given up half-way
    assert [digest(workers.batches(epoch)) for epoch in (0, 1)] == expected
    assert digest(workers.batches(1, start_batch=1)) == expected[1][1:]

    shares = [
        list(TrainLoader(reader, mapper, batch_size_total=4, rank=r, world_size=2, seed=1).batches(1)) for r in (0, 1)
    ]
    for step, batch in enumerate(expected[1]):
        images = {
            i: s for share in shares for i, s in zip(share[step].image_ids, digest([share[step]])[0][1], strict=True)
        }
        assert images == dict(zip(batch[0], batch[1], strict=True))


def test_an_empty_share_is_an_empty_batch(parts):
    reader, mapper = parts
    loader = TrainLoader(reader, mapper, batch_size_total=6, rank=1, world_size=2)
    batches = list(loader.batches(0))
    assert [len(batch) for batch in batches] == [3, 0]
    assert len(loader) == 2
    assert batches[1].targets == batches[1].images == []


def error_of(batches):
    try:
        list(batches)
    except LocapError as err:
        return err.with_traceback(None)  # a kept traceback would keep the workers, too


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_come_through_as_themselves(parts, panoptic_set, num_workers):
    reader, mapper = parts
    path = panoptic_set.root / "images" / "000000000007.jpg"
    path.write_bytes(path.read_bytes()[:400])
    evaluated = EvalLoader(reader, EvalMapper(shortest=None), batch_size=3, num_workers=num_workers)
    trained = TrainLoader(reader, mapper, batch_size_total=7, num_workers=num_workers, skip_bad=False)
    for error in (error_of(evaluated), error_of(trained.batches(0))):
        assert error.what.startswith("The image is truncated or corrupt")
        assert error.where == str(path)
        assert isinstance(error, DataError)
        assert "Traceback" not in str(error)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_sample_leaves_its_batch_and_is_listed(parts, panoptic_set, num_workers):
    reader, mapper = parts
    options = {"batch_size_total": 2, "shuffle": False, "num_workers": num_workers}
    whole = digest(TrainLoader(reader, mapper, batch_size_total=2, shuffle=False).batches(0))
    path = panoptic_set.root / "images" / "000000000007.jpg"
    path.write_bytes(b"")
    batches = list(TrainLoader(reader, mapper, **options, sources=["a_set"]).batches(0))
    assert [batch.image_ids for batch in batches] == [[0], [2], [4], [6]]
    assert [bad.index for batch in batches for bad in batch.bad] == [1, 3, 5]
    assert batches[0].bad == [BadSample("a_set", 1, 1, str(path), "The image cannot be read: the file is empty.")]
    assert [entry[1][0] for entry in digest(batches)] == [entry[1][0] for entry in whole]
    assert batches[0].to("cpu").bad == batches[0].bad


def test_a_batch_may_become_empty_and_sources_are_told_apart(parts, panoptic_set):
    reader, mapper = parts
    (panoptic_set.root / "images" / "000000000007.jpg").unlink()
    mixed = MixedReader([Repeated(reader.reader, 2), Repeated(reader.reader, 2)])
    loader = TrainLoader(mixed, mapper, batch_size_total=1, shuffle=False, sources=["first", "second"])
    batches = list(loader.batches(0))
    assert [len(batch) for batch in batches] == [1, 0, 1, 0]
    assert [(bad.source, bad.index) for batch in batches for bad in batch.bad] == [("first", 1), ("second", 1)]
    assert batches[1].images == batches[1].targets == []


def test_pipes_bring_the_same_batches_as_shared_memory(parts, monkeypatch, caplog):
    reader, mapper = parts
    expected = digest(TrainLoader(reader, mapper, batch_size_total=4).batches(0))
    monkeypatch.setattr(workers, "shared_memory_free", lambda: 2**20)
    batches = list(TrainLoader(reader, mapper, batch_size_total=4, num_workers=2).batches(0))
    assert digest(batches) == expected
    assert not any(image.is_shared() for batch in batches for image in batch.images)
    assert "1 MB free" in caplog.text


def test_what_crosses_processes_is_small(parts):
    """An image of 3 bytes a pixel, an id map of 4, and little else: no mask per region."""
    reader, mapper = parts
    (batch,) = TrainLoader(reader, mapper, batch_size_total=7).batches(0)
    assert bytes_of(batch) < 7 * (32 * 32 * 7 + 1000)


def test_loading_leaves_the_global_generator_alone(parts):
    reader, mapper = parts
    loader = TrainLoader(reader, mapper, batch_size_total=4)
    state = torch.get_rng_state()
    list(loader.batches(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_batches(parts):
    reader, _ = parts
    for num_workers in (0, 1):
        loader = EvalLoader(reader, EvalMapper(shortest=None), batch_size=3, num_workers=num_workers)
        for _ in range(2):
            batches = list(loader)
            assert [batch.image_ids for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
            assert all(batch.targets == [] for batch in batches)
    second = EvalLoader(reader, EvalMapper(shortest=None), batch_size=3, rank=1, world_size=2)
    assert [batch.image_ids for batch in second] == [[3, 4, 5]]
    assert len(second) == 1
