"""Which learning rate and decay each parameter gets, and how the rate changes over a run."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from locap.modeling.backbones.eva import TimmViT
from locap.trainer.optimizer import (
    GroupRule,
    Schedule,
    build_optimizer,
    build_schedule,
    layer_scales,
    parameter_groups,
)
from locap.utils.schema import Solver

RULE = GroupRule({"backbone": 0.1, "lang_encoder": 0.1}, 0.05, 0.0, 0.0, 0.0)


class Toy(nn.Module):
    """One parameter of every kind; the caption vocabulary is tied, and met as an embedding first."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)})
        self.lang_encoder = nn.ModuleDict({"backbone_like": nn.Linear(4, 4)})
        self.words = nn.Embedding(7, 4)
        self.decode = nn.Linear(4, 7)
        self.decode.weight = self.words.weight
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)])
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        self.position_bias = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def placed(model: nn.Module, base_lr: float = 1e-4, rule: GroupRule = RULE) -> dict[str, tuple[float, float]]:
    """Return parameter name -> (learning rate, decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, base_lr, rule)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_learning_rate_multipliers_are_substrings_of_the_full_name_and_multiply():
    found = placed(Toy())
    assert found["backbone.conv.weight"][0] == pytest.approx(1e-5)
    assert found["backbone.norm.weight"][0] == pytest.approx(1e-5)
    assert found["lang_encoder.backbone_like.weight"][0] == pytest.approx(1e-6)
    assert found["decode.bias"][0] == pytest.approx(1e-4)
    of_everything = placed(Toy(), rule=GroupRule({"model.": 0.5}, 0.05, 0, 0, 0))
    assert {lr for lr, _ in of_everything.values()} == {5e-5}


def test_decay_spares_norms_embeddings_and_tables_but_not_biases():
    found = {name: decay for name, (_, decay) in placed(Toy(), rule=GroupRule({}, 0.05, 0.01, 0.02, 0.03)).items()}
    assert found["backbone.conv.weight"] == found["backbone.conv.bias"] == 0.05
    assert found["decode.bias"] == 0.05, "as published: the test is on the module's name"
    assert found["position_bias.weight"] == found["position_bias.bias"] == 0.03
    assert found["backbone.norm.weight"] == found["norms.0.bias"] == found["norms.1.weight"] == 0.01
    assert found["norms.2.weight"] == 0.01
    assert found["words.weight"] == 0.02, "the tied matrix belongs to the embedding"
    assert found["relative_position_bias_table"] == 0.0


def test_decay_by_shape_spares_vectors_and_nothing_else():
    model = Toy()
    found = placed(model, rule=GroupRule({}, 0.05, 0.01, 0.02, 0.03, decay_by_shape=True))
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert {name: 0.05 if shapes[name] > 1 else 0.0 for name in found} == {n: decay for n, (_, decay) in found.items()}
    assert found["words.weight"][1] == 0.05


def test_layers_near_the_input_learn_slower():
    model = Toy()
    layers = [list(model.backbone.parameters()), list(model.norms.parameters())]
    groups = parameter_groups(model, 1.0, GroupRule({"backbone.norm": 2}, 0, 0, 0, 0, layer_decay=0.5), layers)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(model.backbone["conv"].weight)] == 0.25
    assert rates[id(model.backbone["norm"].weight)] == 0.5
    assert rates[id(model.norms[0].weight)] == 0.5
    assert rates[id(model.words.weight)] == 1.0


def test_published_layer_decay_of_eva_02():
    with torch.device("meta"):
        encoder = TimmViT("eva02_large_patch14_224.mim_m38m", dim=64, num_heads=2)  # its own depth
    scales = layer_scales(encoder.layers(), 0.8)
    blocks = encoder.body.blocks
    assert len(blocks) == 24
    for parameter, wanted in (
        (encoder.body.patch_embed.proj.weight, 0.003778),  # id 0
        (encoder.body.pos_embed, 0.003778),
        (blocks[0].norm1.weight, 0.004722),  # id 1
        (blocks[23].mlp.fc2.bias, 0.8),  # id 24
    ):
        assert scales[id(parameter)] == pytest.approx(wanted, abs=5e-7)
    above = {name for name, parameter in encoder.named_parameters() if id(parameter) not in scales}
    assert above == {"body.cls_token", "body.fc_norm.weight", "body.fc_norm.bias"}, "id 25"


def test_every_trained_parameter_is_in_exactly_one_group_and_groups_are_few():
    model = Toy()
    groups = parameter_groups(model, 1e-4, RULE)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    settings = [(group["lr"], group["weight_decay"]) for group in groups]
    assert len(settings) == len(set(settings))


def solver(**values):
    return OmegaConf.structured(Solver(**values))


def test_the_optimiser_is_the_published_one():
    adam = build_optimizer(Toy(), solver())
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    momentum = build_optimizer(Toy(), solver(OPTIMIZER="SGD", MOMENTUM=0.8))
    assert isinstance(momentum, torch.optim.SGD)
    assert momentum.defaults["momentum"] == 0.8


def test_published_milestones():
    schedule = build_schedule(solver(), 25 * 569)
    assert schedule.milestones == [12644, 13698]
    assert [schedule.factor(step) for step in (0, 12643)] == [1.0, 1.0]
    assert schedule.factor(12644) == schedule.factor(13697) == pytest.approx(0.1)
    assert schedule.factor(13698) == schedule.factor(14224) == pytest.approx(0.01)


def test_warm_up_rises_linearly_or_stays():
    linear = build_schedule(solver(WARMUP_FACTOR=0.2, WARMUP_ITERS=4), 1000)
    assert [linear.factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    constant = build_schedule(solver(WARMUP_FACTOR=0.2, WARMUP_ITERS=2, WARMUP_METHOD="constant"), 1000)
    assert [constant.factor(step) for step in range(4)] == pytest.approx([0.2, 0.2, 1.0, 1.0])


@pytest.mark.parametrize(
    ("base", "steps", "warmup", "half_way"), [(5e-5, 10_000, 250, 2.60e-5), (1e-4, 40_000, 1_000, 5.20e-5)]
)
def test_published_cosine_starts_after_the_warm_up(base: float, steps: int, warmup: int, half_way: float):
    schedule = build_schedule(
        solver(LR_SCHEDULER_NAME="CosineAfterWarmupLR", BASE_LR=base, WARMUP_ITERS=warmup, WARMUP_FACTOR=0.0), steps
    )
    assert schedule.factor(0) == 0
    assert base * schedule.factor(warmup) == base
    assert base * schedule.factor(steps // 2) == pytest.approx(half_way, abs=5e-8)
    for step in (1, warmup // 2, warmup + 1, steps - 1, steps):
        cosine = (1 + math.cos(math.pi * max(0, step - warmup) / (steps - warmup))) / 2
        assert schedule.factor(step) == pytest.approx(min(1, step / warmup) * cosine)
    assert schedule.factor(steps) == pytest.approx(0)


def test_cosine_ends_at_its_own_rate():
    schedule = build_schedule(
        solver(LR_SCHEDULER_NAME="WarmupCosineLR", BASE_LR=1e-3, BASE_LR_END=1e-4, WARMUP_ITERS=0), 100
    )
    assert [schedule.factor(step) for step in (0, 50, 100, 200)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_polynomial_keeps_a_share():
    schedule = build_schedule(
        solver(
            LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_POWER=2.0, POLY_LR_CONSTANT_ENDING=0.2, BASE_LR_END=1.0,
            WARMUP_ITERS=0,
        ),
        100,
    )  # fmt: skip
    assert [schedule.factor(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.2 + 0.8 * 0.25, 0.2])


def test_the_factor_keeps_the_groups_apart():
    optimizer = build_optimizer(Toy(), solver())
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = Schedule("WarmupMultiStepLR", 10, milestones=[0.5])
    for _ in range(3):  # set, not accumulated
        schedule.apply(optimizer, 7)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * lr for lr in before])
