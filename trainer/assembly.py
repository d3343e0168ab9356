"""From a configuration to what trains: data, model, loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..datasets.loader import TrainLoader
from ..datasets.mixtures import MixedReader
from ..modeling.systems import build_trained, configured_weights, find_system
from ..utils.errors import UsageError
from .data import EvalSet, open_eval_sets, open_training
from .distributed import World
from .ema import MovingAverage
from .entries import eval_groups
from .evaluate import precision
from .flops import device_peak
from .loop import TrainingLoop
from .optimizer import Layers, build_optimizer, build_schedule
from .parallel import Replicas, compile_blocks
from .run_folder import resumed_run, writable
from .scoring import check_protocols


@dataclass(slots=True)
class Experiment:
    """A system with its data, ready to train or to evaluate."""

    model: nn.Module
    tokenizer: Any
    train_reader: MixedReader | None
    eval_sets: list[EvalSet]


def build_experiment(cfg: Any, world: World, *, training: bool) -> Experiment:
    """Open the data sets and build the system, the same weights on every rank; those of RESUME_FROM to evaluate."""
    eval_groups(cfg)  # wrong names are told before files are read
    train_reader = open_training(cfg) if training else None
    eval_sets = open_eval_sets(cfg)
    check_protocols(cfg, eval_sets)
    system = find_system(cfg.MODEL.NAME)
    tokenizer = system.tokenizer(cfg)
    if train_reader is None:
        model = build_trained(cfg, eval_sets[0].reader.categories, tokenizer, world.device)
    else:
        torch.manual_seed(cfg.SEED)
        model = system.model(cfg, train_reader.categories, tokenizer).to(world.device)
    return Experiment(model, tokenizer, train_reader, eval_sets)


def build_loop(model: nn.Module, cfg: Any, world: World, max_steps: int, **options: Any) -> TrainingLoop:
    """Return the loop that the configuration describes; the model is shared out among the ranks.

    Args:
        model: with the weights that training starts from.
        cfg: the resolved configuration.
        world: this process among its peers.
        max_steps: of the run.
        options: further arguments of `TrainingLoop`.
    """
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    blocks = find_system(cfg.MODEL.NAME).blocks(model)
    if cfg.COMPILE:
        compile_blocks(blocks)
    sharing = {"strategy": cfg.PARALLEL.STRATEGY, "ranks_per_copy": cfg.PARALLEL.RANKS_PER_COPY}
    layers = decayed_layers(model, cfg)
    replicas = Replicas(model, world, blocks=blocks, **sharing)  # parameters may be others from here on
    return TrainingLoop(
        model,
        build_optimizer(model, solver, layers),
        build_schedule(solver, max_steps),
        world=world,
        replicas=replicas,
        seed=cfg.SEED,
        precision=precision(cfg, world),
        clip_norm=clip.CLIP_VALUE if clip.ENABLED else None,
        accumulate=cfg.GRADIENT_ACCUMULATE_STEP,
        targets=find_system(cfg.MODEL.NAME).targets,
        average=MovingAverage(model, solver.EMA_DECAY) if solver.EMA_DECAY else None,
        max_skipped=solver.MAX_SKIPPED_STEPS,
        peak_tflops=device_peak(world.device, precision(cfg, world), cfg.PEAK_TFLOPS),
        **options,
    )


def check_start(cfg: Any) -> str:
    """Look whether the run's folder, or the weights it starts from, can be used; returns nothing of interest.

    Raises:
        CheckpointError: they can't.
    """
    if cfg.RESUME:
        return str(resumed_run(cfg.RESUME_FROM))
    if cfg.WEIGHT:
        configured_weights(cfg)
    return str(writable(Path(cfg.SAVE_DIR)))


def decayed_layers(model: nn.Module, cfg: Any) -> Layers:
    """Return the layers that SOLVER.LAYER_DECAY tells apart, none where it is 1.

    Raises:
        UsageError: the model's encoder has no such layers.
    """
    if cfg.SOLVER.LAYER_DECAY == 1:
        return ()
    layers_of = find_system(cfg.MODEL.NAME).layers
    layers = layers_of(model) if layers_of else ()
    if not layers:
        raise UsageError(
            "The model's encoder is no plain ViT, whose layers could learn at rates of their own.",
            where="SOLVER.LAYER_DECAY",
            value=cfg.SOLVER.LAYER_DECAY,
            allowed="1, or another encoder",
            fix="--overrides SOLVER.LAYER_DECAY 1",
        )
    return layers


def max_steps(cfg: Any, loader: TrainLoader) -> int:
    """Return the optimiser steps of a run: MAX_STEPS, or those of MAX_NUM_EPOCHS passes over the data."""
    if cfg.SOLVER.MAX_STEPS:
        return cfg.SOLVER.MAX_STEPS
    return max(1, cfg.SOLVER.MAX_NUM_EPOCHS * len(loader) // cfg.GRADIENT_ACCUMULATE_STEP)
