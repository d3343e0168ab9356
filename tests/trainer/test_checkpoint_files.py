"""Files of a checkpoint: the library's bytes, hashes of what was written, and a manifest that admits no change."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from locap.trainer import checkpoint_files
from locap.trainer.checkpoint_files import FileEntry, read_manifest, verify, write_manifest, write_pieces
from locap.trainer.checkpoint_files import write_tensor_file as write
from locap.utils.errors import CheckpointError

TYPES = list(checkpoint_files._DTYPES)


def of_every_type() -> dict[str, torch.Tensor]:
    """Return tensors of every type: of an odd length, without dimensions, and empty."""
    torch.manual_seed(0)
    result = {}
    for dtype in TYPES:
        for shape in ((3, 5), (), (0, 4)):
            size = torch.empty(shape, dtype=dtype).element_size()
            drawn = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, size), dtype=torch.uint8)
            name = f"{str(dtype).removeprefix('torch.')}/{len(shape)}/{'empty' if 0 in shape else 'ü'}"
            result[name] = drawn.reshape(-1).view(dtype).reshape(shape)
    return result


def as_bytes(tensor: torch.Tensor) -> tuple:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), bytes(flat.numpy())


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_the_file_is_the_librarys_byte_by_byte(tmp_path, piece):
    """Whatever the pieces; and so two saves are byte-identical (I11)."""
    tensors = of_every_type()
    entry = write(tmp_path / "a.safetensors", tensors, piece)
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data == save(tensors)
    assert entry == FileEntry(len(data), hashlib.sha256(data).hexdigest())


def test_what_is_loaded_is_what_was_saved_and_saves_to_the_same_bytes(tmp_path):
    tensors = of_every_type()
    first = write(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert {name: as_bytes(each) for name, each in loaded.items()} == {n: as_bytes(t) for n, t in tensors.items()}
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)
    shuffled = dict(sorted(loaded.items(), key=lambda item: hashlib.md5(item[0].encode()).digest()))
    assert write(tmp_path / "b.safetensors", shuffled) == first


@pytest.mark.parametrize("tensors", [{}, {"none": torch.empty(0)}, {"turned": torch.arange(6.0).reshape(2, 3).T}])
def test_nothing_and_what_lies_otherwise_in_memory(tmp_path, tensors):
    write(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_type_without_a_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"(?s)cannot be saved.*where:.*wave.*complex128"):
        write(tmp_path / "a.safetensors", {"wave": torch.zeros(1, dtype=torch.complex128)})


def test_a_file_is_never_written_over(tmp_path):
    write_pieces(tmp_path / "a", [b"one"])
    with pytest.raises(FileExistsError):
        write_pieces(tmp_path / "a", [b"two"])
    assert (tmp_path / "a").read_bytes() == b"one"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of which several ranks wrote parts, one in a folder of its own."""
    folder = tmp_path / "step_00000007"
    (folder / "inner").mkdir(parents=True)
    files = {
        name: write_pieces(folder / name, [name.encode()])
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "inner/.metadata")
    }
    files["state.json"] = write_pieces(folder / "state.json", [b'{"step": 7}'])
    write_manifest(folder, 7, files)
    return folder


def test_the_manifest_names_every_file(folder):
    step, files = read_manifest(folder)
    assert step == 7
    assert set(files) == {str(path.relative_to(folder)) for path in folder.rglob("*.*")} - {"manifest.json"}
    assert verify(folder) == {"step": 7}


def test_a_file_too_many_is_told_unless_the_system_made_it(folder):
    (folder / ".nfs0001").write_text("x")
    assert verify(folder)
    (folder / "inner" / "more.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match=r"has a file too many: inner/more\.safetensors"):
        verify(folder)


def test_a_hidden_file_counts_where_it_is_listed(folder):
    (folder / "inner" / ".metadata").write_text("x" * 15)
    with pytest.raises(CheckpointError, match=r"is damaged: inner/\.metadata"):
        verify(folder)


def test_sizes_are_told(folder):
    with (folder / "model-00002-of-00002.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"(?s)is incomplete: model-00002.*33 bytes.*32 bytes"):
        verify(folder)


@pytest.mark.parametrize("missing", ["state.json", "model-"])
def test_a_checkpoint_has_a_model_and_a_state(tmp_path, missing):
    names = [name for name in ("model-1.safetensors", "state.json", "other.json") if not name.startswith(missing)]
    write_manifest(tmp_path, 1, {name: write_pieces(tmp_path / name, [b"{}"]) for name in names})
    with pytest.raises(CheckpointError, match="damaged manifest"):
        verify(tmp_path)


@pytest.mark.parametrize("change", [{"step": 8}, {"more": 1}, {"files": {}}, {"files": {"state.json": 3}}])
def test_a_manifest_that_was_edited_is_damaged(folder, change):
    body = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(body | change, indent=1) + "\n")
    with pytest.raises(CheckpointError, match="damaged manifest"):
        verify(folder)


def test_a_copy_under_another_name_is_one_and_under_another_step_is_not(folder):
    assert verify(folder.rename(folder.with_name("kept")))
    with pytest.raises(CheckpointError, match="step_00000008 holds that of step 7"):
        verify(folder.with_name("kept").rename(folder.with_name("step_00000008")))


def test_what_cannot_be_read_says_why(folder, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint_files, "hash_file", fail)
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        verify(folder)
