"""Checkpoints: complete or absent, verified before use, and without a line of pickle."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from locap.trainer.checkpoint import CheckpointFolder, model_tensors, optimizer_tensors, restore_optimizer
from locap.trainer.checkpoint_files import verify
from locap.utils.errors import CheckpointError

FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}


def toy(width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model with a tied matrix and a used optimiser."""
    torch.manual_seed(width)
    model = nn.ModuleDict(
        {"words": nn.Embedding(5, width), "hidden": nn.Linear(width, width), "out": nn.Linear(width, 5)}
    )
    model["out"].weight = model["words"].weight
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model["out"](model["hidden"](model["words"](torch.arange(5)))).square().sum().backward()
    optimizer.step()
    return model, optimizer


def tensors(width: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """Return the two files of a toy's checkpoint."""
    model, optimizer = toy(width)
    return {"model.safetensors": model_tensors(model), "optimizer.safetensors": optimizer_tensors(optimizer, model)}


@pytest.fixture
def run(tmp_path) -> CheckpointFolder:
    """A run with checkpoints of the steps 1, 2 and 3."""
    folder = CheckpointFolder(tmp_path, keep=0)
    for step in (1, 2, 3):
        folder.save(tensors(), {"step": step}, step)
    return folder


def test_a_checkpoint_is_four_files_with_a_true_manifest(run: CheckpointFolder):
    folder = run.root / "step_00000003"
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "state.json").read_text()) == {"format": 1, "step": 3}
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    assert {name: entry["bytes"] for name, entry in manifest.items()} == {
        name: (folder / name).stat().st_size for name in FILES - {"manifest.json"}
    }
    assert verify(folder) == {"format": 1, "step": 3}
    assert (run.run / "latest").read_text() == "step_00000003\n"
    assert not [path for path in run.root.iterdir() if path.name.startswith(".")], "nothing temporary is left"


def test_nothing_that_is_written_is_a_pickle(run: CheckpointFolder):
    for path in run.run.rglob("*"):
        if path.is_file():
            assert path.suffix in {".safetensors", ".json", ""}
            assert not path.read_bytes().startswith((b"\x80", b"PK"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(run: CheckpointFolder, name: str, damage, caplog):
    damage(run.root / "step_00000003" / name)
    assert run.newest() == run.root / "step_00000002"
    assert not (run.root / "step_00000003").exists()
    assert (run.root / "step_00000003.invalid").is_dir()
    assert "The checkpoint step_00000003" in caplog.text
    assert "step_00000003.invalid, and step_00000002 is used" in caplog.text


@pytest.mark.parametrize("manifest", [None, "", '{"files": {"mod', '{"files": {}}', '{"files": 1}', "[]"])
def test_a_missing_or_unreadable_manifest_is_not_believed(run: CheckpointFolder, manifest: str | None):
    path = run.root / "step_00000003" / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    assert run.newest().name == "step_00000002"
    assert (run.root / "step_00000003.invalid").is_dir()


def test_the_same_step_may_be_damaged_twice(run: CheckpointFolder):
    for _ in range(2):
        truncate(run.root / "step_00000003" / "model.safetensors")
        assert run.newest().name == "step_00000002"
        run.save(tensors(), {"step": 3}, 3)
    assert run.newest().name == "step_00000003"


def test_no_usable_checkpoint_says_what_is_wrong_with_each(run: CheckpointFolder):
    for folder in sorted(run.root.iterdir()):
        truncate(folder / "state.json")
    with pytest.raises(CheckpointError, match="The run holds no usable checkpoint") as caught:
        run.newest()
    assert str(caught.value).count("is incomplete: state.json") == 3


def test_the_newest_are_kept_and_half_written_ones_go(tmp_path):
    run = CheckpointFolder(tmp_path, keep=2)
    (run.root / ".tmp-9-deadbeef").mkdir(parents=True)
    for step in (1, 2, 3, 4):
        run.save(tensors(), {}, step)
    assert sorted(path.name for path in run.root.iterdir()) == ["step_00000003", "step_00000004"]


def test_going_back_abandons_what_came_after(run: CheckpointFolder):
    run.go_back(run.root / "step_00000001")
    assert run.newest().name == "step_00000001"
    assert (run.root / "step_00000002.abandoned").is_dir()


@pytest.fixture
def full_disk():
    """No file can grow beyond 2000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(run: CheckpointFolder, full_disk):
    run.save(tensors(64), {"step": 4}, 4)
    with pytest.raises(CheckpointError, match="The checkpoint could not be written") as caught:
        run.wait()
    assert caught.value.exit_code == 5
    assert "free disk space" in str(caught.value)
    assert sorted(path.name for path in run.root.iterdir()) == ["step_00000001", "step_00000002", "step_00000003"]
    assert run.newest().name == "step_00000003"
    assert (run.run / "latest").read_text() == "step_00000003\n"


def test_the_optimiser_comes_back_bit_by_bit():
    model, optimizer = toy()
    twin, other = toy()
    other.state.clear()
    restore_optimizer(other, twin, optimizer_tensors(optimizer, model))
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert optimizer.state[ours].keys() == other.state[theirs].keys()
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, other.state[theirs][key])
            assert value.data_ptr() != other.state[theirs][key].data_ptr()


def test_another_models_optimiser_is_refused():
    tensors = optimizer_tensors(*reversed(toy()))
    wider, optimizer = toy(8)
    with pytest.raises(CheckpointError, match="belongs to another model") as caught:
        restore_optimizer(optimizer, wider, tensors)
    assert "allowed" in str(caught.value)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        restore_optimizer(optimizer, wider, {"exp_avg/nowhere": torch.zeros(1)})
