"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from locap.utils.errors import CheckpointError
from locap.utils.files import atomic_path, survived, write_json, write_tensors, write_text


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json_are_written_with_their_folders(tmp_path):
    path = write_text(tmp_path / "a" / "b.txt", "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    assert write_json(tmp_path / "c.json", {"ä": [1, None]}).read_text(encoding="utf-8") == '{"ä": [1, null]}\n'
    assert names(tmp_path) == ["a", "c.json"]
    assert names(tmp_path / "a") == ["b.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "x.json", "old")

    def fail_halfway() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old", "the name still belongs to the old file"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, {"a": value})
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.json"]


def test_the_temporary_file_keeps_the_suffix_and_stands_beside_the_target(tmp_path):
    """Writers choose the format by the suffix, and only within a folder is a rename atomic."""
    with atomic_path(tmp_path / "picture.png") as temporary:
        assert (temporary.suffix, temporary.parent) == (".png", tmp_path)
    assert names(tmp_path) == ["picture.png"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_text(tmp_path / "x", "")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027, "the umask itself is as it was"
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_a_full_disk_leaves_the_weights_that_were_there(tmp_path, name):
    path = write_tensors(tmp_path / name, {"a": torch.ones(3)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="The weights could not be written") as caught:
            write_tensors(path, {"a": torch.ones(3000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free disk space" in caught.value.fix
    assert path.read_bytes() == before
    assert names(tmp_path) == [name]


def test_weights_that_share_memory(tmp_path):
    a = torch.arange(6.0)
    tied = {"a": a, "b": a, "part": a[2:4]}
    pickled = torch.load(write_tensors(tmp_path / "w.pt", tied), weights_only=True)
    assert pickled["a"].data_ptr() == pickled["b"].data_ptr()
    for written in (pickled, load_file(write_tensors(tmp_path / "w.safetensors", tied))):
        assert {name: tensor.tolist() for name, tensor in written.items()} == {
            "a": a.tolist(),
            "b": a.tolist(),
            "part": [2.0, 3.0],
        }
    with pytest.raises(CheckpointError, match="not written to such a file"):
        write_tensors(tmp_path / "w.bin", tied)


@pytest.mark.fault("B2")
def test_a_log_that_cannot_be_written_is_survived(caplog):
    with survived(Path("/dev/full")), open("/dev/full", "w", buffering=1) as file:
        file.write("a line\n")
    assert "No space left on device" in caplog.text
