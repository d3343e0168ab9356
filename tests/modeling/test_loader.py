"""Loading weights: what fits, what does not, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from locap.modeling.checkpoints.adapter import strip_prefixes
from locap.modeling.checkpoints.loader import find_weights, load_weights, read_weights
from locap.utils.errors import CheckpointError


class Model(nn.Module):
    """Two parts and a tied weight, as Pix2Cap has."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.model = nn.Linear(2, 2)  # a part whose name is a wrapper's prefix
        self.words = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5)
        self.output.weight = self.words.weight


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(tensor) for name, tensor in Model().state_dict().items() if name != "output.weight"}


def check(model: Model, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(model.output.weight, expected["words.weight"])


def refused(path: Path, **kwargs) -> CheckpointError:
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path, **kwargs)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "weights were written"
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.fault("H1")
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("nest", [None, "model", "module", "state_dict"])
def test_prefixes_and_nesting(tmp_path: Path, prefix: str, nest: str | None):
    content = {prefix + name: tensor for name, tensor in weights().items()}
    torch.save({nest: content, "epoch": 3} if nest else content, tmp_path / "w.pt")
    model = Model()
    report = load_weights(model, tmp_path / "w.pt")
    check(model, weights())
    assert len(report.loaded) == 8
    assert not report.missing
    assert str(report) == "8 tensors loaded"


def test_a_part_called_like_a_prefix_keeps_its_name():
    known = {"model.weight", "words.weight"}.__contains__
    for given, found in (
        ({"model.weight", "words.weight"}, ["model.weight", "words.weight"]),
        ({"model.model.weight", "model.words.weight"}, ["model.weight", "words.weight"]),
        ({"model.other", "module.weight"}, ["model.other", "module.weight"]),
    ):
        assert sorted(strip_prefixes(dict.fromkeys(given, torch.zeros(1)), known)) == found


def test_safetensors_and_folders(tmp_path: Path):
    save_file(weights(), tmp_path / "model.safetensors")
    model = Model()
    load_weights(model, tmp_path)
    check(model, weights())


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path: Path):
    for step, factor in ((9, 1.0), (10, 2.0)):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        save_file({name: factor * tensor for name, tensor in weights().items()}, folder / "model.safetensors")
    model = Model()
    load_weights(model, tmp_path)
    check(model, {name: 2 * tensor for name, tensor in weights().items()})


@pytest.mark.fault("H1")
def test_missing_names_are_grouped_by_part(tmp_path: Path):
    torch.save({k: v for k, v in weights().items() if not k.startswith("encoder")}, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt")
    assert error.what == "The weights do not fit the model."
    assert error.where == str(tmp_path / "w.pt")
    assert error.value == "4 tensors loaded; 4 missing: encoder.0 (2), encoder.1 (2)"


@pytest.mark.fault("H1")
def test_what_may_be_missing_is_named(tmp_path: Path, caplog):
    torch.save({k: v for k, v in weights().items() if not k.startswith("encoder")}, tmp_path / "w.pt")
    model = Model()
    report = load_weights(model, tmp_path / "w.pt", allow_missing=("encoder.",))
    assert report.missing == ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"]
    assert caplog.records[-1].levelname == "WARNING"
    assert "4 missing: encoder.0 (2), encoder.1 (2). What is missing keeps its starting values." in caplog.text
    assert refused(tmp_path / "w.pt", allow_missing=("encoder.0.",))


def test_a_complete_load_is_reported_without_a_warning(tmp_path: Path, caplog):
    torch.save(weights(), tmp_path / "w.pt")
    with caplog.at_level("INFO", "locap"):
        load_weights(Model(), tmp_path / "w.pt")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", f"weights {tmp_path / 'w.pt'}: 8 tensors loaded")
    ]


def test_a_tied_weight_is_missing_only_without_both_names(tmp_path: Path):
    content = weights()
    content["output.weight"] = content.pop("words.weight")
    torch.save(content, tmp_path / "w.pt")
    model = Model()
    assert not load_weights(model, tmp_path / "w.pt").missing
    assert torch.equal(model.words.weight, content.pop("output.weight"))
    torch.save(content, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt").value == "7 tensors loaded; 2 missing: words.weight, output.weight"


def test_a_tied_weight_with_two_values_is_refused(tmp_path: Path):
    torch.save(weights() | {"output.weight": weights()["words.weight"]}, tmp_path / "same.pt")
    load_weights(Model(), tmp_path / "same.pt")
    torch.save(weights() | {"output.weight": torch.zeros(5, 4)}, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt")
    assert error.what == "Two names of one shared tensor hold different values."
    assert error.value == "words.weight, output.weight"


def test_a_name_with_and_without_its_prefix_is_refused(tmp_path: Path):
    torch.save(weights() | {"module.words.weight": torch.zeros(5, 4)}, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt").value == "words.weight"


@pytest.mark.fault("H1")
def test_unexpected_names(tmp_path: Path):
    torch.save(weights() | {"backbone_proj": torch.zeros(2)}, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt").value == "8 tensors loaded; 1 unexpected: backbone_proj"


@pytest.mark.fault("H1", "H3")
def test_other_shapes_are_shown_file_first(tmp_path: Path):
    torch.save(weights() | {"encoder.0.weight": torch.zeros(7, 3)}, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt")
    assert error.value == "7 tensors loaded; 1 of another shape (file -> model): encoder.0.weight (7, 3) -> (4, 3)"
    assert "config.yaml of their run" in error.fix


@pytest.mark.fault("H2")
def test_no_match_at_all(tmp_path: Path):
    torch.save({"something.else": torch.zeros(2)}, tmp_path / "w.pt")
    allow = ("encoder.", "model.", "words.", "output.")
    assert refused(tmp_path / "w.pt", allow_missing=allow).value.startswith("0 tensors loaded")


@pytest.mark.fault("D3")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float):
    content = weights()
    content["model.bias"][1] = value
    torch.save(content, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt")
    assert error.what == "The weights hold NaN or infinity."
    assert error.value == "model.bias"


@pytest.mark.fault("H4")
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"w": Trap()}, protocol=2))
    assert "could execute code. Nothing was executed." in refused(tmp_path / "w.pt").what
    torch.save({"w": Trap()}, tmp_path / "w.pth")
    assert "could execute code. Nothing was executed." in refused(tmp_path / "w.pth").what
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("H6")
def test_no_file_and_no_tensors(tmp_path: Path):
    assert refused(tmp_path / "no.pt").what == "There are no weights."
    assert refused(tmp_path).what == "There are no weights."
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt")
    assert error.what == "The file holds no weights."
    assert error.value == "keys ['epoch']"


def write_parts(folder: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as two processes that share them do: the first has their first row, the second the others."""
    for number, rows in enumerate((slice(0, 1), slice(1, None))):
        begin = {name: {"saved_offsets": [number] + [0] * (tensor.ndim - 1)} for name, tensor in tensors.items()}
        path = folder / f"{file}-{number + 1:05d}-of-00002.safetensors"
        parts = {name: tensor[rows].clone() for name, tensor in tensors.items()}
        save_file(parts, path, {"DCP_SHARDING_INFO": json.dumps(begin)})


@pytest.mark.parametrize("given", ["run", "run/checkpoints/step_00000020"])
def test_the_newest_checkpoint_of_a_run_may_be_in_parts(given, tmp_path: Path):
    older, newer = (tmp_path / "run" / "checkpoints" / f"step_000000{step}" for step in (10, 20))
    for folder in (older, newer):
        folder.mkdir(parents=True)
    save_file({name: tensor + 1 for name, tensor in weights().items()}, older / "model.safetensors")
    write_parts(newer, "model", weights())
    assert find_weights(tmp_path / given) == newer
    model = Model()
    load_weights(model, tmp_path / given)
    check(model, weights())


@pytest.mark.parametrize("parts", [False, True])
def test_a_folder_means_its_average_and_a_file_itself(parts, tmp_path: Path):
    average = {"encoder.0.weight": torch.full((4, 3), 9.0)}
    save_file(weights(), tmp_path / "model.safetensors")
    if parts:
        write_parts(tmp_path, "ema", average)
    else:
        save_file(average, tmp_path / "ema.safetensors")
    model = Model()
    load_weights(model, tmp_path)
    check(model, weights() | average)
    load_weights(model, tmp_path / "model.safetensors")
    check(model, weights())


def test_a_run_that_lacks_a_part_is_refused(tmp_path: Path):
    write_parts(tmp_path, "model", weights())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in str(refused(tmp_path))


def test_parts_are_read_with_their_average_for_other_layouts_too(tmp_path: Path):
    average = {"encoder.0.weight": torch.full((4, 3), 9.0)}
    write_parts(tmp_path, "model", weights())
    write_parts(tmp_path, "ema", average)
    read = read_weights(tmp_path)
    assert read.keys() == weights().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in (weights() | average).items())
