"""Checkpoints of shared models: written by some ranks, read by others, to the last bit, without a pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from locap.trainer.checkpoint import model_tensors, optimizer_tensors
from locap.trainer.distributed import World
from locap.trainer.optimizer import GroupRule, parameter_groups
from locap.trainer.parallel import is_shard, shard
from locap.trainer.sharded import full_tensors, restore, staged, write
from locap.utils.errors import CheckpointError

RULE = GroupRule({}, 0.0, 0.0, 0.0, 0.0)


class Toy(nn.Module):
    """Scalars, tied tables, buffers, frozen parts, bfloat16, and fewer rows than ranks."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.block = nn.Linear(3, 5)
        self.frozen = nn.Linear(3, 2, dtype=torch.bfloat16).requires_grad_(False)
        self.words, self.out = nn.Embedding(7, 5), nn.Linear(5, 7)
        self.out.weight = self.words.weight
        self.short, self.scale = nn.Parameter(torch.randn(1, 2)), nn.Parameter(torch.randn(()))
        self.register_buffer("seen", torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.block(x) + self.words.weight[0]).sum() * self.scale + self.short.sum()


def make(world: World, seed: int, ranks_per_copy: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Toy(seed)
    if world.size > 1:
        shard(model, world, ranks_per_copy=ranks_per_copy, blocks=[model.block, model.frozen])
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, RULE), fused=True)
    for value in (1.0, 2.0):
        model(torch.full((2, 3), value * (seed + 1))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Return all tensors of both, whole."""
    every = dict(full_tensors(model))
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            every[f"{key}/{name}"] = value.full_tensor() if is_shard(value) else value
    return {name: tensor.detach().float().numpy() for name, tensor in every.items()}


def save(world: World, folder: Path, ranks_per_copy: int) -> dict[str, np.ndarray]:
    model, optimizer = make(world, 0, ranks_per_copy)
    write(staged(model, optimizer), folder, world.rank)
    return state(model, optimizer)


def load(world: World, folder: Path, ranks_per_copy: int) -> dict[str, np.ndarray]:
    model, optimizer = make(world, 5, ranks_per_copy)
    restore(folder, model, optimizer)
    return state(model, optimizer)


@pytest.fixture
def somewhere(on_ranks) -> Callable:
    def call(size: int, function: Callable, *arguments) -> dict[str, np.ndarray]:
        return function(World(), *arguments) if size == 1 else on_ranks(size, function, *arguments)[0]

    return call


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert {name for name in other if not np.array_equal(one[name], other[name])} == set()


@pytest.mark.parametrize(
    ("writers", "copies", "readers"),
    [(1, 0, (2,)), (2, 0, (1, 4)), (4, 0, (1, 2)), (4, 2, (1, 4))],
    ids=["1 -> 2", "2 -> 1, 4", "4 -> 1, 2", "2 x 2 -> 1, 4"],
)
def test_any_number_of_ranks_reads_what_any_number_wrote(writers, copies, readers, somewhere, tmp_path):
    written = somewhere(writers, save, tmp_path, copies)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == writers
    assert len(list(tmp_path.glob("optimizer-*.safetensors"))) == writers
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
    for size in readers:
        assert_equal(somewhere(size, load, tmp_path, 0), written)


def test_a_checkpoint_of_whole_tensors_fits_a_shared_model(somewhere, tmp_path):
    model, optimizer = make(World(), 0)
    save_file(model_tensors(model), tmp_path / "model.safetensors")
    save_file(optimizer_tensors(optimizer, model), tmp_path / "optimizer.safetensors")
    assert_equal(somewhere(2, load, tmp_path, 0), state(model, optimizer))


def test_torch_reads_the_shards(somewhere, tmp_path):
    """Not only we can: the header is that of torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp

    written = somewhere(2, save, tmp_path, 0)
    for path in tmp_path.glob("optimizer-*"):
        path.unlink()
    tensors = {"block.weight": torch.zeros(5, 3), "words.weight": torch.zeros(7, 5)}
    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(np.array_equal(tensor.numpy(), written[name]) for name, tensor in tensors.items())


def test_what_is_staged_does_not_change_when_training_goes_on():
    model, optimizer = make(World(), 0)
    kept = staged(model, optimizer)
    before = {name: piece.tensor.clone() for name, piece in kept.files["model"].items()}
    with torch.no_grad():
        model.block.weight.add_(1)
    assert all(torch.equal(piece.tensor, before[name]) for name, piece in kept.files["model"].items())


def test_files_that_are_missing_or_broken_are_told(somewhere, tmp_path):
    somewhere(2, save, tmp_path, 0)
    second = tmp_path / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        restore(tmp_path, Toy(0))
    second.unlink()
    with pytest.raises(CheckpointError, match="Files of the weights are missing"):
        restore(tmp_path, Toy(0))


@pytest.mark.parametrize(
    "change", [{"block.weight": torch.zeros(5, 4)}, {"other": torch.zeros(1)}], ids=["shape", "name"]
)
def test_tensors_of_another_model_are_refused(change, tmp_path):
    save_file({**model_tensors(Toy(0)), **change}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        restore(tmp_path, Toy(0))
