"""The two long jobs, from a configuration: train, and evaluate."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..datasets.batches import Batch
from ..datasets.loader import TrainLoader
from ..datasets.mixtures import MixedReader
from ..evaluation.results import ProtocolResult
from ..modeling.checkpoints.loader import load_weights
from ..modeling.systems import build_trained, configured_weights, find_system
from ..utils import untrusted
from ..utils.config import save_config
from ..utils.errors import UsageError
from ..utils.files import write_tensors
from .checkpoint import CheckpointFolder, model_tensors, optimizer_tensors, restore_optimizer
from .checkpoint_files import verify
from .data import EvalSet, First, open_eval_sets, open_training, train_loader
from .distributed import World, on_main
from .entries import eval_groups
from .evaluate import evaluate_sets, precision, score_stored
from .logs import JsonLines, TensorBoard, Tracker, Trackers, Wandb
from .loop import StepReport, TrainingLoop
from .optimizer import Layers, build_optimizer, build_schedule
from .progress import ProgressBar
from .run_folder import make_run_folder, resumed_run
from .scoring import check_protocols, headline, print_scores

_log = logging.getLogger(__name__)


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


class TrainingRun:
    """One run: loop, evaluations, checkpoints and logs, in one folder.

    Args:
        cfg: the resolved configuration.
        world: this process among its peers.
    """

    def __init__(self, cfg: Any, world: World) -> None:
        self.cfg, self.world = cfg, world
        if cfg.RESUME:
            resumed_run(cfg.RESUME_FROM)
        if cfg.WEIGHT:
            configured_weights(cfg)  # a wrong path is told before the model is built
        self.experiment = build_experiment(cfg, world, training=True)
        self.model = self.experiment.model
        self.loader = train_loader(self.experiment.train_reader, self.experiment.tokenizer, cfg, world)
        if cfg.WEIGHT:
            fresh = find_system(cfg.MODEL.NAME).starts_fresh
            load_weights(self.model, cfg.RESUME_FROM, allow_missing=fresh, partial=True)
        self.max_steps = max_steps(cfg, self.loader)
        self.loop = self._loop()
        self.folder = make_run_folder(cfg)
        self.checkpoints = CheckpointFolder(self.folder, cfg.KEEP_CHECKPOINTS)
        if cfg.RESUME:
            self._resume()
        self.results: list[ProtocolResult] = []
        self._saved_at = self.loop.state.step if cfg.RESUME else -1
        self._epochs = self.loop.state.epoch  # finished after the step before

    def _loop(self) -> TrainingLoop:
        cfg, solver = self.cfg, self.cfg.SOLVER
        clip = solver.CLIP_GRADIENTS
        return TrainingLoop(
            self.model,
            build_optimizer(self.model, solver, decayed_layers(self.model, cfg)),
            build_schedule(solver, self.max_steps),
            world=self.world,
            seed=cfg.SEED,
            precision=precision(cfg, self.world),
            clip_norm=clip.CLIP_VALUE if clip.ENABLED else None,
            accumulate=cfg.GRADIENT_ACCUMULATE_STEP,
            targets=find_system(cfg.MODEL.NAME).targets,
        )

    def run(self) -> dict[str, float]:
        """Train to the end; returns the headline figures of the last evaluation (on rank 0)."""
        cfg, world = self.cfg, self.world
        if world.is_main:
            save_config(cfg, self.folder / "config.yaml")
            (self.folder / "model.safetensors").unlink(missing_ok=True)  # of a run that is now extended
        _log.info("run folder %s, %d optimiser steps, %d process(es)", self.folder, self.max_steps, world.size)
        with contextlib.closing(self._trackers()) as self.trackers:
            if cfg.EVAL_AT_START and not self.loop.state.step:
                self.evaluate()
            self._train()
            self.save()
            on_main(lambda: str(self.checkpoints.wait()))
            figures = self.evaluate()
        on_main(self._export)
        return figures

    def _train(self) -> None:
        done = self.loop.state.step
        with ProgressBar("training", self.max_steps, done=done, enabled=self.world.is_main) as self.bar:
            self.loop.run(
                self._batches(),
                len(self.loader),
                self.max_steps,
                should_report=self._should_report,
                on_report=self._report,
                after_step=self._after_step,
            )

    def _export(self) -> str:
        path = self.folder / "model.safetensors"
        write_tensors(path, model_tensors(self.model))
        return str(path)

    def _trackers(self) -> Trackers:
        if not self.world.is_main:
            return Trackers([])
        cfg = self.cfg
        resume_step = self.loop.state.step if cfg.RESUME else None
        trackers: list[Tracker] = [JsonLines(self.folder / "metrics.jsonl", resume_step=resume_step)]
        if cfg.TENSORBOARD:
            trackers.append(TensorBoard(self.folder / "tensorboard", resume_step=resume_step))
        if cfg.WANDB:
            name = f"{cfg.BASENAME}/{self.folder.name}"
            values = OmegaConf.to_container(cfg, resolve=True)
            trackers.append(Wandb(self.folder, project=cfg.WANDB_PROJECT, name=name, config=values))
        return Trackers(trackers)

    def _batches(self) -> Iterator[Batch]:
        epoch, start = self.loop.state.epoch, self.loop.state.batch
        while True:
            yield from self.loader.batches(epoch, start)
            epoch, start = epoch + 1, 0

    def _should_report(self, step: int) -> bool:
        return step <= self.cfg.LOG_FIRST or step % self.cfg.LOG_EVERY == 0 or step == self.max_steps

    def _report(self, report: StepReport) -> None:
        self.trackers.log("train", report.step, {k: v for k, v in asdict(report).items() if k != "step"})
        if self.world.is_main:
            _log.debug("step %d loss %.4f", report.step, report.loss)
            self.note = f"loss {report.loss:.3f}  {report.images_per_second:.1f} images/s"

    note = ""

    def _after_step(self) -> None:
        cfg, state = self.cfg, self.loop.state
        self.bar.advance(note=self.note)
        before, self._epochs = self._epochs, state.epoch  # accumulated batches may reach into the next epoch
        if _reaches(cfg.CHECKPOINT_EVERY_STEPS, state.step) or state.epoch > before:
            self.save()
        by_epoch = _reaches(cfg.EVAL_EVERY_EPOCHS, state.epoch, before)
        if (by_epoch or _reaches(cfg.EVAL_EVERY_STEPS, state.step)) and state.step < self.max_steps:
            with self.bar.hidden():
                self.evaluate()

    def save(self) -> None:
        """Write a checkpoint, once per step."""
        step = self.loop.state.step
        if self._saved_at == step:
            return
        self._saved_at = step
        state = self.loop.state_dict()
        on_main(lambda: str(self.checkpoints.save(self._tensors(), state, step)))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model.safetensors": model_tensors(self.model),
            "optimizer.safetensors": optimizer_tensors(self.loop.optimizer, self.model),
        }

    def evaluate(self) -> dict[str, float]:
        """Evaluate and log; all images at the end of the run, EVAL_MAX_IMAGES of each data set before."""
        cfg, step = self.cfg, self.loop.state.step
        final = step >= self.max_steps
        sets = self.experiment.eval_sets
        if cfg.EVAL_MAX_IMAGES and not final:
            sets = [replace(each, reader=First(each.reader, cfg.EVAL_MAX_IMAGES)) for each in sets]
        folder = self.folder / "evaluations" / f"step_{step:08d}"
        scored = evaluate_sets(self.model, sets, self.experiment.tokenizer, cfg, self.world, folder)
        self.results = [result for results in scored.values() for result in results]
        figures = headline(scored)
        if self.world.is_main:
            self.trackers.log("evaluate", step, {"seconds": self.loop.state.seconds, "metrics": figures})
            _log.info("step %d: %s", step, ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))
            if final:
                print_scores(scored)
        return figures

    def _resume(self) -> None:
        folder = Path(on_main(lambda: str(self._starting_point())))
        state = verify(folder)
        _log.info("going on from %s", folder)
        load_weights(self.model, folder)
        restore_optimizer(self.loop.optimizer, self.model, untrusted.load_tensors(folder / "optimizer.safetensors"))
        self.loop.load_state_dict(state)

    def _starting_point(self) -> Path:
        """Return the checkpoint that RESUME_FROM names, or the newest of the run that it names."""
        given = Path(self.cfg.RESUME_FROM)
        if given == self.folder:
            return self.checkpoints.newest()
        verify(given)
        self.checkpoints.go_back(given)
        return given


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


def _reaches(every: int, now: int, before: int | None = None) -> bool:
    """Return whether a count has just passed a multiple of ``every``; 0 never does."""
    return bool(every) and now // every > (now - 1 if before is None else before) // every


def max_steps(cfg: Any, loader: TrainLoader) -> int:
    """Return the optimiser steps of a run: MAX_STEPS, or those of MAX_NUM_EPOCHS passes over the data."""
    if cfg.SOLVER.MAX_STEPS:
        return cfg.SOLVER.MAX_STEPS
    return max(1, cfg.SOLVER.MAX_NUM_EPOCHS * len(loader) // cfg.GRADIENT_ACCUMULATE_STEP)


def train(cfg: Any, world: World) -> tuple[Path, dict[str, float], list[ProtocolResult]]:
    """Train as configured; returns the run folder and, on rank 0, headline figures and results."""
    run = TrainingRun(cfg, world)
    figures = run.run()
    return run.folder, figures, run.results


def evaluate(cfg: Any, world: World, *, predictions: str | None = None) -> list[ProtocolResult]:
    """Evaluate weights, or stored predictions, on DATASETS.TEST.

    Args:
        cfg: the resolved configuration; RESUME_FROM names the weights.
        world: this process among its peers.
        predictions: a result file; no model is built then.
    """
    if predictions is not None:
        return score_stored(cfg, predictions) if world.is_main else []
    configured_weights(cfg)  # a wrong path is told before the data sets are read
    experiment = build_experiment(cfg, world, training=False)
    folder = Path(cfg.SAVE_DIR) / cfg.BASENAME / "evaluation"
    scored = evaluate_sets(experiment.model, experiment.eval_sets, experiment.tokenizer, cfg, world, folder)
    if world.is_main:
        print_scores(scored)
        _log.info("written to %s", folder)
    return [result for results in scored.values() for result in results]
