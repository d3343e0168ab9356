"""X-Decoder + GRiT -> what training starts from: eight tensors missing, one unused, and nothing left out in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from locap.datasets.categories import COCO_PANOPTIC
from locap.modeling.checkpoints.loader import load_weights
from locap.modeling.systems import SYSTEMS, build_trained
from locap.trainer.checkpoint import model_tensors
from locap.utils.combine_weights import combine, combine_files
from locap.utils.errors import CheckpointError

from .originals import CAPTIONER, INERT, grit_file, measured_names, xdecoder_file

ROOT = Path(__file__).resolve().parents[2]
MISSING = {"region_proj.weight", "region_proj.bias"}
MISSING |= {f"decoder.box_embed.layers.{layer}.{name}" for layer in range(3) for name in ("weight", "bias")}
STARTS_FRESH = SYSTEMS["pix2cap_model"].starts_fresh


@pytest.fixture(scope="module")
def tiny(original):
    return original()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    """A folder with both downloads, under the names that the original expects."""
    folder = tmp_path_factory.mktemp("downloads")
    torch.save(xdecoder_file(tiny.tensors), folder / "xdecoder_focall_last.pt")
    torch.save(grit_file(tiny.tensors), folder / "grit_b_densecap.pth")
    return folder


@pytest.fixture(scope="module")
def merged(folder) -> Path:
    """The file that the original command leaves, run in that folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "utils" / "combine_weights.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "written: xdecoder_focall_last_updated.pt" in done.stderr
    return folder / "xdecoder_focall_last_updated.pt"


def test_published_sizes():
    """930 names of X-Decoder, 106 of GRiT's captioner; 8 of 1043 stay open and one is left over."""
    names = measured_names("full")
    tensors = dict.fromkeys(names, torch.zeros(1))
    xdecoder, grit = xdecoder_file(tensors), grit_file(tensors)
    assert len(xdecoder) == 930
    both = combine(xdecoder, grit["model"])
    assert len([name for name in both if name.startswith(CAPTIONER)]) == 106
    assert len(names.keys() - both.keys()) == 8
    assert both.keys() - names.keys() == {"backbone_proj"}


def test_the_merged_file_holds_both(merged, tiny):
    written = torch.load(merged, weights_only=True)
    for name, tensor in xdecoder_file(tiny.tensors).items():
        assert torch.equal(written.pop(name), tensor)
    assert written.keys() == {name for name in tiny.tensors if name.startswith(CAPTIONER)}
    assert all(torch.equal(tensor, tiny.tensors[name]) for name, tensor in written.items())


def test_training_starts_from_it_and_says_what_is_fresh(merged, tiny, make_model, caplog):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    report = load_weights(model, merged, allow_missing=STARTS_FRESH)
    assert set(report.missing) == MISSING
    assert len(report.missing) == 8
    assert report.ignored == ["backbone_proj"]
    assert set(report.inert) == set(INERT)
    assert report.unexpected == []
    (record,) = [record for record in caplog.records if record.name.endswith("loader")]
    assert record.levelname == "WARNING"
    assert "8 missing: decoder.box_embed (6), region_proj (2)" in record.message
    assert "1 of other parts ignored: backbone_proj" in record.message
    theirs = model_tensors(tiny.model)
    for name, tensor in model_tensors(model).items():
        assert torch.equal(tensor, before[name] if name in MISSING else theirs[name]), name


def test_evaluation_does_not(merged, make_config):
    """A captioner that reads an untrained projection would write nonsense."""
    with pytest.raises(CheckpointError, match="do not fit the model") as caught:
        build_trained(make_config("RESUME_FROM", str(merged)), COCO_PANOPTIC)
    assert "8 missing: decoder.box_embed (6), region_proj (2)" in caught.value.value
    assert "has to be trained first" in caught.value.fix


def test_training_does_not_start_without_a_captioner(folder, make_model):
    with pytest.raises(CheckpointError, match="do not fit the model") as caught:
        load_weights(make_model(), folder / "xdecoder_focall_last.pt", allow_missing=STARTS_FRESH)
    assert "captioner.layers (32)" in caught.value.value
    assert "entry.py combine adds GRiT's" in caught.value.fix


def test_grit_alone_fills_the_captioner(folder, tiny, make_model):
    model = make_model()
    others = {name.split(".")[0] + "." for name in model.state_dict()} - {"captioner."}
    report = load_weights(model, folder / "grit_b_densecap.pth", allow_missing=tuple(others))
    assert report.layout == "original GRiT"
    assert len(report.ignored) == 3
    assert all(name.startswith("captioner.") for name in report.loaded)
    assert not any(name.startswith("captioner.") for name in report.missing)
    ours = tiny.model.captioner.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.captioner.state_dict().items())


def test_other_names_and_prefixes(folder, tiny, merged, tmp_path):
    names = {"xdecoder": tmp_path / "a.pt", "grit": tmp_path / "b.pt", "output": tmp_path / "deep" / "c.safetensors"}
    torch.save({f"module.{name}": t for name, t in xdecoder_file(tiny.tensors).items()}, names["xdecoder"])
    torch.save({f"model.{name}": t for name, t in grit_file(tiny.tensors)["model"].items()}, names["grit"])
    from safetensors.torch import load_file

    written, wanted = load_file(combine_files(**names)), torch.load(merged, weights_only=True)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in written.items())


def test_wrong_files_are_told_apart(folder, tmp_path):
    xdecoder, grit = folder / "xdecoder_focall_last.pt", folder / "grit_b_densecap.pth"
    output = tmp_path / "out.pt"
    for first, second, message in (
        (grit, xdecoder, "not the weights of X-Decoder"),
        (xdecoder, xdecoder, "not the weights of GRiT"),
        (tmp_path / "gone.pt", grit, "gone.pt"),
    ):
        with pytest.raises(CheckpointError, match=message):
            combine_files(first, second, output)
    assert not output.exists()
