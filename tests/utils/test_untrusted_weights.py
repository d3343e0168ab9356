"""Weights of strangers: good ones load, and nothing in a bad one runs."""

from __future__ import annotations

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from locap.utils.errors import CheckpointError, DataError
from locap.utils.untrusted import load_flat_tensors, load_tensors
from locap.utils.untrusted.array_pickles import read_array_pickle

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch '{self.sentinel}'",)


def check(loaded):
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def test_safetensors_load(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    check(load_tensors(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_load(tmp_path, save):
    save(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})
    check(load_tensors(tmp_path / "a.npz"))


def test_bfloat16_arrays_load(tmp_path):
    wanted = torch.tensor([1.5, -2.0]).bfloat16()
    np.savez(tmp_path / "a.npz", **{"a/b": wanted.view(torch.int16).numpy().view("V2")})
    assert torch.equal(load_tensors(tmp_path / "a.npz")["a/b"], wanted)


@pytest.mark.fault("H4")
def test_arrays_of_objects_are_refused(tmp_path):
    sentinel = tmp_path / "sentinel"
    np.savez(tmp_path / "a.npz", w=np.array([Payload(sentinel)], dtype=object))
    with pytest.raises(CheckpointError, match=r"could execute code\. Nothing was executed"):
        load_tensors(tmp_path / "a.npz")
    assert not sentinel.exists()


@pytest.mark.fault("H5")
def test_an_archive_that_swells_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(10**7, dtype=np.uint8))
    with pytest.raises(CheckpointError, match="far more memory"):
        load_tensors(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_load_as_they_are_nested(tmp_path, suffix, zipped):
    path = tmp_path / f"a.{suffix}"
    torch.save({"model": STATE, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    loaded = load_tensors(path)
    check(loaded["model"])
    assert loaded["epoch"] == 3


def save_bare(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.fault("H4")
@pytest.mark.parametrize(
    "save", [torch.save, lambda v, p: torch.save(v, p, _use_new_zipfile_serialization=False), save_bare]
)
def test_a_pickle_that_would_execute_code_is_refused(tmp_path, save):
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pt"
    save({"weight": torch.zeros(2), "x": Payload(sentinel)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert not sentinel.exists()
    assert "could execute code" in caught.value.what
    assert "Nothing was executed" in caught.value.what
    assert str(path) in caught.value.where
    assert "safetensors" in caught.value.fix
    if save is not save_bare:  # a bare pickle names torch's own rebuild function first
        assert caught.value.value == f"{os.name}.system"
    assert caught.value.exit_code == 4


def test_objects_beside_the_tensors_are_named(tmp_path):
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        load_tensors(tmp_path / "a.pth")


@pytest.mark.fault("H6")
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pt", b"", "the file is empty"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.safetensors", b"<!doctype html>", "HTML page"),
        ("a.pt", b"hello world", "neither a PyTorch archive nor a pickle"),
        ("a.pt", b"cos\nsystem\n(S'true'\ntR.", "neither a PyTorch archive nor a pickle"),
        ("a.pt", b"\x80\x02garbage", "truncated or corrupt"),
        ("a.safetensors", b"\xff" * 40, "its header claims"),
        ("a.safetensors", b"\x08" + b"\0" * 7 + b"notjson!", "truncated or corrupt"),
        ("a.npz", b"\x93NUMPY\x01\x00", "no archive of arrays"),
        ("a.npz", b"PK\x03\x04 and then nothing", "truncated or corrupt"),
        ("a.onnx", b"x", "not a known kind"),
    ],
)
def test_other_files_are_recognised(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        load_tensors(tmp_path / name)


@pytest.mark.fault("H6")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_weights_are_named(tmp_path, name, share):
    path = tmp_path / name
    state = {"a": torch.zeros(400)}
    torch.save(state, path) if name == "a.pt" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="truncated or corrupt") as caught:
        load_tensors(path)
    assert f"{path.stat().st_size} bytes" in str(caught.value)


def test_a_missing_file_and_a_lone_tensor(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(tmp_path / "model.safetensors")
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no dictionary"):
        load_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_arrays_load_as_detectron2_writes_them(tmp_path, protocol):
    arrays = {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.array([1, 2], dtype=">i4"),
        "flags": np.array([True, False]),
        "scalar": np.float32(3),
    }
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Zoo", "matching_heuristics": True}, protocol))
    loaded = load_flat_tensors(path)
    assert loaded.keys() == arrays.keys()
    assert all(np.array_equal(loaded[name].numpy(), arrays[name]) for name in arrays)
    assert load_tensors(path)["__author__"] == "Zoo"


def test_a_pickle_of_python_2_loads(tmp_path):
    """Texts of bytes, as in the zoo's older backbones: operations T (BINSTRING) and U (SHORT_BINSTRING)."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    kind = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01(K\x01K\x02t" + kind + b"\x89T\x08\x00\x00\x00" + np.array([1.5, -2], "<f4").tobytes() + b"tb"

    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02}U\x05blobs}U\x07conv1_w" + made + state + b"ss.")
    assert torch.equal(load_flat_tensors(tmp_path / "R-50.pkl")["conv1_w"], torch.tensor([[1.5, -2.0]]))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_anything_else_are_refused(tmp_path, protocol, nested):
    sentinel, path = tmp_path / "sentinel", tmp_path / "a.pkl"
    payload = np.array([Payload(sentinel)], dtype=object) if nested else Payload(sentinel)
    path.write_bytes(pickle.dumps({"model": {"w": payload}}, protocol))
    with pytest.raises(CheckpointError, match=r"could run code|protocol is too new") as caught:
        load_tensors(path)
    assert protocol == 5 or "system" in caught.value.value
    assert not sentinel.exists()


def test_pickled_arrays_must_be_as_long_as_they_say(tmp_path):
    body = pickle.dumps({"w": np.zeros(4, np.float32)}, 2).replace(b"K\x04\x85", b"K\x05\x85")
    (tmp_path / "a.pkl").write_bytes(body)
    with pytest.raises(CheckpointError, match="has 16 bytes"):
        load_tensors(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.array(["text"])}, 2))
    with pytest.raises(CheckpointError, match="are no weights"):
        load_tensors(tmp_path / "a.pkl")


def test_a_pickled_array_that_is_repeated_is_refused_before_memory_is_taken(tmp_path):
    one = np.zeros(1000, np.float32)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({f"w{i}": one for i in range(10_000)}, 2))
    with pytest.raises(CheckpointError, match="far more memory"):
        load_flat_tensors(tmp_path / "a.pkl")


def _text(body: bytes) -> bytes:
    return b"X" + len(body).to_bytes(4, "little") + body


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
ONE_BYTE_KIND = b"cnumpy\ndtype\n" + _text(b"u1") + b"\x85Rq\x03"
SWELLING = {  # a few bytes each that would make all of the first text or dictionary again
    "encoded texts": _text(b"a" * 10_000) + b"q\x00c_codecs\nencode\nq\x01" + _text(b"latin1") + b"q\x02"
    b"]" + b"h\x01h\x00h\x02\x86Ra" * 200,
    "dictionaries": b"}(" + b"".join(b"M%sN" % i.to_bytes(2, "little") for i in range(3000)) + b"uq\x00"
    b"ccollections\nOrderedDict\nq\x01]" + b"h\x01h\x00\x85Ra" * 200,
    "arrays of one text": _text(b"a" * 10_000)
    + b"q\x00"
    + RECONSTRUCT
    + ONE_BYTE_KIND
    + b"]"
    + b"h\x01h\x02K\x00\x85U\x01b\x87R(K\x01M\x10\x27\x85h\x03\x89h\x00tba" * 200,
    "a shape of long numbers": b"\x8b"
    + (1000).to_bytes(4, "little")
    + b"\x7f" * 1000
    + b"q\x00"
    + RECONSTRUCT
    + ONE_BYTE_KIND
    + b"h\x01h\x02K\x00\x85U\x01b\x87R(K\x01("
    + b"h\x00" * 60
    + b"th\x03\x89U\x01atb",
}


@pytest.mark.parametrize("case", SWELLING)
def test_a_pickle_that_swells_is_refused(tmp_path, case):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + SWELLING[case] + b".")
    with pytest.raises(DataError, match=r"far more memory|than pairs|impossible shape"):
        read_array_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(5))
def test_empty_arrays_load(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.zeros((0, 4), np.float32)}, protocol))
    assert read_array_pickle(tmp_path / "a.pkl")["w"].shape == (0, 4)
