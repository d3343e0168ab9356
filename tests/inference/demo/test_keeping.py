"""What is kept for users is bounded: in number, in bytes, and in time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from locap.inference.demo.keeping import Kept, size_of, sweep_folder


@dataclass
class Pair:
    first: np.ndarray
    second: dict[str, list[np.ndarray]]


def test_the_size_of_what_is_kept():
    torch = pytest.importorskip("torch")
    block = np.zeros(1000, np.uint8)
    assert size_of(Pair(block, {"a": [block, block]})) == 3000
    assert size_of((torch.zeros(10), b"12345", "abc", None, 7)) == 48


@pytest.mark.fault("J10")
def test_what_was_used_the_longest_time_ago_is_forgotten():
    kept = Kept(max_count=10, max_bytes=100, seconds=60)
    for name in "abc":
        kept[name] = bytes(30)
    assert kept["a"] == bytes(30)  # used again
    kept["d"] = bytes(35)
    assert (list(kept), kept.bytes) == (["c", "a", "d"], 95)
    kept["c"] = bytes(1)  # in place of what it was
    assert kept.bytes == 66
    kept["e"] = bytes(1000)  # what is too large by itself is kept alone
    assert (list(kept), kept.bytes) == (["e"], 1000)
    del kept["e"]
    assert (len(kept), kept.bytes) == (0, 0)


@pytest.mark.fault("J10")
def test_so_many_and_so_long():
    kept = Kept(max_count=2, max_bytes=100, seconds=0.2)
    for name in "abc":
        kept[name] = b""
    assert list(kept) == ["b", "c"]
    time.sleep(0.25)
    assert kept.get("c") == b""
    kept.sweep()
    assert list(kept) == ["c"]


def written(path: Path, size: int, age: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.fault("J10")
def test_files_are_deleted_by_age_and_by_bytes(tmp_path):
    outside = written(tmp_path / "outside.png", 10, 9000)
    folder = tmp_path / "uploads"
    folder.mkdir()
    example = written(folder / "1" / "example.png", 10, 9000)
    old, new = written(folder / "2" / "old.png", 10, 500), written(folder / "3" / "new.png", 10, 1)
    middle = written(folder / "3" / "middle.png", 10, 50)
    (folder / "link.png").symlink_to(outside)
    os.utime(folder / "link.png", (0, 0), follow_symlinks=False)
    assert sweep_folder(folder, 1000, 100, {str(example)}) == {str(old), str(folder / "link.png")}
    assert not old.parent.exists()
    assert sweep_folder(folder, 15, 100, {str(example)}) == {str(middle)}
    assert outside.exists()
    assert example.exists()
    assert new.exists()
