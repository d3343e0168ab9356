"""Weights in several files: what is put together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from locap.utils.errors import CheckpointError
from locap.utils.untrusted import load_tensor_parts, tensor_parts, weight_files

WHOLE = {"a": torch.arange(15.0).reshape(5, 3), "b": torch.arange(4, dtype=torch.bfloat16), "c": torch.tensor(7)}


def write(folder: Path, *parts: dict, offsets: list | None = None) -> None:
    """Write files, of which each holds its tensors from the given first element on."""
    for number, tensors in enumerate(parts):
        told = (offsets or [{}] * len(parts))[number]
        text = told if isinstance(told, str) else json.dumps({n: {"saved_offsets": o} for n, o in told.items()})
        path = folder / f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file(tensors, path, {"DCP_SHARDING_INFO": text})


def write_two(folder: Path, begin: object = [2, 0]) -> None:
    first, second = {"a": WHOLE["a"][:2].clone(), "c": WHOLE["c"]}, {"a": WHOLE["a"][2:].clone(), "b": WHOLE["b"]}
    write(folder, first, second, offsets=[{"a": [0, 0]}, {"a": begin, "b": [0]}])


def check(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == WHOLE.keys()
    assert all(tensors[name].dtype == WHOLE[name].dtype and torch.equal(tensors[name], WHOLE[name]) for name in WHOLE)


def test_parts_become_whole_tensors(tmp_path):
    write_two(tmp_path)
    check(load_tensor_parts(tmp_path, "model"))
    assert [(part.offsets, part.shape) for part in tensor_parts(tmp_path, "model")["a"]] == [
        ((0, 0), (2, 3)),
        ((2, 0), (3, 3)),
    ]


def test_whole_tensors_in_several_files_need_no_offsets(tmp_path):
    """As model hubs store large models."""
    write(tmp_path, {"a": WHOLE["a"]}, {"b": WHOLE["b"], "c": WHOLE["c"]})
    check(load_tensor_parts(tmp_path, "model"))


def test_one_file_is_a_set_too(tmp_path):
    save_file(WHOLE, tmp_path / "model.safetensors")
    check(load_tensor_parts(tmp_path, "model"))
    assert weight_files(tmp_path, "ema") == []


@pytest.mark.fault("B7")
@pytest.mark.parametrize(
    "begin",
    [[1, 0], [3, 0], [0, 0], [2, 1], [2], [2, 0, 0], [-2, 0], [2.0, 0], [True, 0], "20", None, [10**30, 0]],
    ids=repr,
)
def test_wrong_offsets_are_refused(begin, tmp_path):
    write_two(tmp_path, begin)
    with pytest.raises(CheckpointError, match="do not make up a whole"):
        load_tensor_parts(tmp_path, "model")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": {}}', "[" * 100_000], ids=lambda text: text[:8])
def test_offsets_that_are_none_are_refused(text, tmp_path):
    write(tmp_path, WHOLE, offsets=[text])
    with pytest.raises(CheckpointError, match="do not make up a whole"):
        load_tensor_parts(tmp_path, "model")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(3)),
        (torch.zeros(()), torch.zeros(())),
    ],
    ids=["width", "type", "axes", "scalars"],
)
def test_parts_that_do_not_go_together_are_refused(one, other, tmp_path):
    write(tmp_path, {"a": one}, {"a": other}, offsets=[{"a": [0] * one.ndim}, {"a": [2, 0][: other.ndim]}])
    with pytest.raises(CheckpointError, match="do not make up a whole"):
        load_tensor_parts(tmp_path, "model")


@pytest.mark.fault("B7")
def test_files_that_lack_or_are_broken_are_told(tmp_path):
    write_two(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    for broken in (b"", content[:-1], content[:6], (2**62).to_bytes(8, "little") + content[8:], b"<html>" + content):
        second.write_bytes(broken)
        with pytest.raises(CheckpointError, match="truncated or corrupt") as caught:
            load_tensor_parts(tmp_path, "model")
        assert second.name in str(caught.value)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"missing[\s\S]*model-00002-of-00002"):
        weight_files(tmp_path, "model")


def test_two_sets_in_a_folder_are_refused(tmp_path):
    write_two(tmp_path)
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        weight_files(tmp_path, "model")
