"""Models on several processes, in copies or shared: the same steps as of one, skipped steps, compiled blocks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locap.datasets.batches import Batch
from locap.modeling.systems import SYSTEMS
from locap.trainer.distributed import World, sum_over_ranks
from locap.trainer.optimizer import GroupRule, parameter_groups
from locap.trainer.parallel import Replicas, compile_blocks, is_shard, shard
from locap.trainer.sharded import full_tensors
from locap.utils.errors import UsageError

RULE = GroupRule({}, 0.0, 0.0, 0.0, 0.0)
FULL = os.environ.get("LOCAP_RELIABILITY") == "full"
NOTHING = Batch([], [], [], [])


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_shard(tensor) else tensor


def take_steps(world: World, make: Callable, windows: list[list[Batch]], name: str, **options) -> tuple[list, dict]:
    """Train on windows, which are dealt to the ranks batch by batch; returns losses and norms, and all weights."""
    model, system = make().train(), SYSTEMS[name]
    replicas = Replicas(model, world, blocks=system.blocks(model), **options)
    assert replicas.sharded == (options.get("strategy") == "fsdp" and world.size > 1)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.01, RULE), momentum=0.9)
    history = []
    for step, whole in enumerate(windows):
        counts = [model.counts(batch) for batch in whole]
        counts = {key: max(sum(count[key] for count in counts), 1.0) for key in counts[0]}
        mine, value = whole[world.rank :: world.size], torch.zeros(())
        for index, batch in enumerate(mine):
            share = float(len(batch) > 0)
            batch = batch if share else Batch.blank(kind=system.targets)
            with nullcontext() if index == len(mine) - 1 else replicas.local_gradients():
                terms = replicas.forward(batch, step).values()
                loss = sum(term.total * (share * term.weight / counts[term.counted]) for term in terms)
                (loss * world.size).backward()
            value = value + loss.detach()
        norm = replicas.clip(model.parameters(), 5.0)
        assert not is_shard(norm)
        optimizer.step()
        optimizer.zero_grad()
        history.append((float(sum_over_ranks(value)), float(norm)))
    return history, {key: tensor.numpy() for key, tensor in full_tensors(model).items()}


def predicts_whole(world: World, make: Callable, batch: Batch) -> list[str]:
    """Predict with a shared model before and after a step, on one rank only."""
    model = make()
    replicas = Replicas(model, world, strategy="fsdp", blocks=SYSTEMS["pix2cap_model"].blocks(model))
    found = []
    for _ in range(2):
        model.eval()
        with replicas.gathered():
            records = model.predict(batch) if world.rank == 1 else []
        assert any(map(is_shard, model.parameters()))
        found.append(repr([(record.id_map.tolist(), record.regions) for record in records]))
        model.train()
        terms = replicas.forward(batch, 0)
        sum(term.total for term in terms.values()).backward()
    return found


@pytest.fixture
def pix2cap_windows(make_batch) -> list[list[Batch]]:
    """Four batches a step, of the first one and of the second three without an image."""
    return [
        [make_batch([3, 1], seed=1), make_batch([2], seed=2), make_batch([0], seed=3), NOTHING],
        [make_batch([4], seed=4), NOTHING, NOTHING, NOTHING],
        [make_batch([1], seed=5), make_batch([2], seed=6), make_batch([5], seed=7), make_batch([1, 1], seed=8)],
    ]


@pytest.fixture
def pixelllm_windows(tiny_pixelllm) -> list[list[Batch]]:
    """Ranks with one task, three tasks and none."""
    drawn = tiny_pixelllm.Drawn()
    return [
        [drawn.lessons("region", "refer", "trace"), drawn.lessons("detect"), NOTHING, drawn.lessons("refer")],
        [drawn.lessons("refer"), drawn.lessons("", "trace"), drawn.lessons("region", "region"), NOTHING],
    ]


def near(answer: tuple, alone: tuple, tolerance: float = 1e-5) -> None:
    (history, weights), (expected, others) = answer, alone
    for pair, other in zip(history, expected, strict=True):
        assert pair == pytest.approx(other, rel=tolerance)
    apart = sum(float(np.square(weights[key] - other, dtype=np.float64).sum()) for key, other in others.items())
    assert (
        apart / sum(float(np.square(other, dtype=np.float64).sum()) for other in others.values())
    ) ** 0.5 < tolerance


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(2, {"strategy": "fsdp"}, id="2 share one, two batches each"),
        pytest.param(4, {"strategy": "fsdp", "ranks_per_copy": 2}, id="two copies, shared by 2"),
    ],
)
def test_a_shared_pix2cap_learns_as_one_process_does(size, options, build, pix2cap_windows, on_ranks):
    def make() -> nn.Module:
        return build(aids=True)

    alone = take_steps(World(), make, pix2cap_windows, "pix2cap_model")
    for answer in on_ranks(size, lambda world: take_steps(world, make, pix2cap_windows, "pix2cap_model", **options)):
        near(answer, alone)


@pytest.mark.parametrize(
    "size", [2, pytest.param(4, marks=pytest.mark.skipif(not FULL, reason="only in `make reliability`"))]
)
def test_a_shared_pixelllm_learns_as_one_process_does(size, tiny_pixelllm, pixelllm_windows, on_ranks):
    """Tasks, so calls of the language model, differ between the ranks."""
    alone = take_steps(World(), tiny_pixelllm.build, pixelllm_windows, "pixelllm_model")

    def learn(world: World) -> tuple:
        return take_steps(world, tiny_pixelllm.build, pixelllm_windows, "pixelllm_model", strategy="fsdp")

    for answer in on_ranks(size, learn):
        near(answer, alone)


def test_a_shared_model_predicts_on_one_rank_alone(build, make_batch, on_ranks):
    batch = make_batch([3])
    model = build().eval()
    expected = repr([(record.id_map.tolist(), record.regions) for record in model.predict(batch)])
    assert on_ranks(2, predicts_whole, build, batch)[1] == [expected, expected]


def _toy() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    model.scale = nn.Parameter(torch.tensor(2.0))
    model[0].bias.requires_grad_(False)
    return model


def _shared_toy(world: World) -> nn.Module:
    model = _toy()
    shard(model, world, blocks=[model[0]])
    return model


def _norms(world: World, strategy: str) -> list[float]:
    """Return norms before and after clipping, by our way and torch's."""
    model = _toy()
    replicas = Replicas(model, world, strategy=strategy, blocks=[model[0]])
    (replicas.forward(torch.full((2, 5), 1.0 + world.rank)).sum() * model.scale).backward()
    norm = replicas.clip(model.parameters(), 0.5)
    return [float(norm), float(replicas.clip(model.parameters(), float("inf")))]


def test_the_norm_is_that_of_the_mean_gradient_on_every_rank(on_ranks):
    model = _toy()
    outputs = [model(torch.full((2, 5), 1.0 + rank)).sum() * model.scale for rank in range(2)]
    (sum(outputs) / 2).backward()
    expected = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
    answers = on_ranks(2, _norms, "fsdp")
    assert answers[0] == answers[1] == [pytest.approx(expected), pytest.approx(0.5, rel=1e-5)]


def test_clipping_is_that_of_torch():
    ours, theirs = _toy(), _toy()
    for model in (ours, theirs):
        (model(torch.ones(2, 5)).sum() * model.scale).backward()
    norm = Replicas(ours, World()).clip(ours.parameters(), 0.1)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1, foreach=True))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)


def _skips(world: World, make_model: Callable, make: Callable) -> bool:
    """Whether a step with found_inf of 1 leaves weights and state to the last bit; one with 0 must not."""
    model = make_model(world)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = make(parameter_groups(model, 0.1, RULE))

    def step(value: float, found_inf: float) -> list[Tensor]:
        for parameter in learning:
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf = torch.full((), found_inf)
        optimizer.step()
        states = [value for p in learning for value in optimizer.state[p].values()]
        return [local(tensor).detach().clone() for tensor in (*learning, *states)]

    first, second, third = step(0.5, 0.0), step(0.7, 0.0), step(float("nan"), 1.0)
    assert not all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    return all(torch.equal(one, other) for one, other in zip(second, third, strict=True))


ADAMW = lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True)  # noqa: E731
SGD = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)  # noqa: E731


@pytest.mark.parametrize("make", [ADAMW, SGD], ids=["AdamW", "SGD"])
def test_fused_steps_are_skipped_on_the_device(make):
    assert _skips(World(), lambda world: _toy(), make)


def test_fused_steps_of_shards_are_skipped_on_the_device(on_ranks):
    assert on_ranks(2, _skips, _shared_toy, ADAMW) == [True, True]


def test_copies_must_come_out_even():
    with pytest.raises(UsageError, match="evenly") as caught:
        shard(_toy(), World(size=4), ranks_per_copy=3)
    assert "PARALLEL.RANKS_PER_COPY" in str(caught.value)


def test_what_is_frozen_is_shared_in_blocks_and_whole_elsewhere(build, on_ranks):
    def shared_names(world: World) -> tuple[list[str], list[str]]:
        model = build("MODEL.DECODER.FROZEX", "true")
        shard(model, world, blocks=SYSTEMS["pix2cap_model"].blocks(model))
        frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        return [n for n, p in frozen if is_shard(p)], [n for n, p in frozen if not is_shard(p)]

    (shares, whole), _ = on_ranks(2, shared_names)
    assert any(name.startswith("backbone.stages") for name in shares)
    assert "lang_encoder.token_embedding.weight" in whole
    assert not any(name.startswith("lang_encoder") for name in shares)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: compiled blocks were not checked")
def test_a_compiled_block_gives_the_same_numbers(build, make_batch):
    def losses(compiled: bool) -> dict[str, float]:
        model = build().train()
        if compiled:
            compile_blocks(model.decoder.ffn[:1])
        terms = model(make_batch([3]), 0)
        sum(term.total for term in terms.values()).backward()
        norm = model.decoder.ffn[0].linear1.weight.grad.norm()
        return {name: float(term.total.detach()) for name, term in terms.items()} | {"gradient": float(norm)}

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.01), ("fp16", 0.005)])
def test_a_step_in_half_precision_is_near_one_in_single(precision, tolerance, build, make_batch):
    """Losses of a batch whose queries are matched alike, and the norm of the gradient."""
    found = {}
    for name, dtype in (("fp32", None), (precision, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])):
        model = build().train()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            terms = model(make_batch([3, 2]), 0)
        loss = sum(term.total * term.weight for term in terms.values())
        loss.backward()
        norm = Replicas(model, World()).clip(model.parameters(), float("inf"))
        found[name] = [float(loss.detach()), float(norm)]
    assert found[precision] == pytest.approx(found["fp32"], rel=tolerance)
    assert found[precision] != found["fp32"]
