"""Data sets in webdataset's shards: written, read by us and by webdataset, named, and refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from locap.datasets.checks import read_checked_id_map, read_checked_image
from locap.datasets.expressions import PerExpression
from locap.datasets.loader import TrainLoader
from locap.datasets.mixtures import MixedReader
from locap.datasets.prepare import shards as prepare
from locap.datasets.prepare.shards import main, verify_shards, write_shards
from locap.datasets.readers import categories_of, open_dataset, open_expressions
from locap.datasets.readers.shards import ShardReader
from locap.datasets.records import Record, Region, record_to_json
from locap.datasets.shapes import CATEGORIES, Shapes
from locap.datasets.transforms.mapper import EvalMapper
from locap.utils.errors import DataError, UsageError
from locap.utils.untrusted import read_image


def shapes(count: int = 7) -> Shapes:
    return Shapes(count, image_size=32)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_shards(shapes(), tmp_path_factory.mktemp("shards") / "scenes", samples_per_shard=3)


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "scenes"))


def without_pixels(record: Record) -> Record:
    return replace(record, image=None, id_map=None)


def assert_same(one: Record, other: Record) -> None:
    assert without_pixels(one) == without_pixels(other)
    np.testing.assert_array_equal(read_checked_image(one), read_checked_image(other))
    if one.id_map is not None:
        np.testing.assert_array_equal(read_checked_id_map(one), read_checked_id_map(other))


def sample(key: str, suffix: str = "png", **more: bytes) -> dict[str, object]:
    """A sample as webdataset's own writer takes it."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(file, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    body = record_to_json(Record(key, 2, 3, regions=[Region(1, box_xyxy=(0.0, 0.0, 2.0, 2.0), phrases=("dot",))]))
    return {"__key__": key, suffix: file.getvalue(), "json": json.dumps(body).encode(), **more}


def pack(path: Path, *samples: dict[str, object]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for each in samples:
            tar.write(each)
    return path


def test_records_come_back_exactly(written):
    reader, truth = open_dataset(str(written)), shapes()
    assert len(reader) == 7
    assert reader.blocks == [3, 3, 1]
    assert reader.categories == CATEGORIES == categories_of([str(written)])
    for index in (4, 0, 6, 2, -1):
        assert_same(truth[index % 7], reader[index])
    for index in (7, -8):
        with pytest.raises(IndexError):
            reader[index]


def test_real_images_are_copied_byte_by_byte(coco_mini, tmp_path):
    truth = open_dataset("pix2cap_coco_val_with_sem_seg", coco_mini)
    reader = open_dataset(str(write_shards(truth, tmp_path / "pix2cap", bytes_per_shard=600_000)))
    assert len(reader) == len(truth)
    assert 1 < len(reader.blocks) < len(truth)
    assert reader.categories == truth.categories
    for index in range(len(truth)):
        assert_same(truth[index], reader[index])
    with tarfile.open(tmp_path / "pix2cap" / "pix2cap-000000.tar") as tar:
        assert tar.extractfile("000000000.jpg").read() == Path(truth[0].image).read_bytes()
    again = write_shards(reader, tmp_path / "again", name="pix2cap", bytes_per_shard=600_000)
    assert (again / "shards.json").read_bytes() == (tmp_path / "pix2cap" / "shards.json").read_bytes()


def test_webdataset_reads_what_we_write(written):
    found = list(webdataset.WebDataset(f"{written}/scenes-{{000000..000002}}.tar", shardshuffle=False).decode("rgb8"))
    for body, truth in zip(found, shapes(), strict=True):
        np.testing.assert_array_equal(body["png"], truth.image)
        assert body["json"]["image_id"] == truth.image_id


def test_we_read_what_webdataset_writes(tmp_path):
    """Without an index, with suffixes in capitals, folders in keys, and members that mean nothing to us."""
    samples = [sample("a/0", txt=b"hi"), sample("a/1", "jpg", **{"cls.txt": b"3"}), sample("b.c/2", "PNG"), sample("3")]
    pack(tmp_path / "x-00.tar", *samples[:3])
    pack(tmp_path / "x-01.tar", {"__key__": "__meta__", "txt": b"notes"}, samples[3])
    for name in (f"{tmp_path}/x-{{00..01}}.tar", f"{tmp_path}/x-*.tar", f"{tmp_path}/x-0[01].tar"):
        reader = open_dataset(name)
        assert [reader[index].image_id for index in range(4)] == ["a/0", "a/1", "b.c/2", "3"]
        assert reader.blocks == [3, 1]
        assert reader.categories == ()
        assert categories_of([name])[0].name == "object"
        assert read_checked_image(reader[1]).shape == (2, 3, 3)
        assert reader[0].id_map is None
    assert open_dataset(f"{tmp_path}/x-01.tar")[0].regions[0].phrases == ("dot",)


def test_the_same_records_make_the_same_bytes(written, tmp_path):
    other = write_shards(shapes(), tmp_path / "other", name="scenes", samples_per_shard=3)
    assert sorted(p.name for p in other.iterdir()) == [*(f"scenes-00000{i}.tar" for i in range(3)), "shards.json"]
    for path in written.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()
    index = json.loads((other / "shards.json").read_text())
    for shard in index["shards"]:
        data = (other / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert verify_shards(other) == 3


def test_headers_are_read_once(copied, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAP_CACHE", str(tmp_path / "cache"))
    first = open_dataset(str(copied))
    import locap.datasets.readers.shards as module

    def refuse(shard):
        raise AssertionError(shard)

    scan = module._samples
    monkeypatch.setattr(module, "_samples", refuse)
    assert_same(first[5], open_dataset(str(copied))[5])
    next(copied.glob("*.tar")).touch()
    with pytest.raises(AssertionError):
        open_dataset(str(copied))
    monkeypatch.setattr(module, "_samples", scan)
    assert_same(first[5], open_dataset(str(copied))[5])


def test_relative_names_lie_below_the_root_too(written, monkeypatch):
    for name in ("./scenes", "x/../scenes", "scenes-{000000..000002}.tar", "scenes/scenes-*.tar"):
        root = written if name.startswith("scenes-") else written.parent
        (written.parent / "x").mkdir(exist_ok=True)
        assert len(open_dataset(name, root)) == 7
        monkeypatch.chdir(root)
        assert len(open_dataset(name)) == 7
    assert len(open_dataset("scenes-{000000,000002}.tar", written)) == 4
    monkeypatch.chdir(written.parent)
    assert len(open_dataset("scenes")) == 7


def test_expressions_one_by_one(written):
    reader, truth = open_expressions(str(written)), PerExpression(shapes())
    assert reader[2].regions == truth[2].regions


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_in_any_process_and_after_resuming(written, workers):
    reader = MixedReader([open_dataset(str(written))])
    options = {"batch_size_total": 2, "seed": 1}
    here = list(TrainLoader(reader, EvalMapper(), **options).batches(3))
    there = list(TrainLoader(reader, EvalMapper(), num_workers=workers, **options).batches(3, 1))
    assert sorted(i for batch in here for i in batch.image_ids) == list(range(7))
    for one, other in zip(here[1:], there, strict=True):
        assert one.image_ids == other.image_ids
        assert all((a == b).all() for a, b in zip(one.images, other.images, strict=True))


def test_a_reader_and_its_records_go_to_other_processes(written):
    reader = open_dataset(str(written))
    assert_same(reader[5], pickle.loads(pickle.dumps(reader))[5])
    assert pickle.loads(pickle.dumps(reader[5])).read_image().shape == (32, 32, 3)


def test_a_prediction_from_a_file_still_finds_its_image(written):
    """The text of the path is all that JSON keeps."""
    record = open_dataset(str(written))[4]
    stored = json.loads(json.dumps(record_to_json(record)))
    np.testing.assert_array_equal(read_image(stored["image"]), shapes()[4].image)


def test_missing_shards_are_named(copied):
    (copied / "scenes-000001.tar").unlink()
    for name in (copied, copied / "scenes-{000000..000002}.tar"):
        with pytest.raises(DataError, match=r"1 of 3 shards are not there(.|\n)*scenes-000001\.tar"):
            open_dataset(str(name))
    with pytest.raises(DataError, match=r"10 of 10(.|\n)*x-4.tar, …"):
        open_dataset(f"{copied}/x-{{0..9}}.tar")
    with pytest.raises(DataError, match="No shard matches"):
        open_dataset(f"{copied}/x-*.tar")
    with pytest.raises(DataError, match="has no index"):
        open_dataset(str(copied.parent))
    with pytest.raises(DataError, match="This is no shard"):
        open_dataset(f"{copied}/shards.json")
    with pytest.raises(UsageError, match="not balanced"):
        open_dataset(f"{copied}/x-{{0..9.tar")
    with pytest.raises(UsageError, match="too many"):
        open_dataset(f"{copied}/x-{{0..100001}}.tar")


@pytest.mark.parametrize("name", ["s3://bucket/x-{0..9}.tar", "https://a/b.tar", "pipe:cat /data/x.tar"])
def test_streams_are_to_be_copied_first(name):
    with pytest.raises(UsageError, match=r"not from a stream(.|\n)*copy the shards first"):
        open_dataset(name)


def test_other_names_are_still_unknown_data_sets():
    with pytest.raises(UsageError, match=r"Unknown data set(.|\n)*path of shards"):
        open_dataset("scenes")


def test_a_spoilt_shard_is_named(copied):
    shard = copied / "scenes-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:5000])
    with pytest.raises(DataError, match=r"size that shards.json says(.|\n)*scenes-000001.tar(.|\n)*5000 bytes"):
        open_dataset(str(copied))
    with pytest.raises(DataError, match="size that"):
        open_dataset(str(shard))
    assert len(open_dataset(f"{copied}/scenes-{{000000,000002}}.tar")) == 4, "others are still readable"
    (copied / "shards.json").rename(copied / "index")
    with pytest.raises(DataError, match=r"truncated(.|\n)*scenes-000001.tar: byte 5000"):
        open_dataset(str(shard))
    (copied / "index").rename(copied / "shards.json")
    shard.write_bytes(bytes([*whole[:600], whole[600] ^ 1, *whole[601:]]))
    with pytest.raises(DataError, match=r"is damaged(.|\n)*scenes-000001.tar"):
        verify_shards(copied)
    shutil.copy(copied / "scenes-000002.tar", shard)
    index = json.loads((copied / "shards.json").read_text())
    index["shards"][1]["bytes"] = shard.stat().st_size
    (copied / "shards.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"does not have the samples(.|\n)*3 samples"):
        open_dataset(str(copied))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "Not an index"),
        ({"shards": []}, "No shard"),
        ({"shards": [{"file": "../x.tar", "bytes": 1, "samples": 1}]}, "leaves its folder"),
        ({"shards": [{"file": "x.tar", "samples": 1}]}, '"bytes" is missing'),
        ({"categories": [{"id": "x", "name": "y"}]}, "Not a category"),
    ],
)
def test_a_wrong_index_is_refused(copied, change, message):
    path = copied / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        open_dataset(str(copied))


def test_wrong_samples_are_refused(tmp_path):
    def refused(*samples, message):
        with pytest.raises(DataError, match=message):
            ShardReader(pack(tmp_path / "x.tar", *samples))[0]

    refused(message="empty")
    refused({"__key__": "a", "json": b"{}"}, message=r"no image(.|\n)*x.tar: a")
    refused({"__key__": "a", "png": b"", "txt": b""}, message="no record")
    refused(sample("a"), sample("b"), {"__key__": "a", "txt": b""}, message=r"do not lie together(.|\n)*'a'")
    refused({**sample("a"), "json": b"[1]"}, message=r"Not a record(.|\n)*x.tar!a.json")
    refused({**sample("a"), "json": b"{\xff"}, message=r"not UTF-8(.|\n)*x.tar!a.json")
    stack = Record("a", 2, 3, regions=[Region(logits={"file": "/etc/passwd", "index": 0, "count": 1})])
    refused({**sample("a"), "json": json.dumps(record_to_json(stack)).encode()}, message="names files")
    body = json.dumps(record_to_json(Record("a", 2, 3, "/etc/passwd", id_map="/etc/passwd"))).encode()
    record = ShardReader(pack(tmp_path / "x.tar", {**sample("a"), "json": body}))[0]
    assert record.image == f"{tmp_path}/x.tar!a.png", "the record does not choose which file is read"
    assert record.id_map is None


class Failing(Shapes):
    def __getitem__(self, index: int) -> Record:
        if index == 4:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_nothing_is_left_of_a_stopped_conversion(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_shards(Failing(7, image_size=32), tmp_path / "scenes", samples_per_shard=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "scenes").mkdir()
    assert len(open_dataset(str(write_shards(shapes(), tmp_path / "scenes")))) == 7


def test_what_cannot_be_written_is_said(written, tmp_path):
    with pytest.raises(UsageError, match="not empty"):
        write_shards(shapes(), written)
    with pytest.raises(UsageError, match="room for a sample"):
        write_shards(shapes(), tmp_path / "a", samples_per_shard=0)
    with pytest.raises(UsageError, match="this name"):
        write_shards(shapes(), tmp_path / "a", name="a{b}")
    with pytest.raises(DataError, match="has no image"):
        write_shards([Record("a", 2, 3)], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_shard_of_bytes_has_at_least_one_sample(tmp_path):
    reader = open_dataset(str(write_shards(shapes(3), tmp_path / "a", bytes_per_shard=1)))
    assert sum(reader.blocks) == 3


def test_the_program_converts_and_verifies(tmp_path, capsys):
    words = ["--data", "shapes_val", "--count", "3", "--output", str(tmp_path / "a"), "--samples-per-shard", "2"]
    assert main(words) == 0
    assert main(["--verify", str(tmp_path / "a")]) == 0
    assert "2 shards are as they were written" in capsys.readouterr().out
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err
    assert_same(Shapes(3, split="val")[2], open_dataset(str(tmp_path / "a"))[2])
    assert prepare.SAMPLES_PER_SHARD == 1000
