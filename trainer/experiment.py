"""The two long jobs, from a configuration: train, and evaluate."""

from __future__ import annotations

import contextlib
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .. import __version__
from ..datasets import bad_samples
from ..datasets.batches import Batch
from ..evaluation.results import ProtocolResult
from ..modeling.checkpoints.loader import load_weights
from ..modeling.systems import configured_weights, find_system
from ..utils.config import save_config
from ..utils.errors import Stopped
from ..utils.files import survived, write_json, write_tensors
from ..utils.progress import ProgressBar, training_note
from . import sharded
from .assembly import build_experiment, build_loop, check_start, max_steps
from .checkpoint import model_tensors
from .data import First, train_loader
from .determinism import deterministic
from .distributed import World, agree, gather_texts, on_main, sum_numbers
from .evaluate import PICTURES, evaluate_sets, score_stored
from .logs import SpikeWatch, Trackers, WandbRun, open_trackers
from .loop import FIRST_STEP, STEP, WAITING, Hooks, StepReport
from .run_folder import continued, make_run_folder
from .run_lock import lock_run
from .saving import Saver
from .scoring import deciding_figure, headline, print_scores
from .stopping import StopRequests
from .watchdog import Watchdog

STOPPED = "stopped.json"
_log = logging.getLogger(__name__)


class TrainingRun:
    """One run: loop, evaluations, checkpoints and logs, in one folder.

    Args:
        cfg: the resolved configuration.
        world: this process among its peers.
    """

    def __init__(self, cfg: Any, world: World) -> None:
        self.cfg, self.world = cfg, world
        on_main(lambda: check_start(cfg))  # a wrong path is told before the model is built
        self.experiment = build_experiment(cfg, world, training=True)
        self.model = self.experiment.model
        self.loader = train_loader(self.experiment.train_reader, self.experiment.tokenizer, cfg, world)
        agree(self._identity(), "what they train")
        if cfg.WEIGHT:
            fresh = find_system(cfg.MODEL.NAME).starts_fresh
            load_weights(self.model, cfg.RESUME_FROM, allow_missing=fresh, partial=True)
        self.max_steps = max_steps(cfg, self.loader)
        self.loop = build_loop(self.model, cfg, world, self.max_steps, on_skip=self._keep_skipped)
        self.folder = make_run_folder(cfg)
        with contextlib.ExitStack() as if_it_fails:
            self.lock = lock_run(self.folder, world)
            if_it_fails.enter_context(self.lock)
            self.saver = Saver(self.folder, self.model, self.loop, cfg, world)
            if cfg.RESUME:
                self.saver.resume()
            if_it_fails.pop_all()
        self.bad_samples = self._bad_sample_log()
        self.stop = StopRequests(self.folder if world.is_main else None, cfg.MAX_HOURS)
        self.spikes, self.results = SpikeWatch(), []
        self._epochs = self.loop.state.epoch  # finished after the step before

    def _identity(self) -> dict[str, str]:
        """Return what must be the same on every rank."""
        shapes = "".join(f"{name}{tuple(p.shape)}" for name, p in self.model.named_parameters())
        return {
            "version": __version__,
            "configuration": OmegaConf.to_yaml(self.cfg),
            "parameters": str(zlib.crc32(shapes.encode())),
            "training samples": str(len(self.experiment.train_reader)),
        }

    def _bad_sample_log(self) -> bad_samples.BadSampleLog:
        options, step = self.cfg.COCO.DATALOADER, self.loop.state.step
        return bad_samples.BadSampleLog(
            self.folder / bad_samples.FILE,
            samples=len(self.experiment.train_reader),
            max_bad_samples=options.MAX_BAD_SAMPLES,
            max_bad_share=options.MAX_BAD_SHARE,
            resume_step=step,
        )

    def run(self) -> dict[str, float]:
        """Train to the end; returns the headline figures of the last evaluation (on rank 0).

        Raises:
            Stopped: on request; the state has been saved.
        """
        cfg, world = self.cfg, self.world
        if world.is_main:
            save_config(cfg, self.folder / "config.yaml")
            for earlier in ("model.safetensors", STOPPED):  # of a run that is now extended
                (self.folder / earlier).unlink(missing_ok=True)
        _log.info("run folder %s, %d optimiser steps, %d process(es)", self.folder, self.max_steps, world.size)
        with (
            self.lock,
            self.stop,
            contextlib.closing(self._trackers()) as self.trackers,
            contextlib.closing(self._watchdog()) as self.watchdog,
        ):
            if cfg.EVAL_AT_START and not self.loop.state.step:
                self.evaluate()
            self._train()
            self.watchdog.mark("checkpoint", self.loop.state.step)
            self.saver.save()
            self.saver.wait()
            self._leave_if_asked(self.loop.stopping)
            figures = self.evaluate()
            self._leave_if_asked(self._asked())
            self._export()
        return figures

    def _watchdog(self) -> Watchdog:
        seconds = self.cfg.TIMEOUTS
        limits = dict.fromkeys((FIRST_STEP, WAITING, "evaluation", "checkpoint"), seconds.FIRST_STEP)
        watchdog = Watchdog(self.world, {STEP: seconds.STEP, **limits}, self.folder)
        watchdog.start()
        return watchdog

    def _train(self) -> None:
        done = self.loop.state.step
        hooks = Hooks(
            should_report=self._should_report,
            on_report=self._report,
            after_step=self._after_step,
            stop_requested=self.stop.requested,
            on_bad_samples=self._keep_bad,
            mark=self.watchdog.mark,
        )
        with ProgressBar("training", self.max_steps, done=done, enabled=self.world.is_main) as self.bar:
            self.loop.run(self._batches(), len(self.loader), self.max_steps, hooks)

    def _asked(self) -> bool:
        """Return whether any rank was asked to stop."""
        return sum_numbers([float(self.stop.requested())])[0] > 0

    def _leave_if_asked(self, asked: bool) -> None:
        if not asked:
            return
        self.stop.obeyed()
        reasons = gather_texts(self.stop.reason or "")
        reason = on_main(lambda: next((text for text in reasons or [] if text), ""))
        if self.world.is_main:  # for scripts: torchrun turns every exit code into 1
            write_json(self.folder / STOPPED, {"step": self.loop.state.step, "reason": reason})
        why = f" ({reason})" if reason else ""
        raise Stopped(
            f"Training has stopped on request{why} after step {self.loop.state.step}; everything is saved.",
            where=str(self.folder),
            fix=f"to go on: the same command with RESUME True RESUME_FROM {self.folder}",
        )

    def _export(self) -> None:
        """Write the weights to use: the average where there is one."""
        with self._averaged():
            tensors = sharded.full_tensors(self.model) if self.loop.replicas.sharded else model_tensors(self.model)
            on_main(lambda: str(write_tensors(self.folder / "model.safetensors", tensors)))

    def _averaged(self) -> contextlib.AbstractContextManager:
        return self.loop.average.in_place() if self.loop.average is not None else contextlib.nullcontext()

    def _trackers(self) -> Trackers:
        cfg = self.cfg
        if not self.world.is_main:
            return Trackers([])
        name, values = f"{cfg.BASENAME}/{self.folder.name}", OmegaConf.to_container(cfg, resolve=True)
        return open_trackers(
            self.folder,
            resume_step=self.loop.state.step if cfg.RESUME else None,
            tensorboard=cfg.TENSORBOARD,
            wandb=WandbRun(cfg.WANDB_PROJECT, name, values) if cfg.WANDB else None,
        )

    def _batches(self) -> Iterator[Batch]:
        epoch, start = self.loop.state.epoch, self.loop.state.batch
        while True:
            yield from self.loader.batches(epoch, start)
            epoch, start = epoch + 1, 0

    def _should_report(self, step: int) -> bool:
        return step <= self.cfg.LOG_FIRST or step % self.cfg.LOG_EVERY == 0 or step == self.max_steps

    def _report(self, report: StepReport) -> None:
        logged = {k: v for k, v in asdict(report).items() if k not in ("step", "image_ids")}
        self.trackers.log("train", report.step, logged)
        if self.world.is_main:
            _log.debug("step %d loss %.4f", report.step, report.loss)
            self.spikes.add(report.step, report.loss, report.image_ids)
            self.note = training_note(report.loss, report.images_per_second, report.data_wait, report.mfu)

    note = ""

    def _keep_skipped(self, step: int, norm: float, ranks: list[dict[str, Any]]) -> None:
        """Write down a step that was left out (rank 0)."""
        path, line = self.folder / "not_finite.jsonl", {"step": step, "grad_norm": repr(norm), "ranks": ranks}
        with survived(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        _log.warning("step %d was left out: its gradient is not finite (%s)", step, path)

    def _keep_bad(self, samples: list[bad_samples.BadSample]) -> None:
        """Write down what all ranks could not read; stops the run where it is too much."""
        gathered = gather_texts(bad_samples.to_text(samples))
        everyones = [sample for text in gathered or [] for sample in bad_samples.from_text(text)]
        state = self.loop.state
        on_main(lambda: str(self.bad_samples.add(state.step + 1, state.epoch, everyones)))

    def _after_step(self) -> None:
        cfg, state = self.cfg, self.loop.state
        self.bar.advance(note=self.note)
        before, self._epochs = self._epochs, state.epoch  # accumulated batches may reach into the next epoch
        by_epoch = _reaches(cfg.EVAL_EVERY_EPOCHS, state.epoch, before)
        evaluates = (by_epoch or _reaches(cfg.EVAL_EVERY_STEPS, state.step)) and state.step < self.max_steps
        due = _reaches(cfg.CHECKPOINT_EVERY_STEPS, state.step) or state.epoch > before
        if due or self.loop.stopping or (evaluates and cfg.KEEP_BEST):
            self.watchdog.mark("checkpoint", state.step)
            self.saver.save()
            _meet()
        if evaluates and not self.loop.stopping:
            with self.bar.hidden():
                self.evaluate()
                _meet()

    def evaluate(self) -> dict[str, float]:
        """Evaluate and log; all images at the end of the run, EVAL_MAX_IMAGES of each data set before.

        A request to stop ends it early, without figures.
        """
        cfg, step = self.cfg, self.loop.state.step
        self.watchdog.mark("evaluation", step)
        final = step >= self.max_steps
        sets = self.experiment.eval_sets
        if cfg.EVAL_MAX_IMAGES and not final:
            sets = [replace(each, reader=First(each.reader, cfg.EVAL_MAX_IMAGES)) for each in sets]
        folder = self.folder / "evaluations" / f"step_{step:08d}"
        with self._averaged(), self.loop.replicas.gathered():
            scored = evaluate_sets(
                self.model,
                sets,
                self.experiment.tokenizer,
                cfg,
                self.world,
                folder,
                stop=self._stops_evaluation,
                pictures=cfg.EVAL_PICTURES,
            )
        self.results = [result for results in scored.values() for result in results]
        figures = headline(scored)
        if self.world.is_main and figures:
            self._tell(scored, figures, final)
            sheets = {each.name: folder / each.folder / PICTURES / "all.png" for each in sets}
            self.trackers.pictures("pictures", step, {name: path for name, path in sheets.items() if path.exists()})
        if not figures and self.results:
            reasons = dict.fromkeys(why for result in self.results for why in result.undefined.values())
            _log.warning("step %d: nothing could be scored: %s", step, "; ".join(reasons) or "no figure is quoted")
        return figures

    def _stops_evaluation(self) -> bool:
        self.watchdog.mark("evaluation", self.loop.state.step)
        return self.stop.requested()

    def _tell(self, scored: Mapping[str, Sequence[ProtocolResult]], figures: dict[str, float], final: bool) -> None:
        step = self.loop.state.step
        self.trackers.log("evaluate", step, {"seconds": self.loop.state.seconds, "metrics": figures})
        _log.info("step %d: %s", step, ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))
        name, higher_is_better = deciding_figure(self.cfg, figures)
        self.saver.note_figure(figures[name], higher_is_better=higher_is_better)
        if final:
            print_scores(scored)


def _meet() -> None:
    """Let all ranks wait for what rank 0 does alone; else they would wait in their next step, which may not last."""
    sum_numbers([0.0])


def _reaches(every: int, now: int, before: int | None = None) -> bool:
    """Return whether a count has just passed a multiple of ``every``; 0 never does."""
    return bool(every) and now // every > (now - 1 if before is None else before) // every


def train(cfg: Any, world: World) -> tuple[Path, dict[str, float], list[ProtocolResult]]:
    """Train as configured; returns the run folder and, on rank 0, headline figures and results."""
    cfg = continued(cfg)
    with deterministic(cfg.DETERMINISTIC):
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
    with deterministic(cfg.DETERMINISTIC):
        scored = evaluate_sets(experiment.model, experiment.eval_sets, experiment.tokenizer, cfg, world, folder)
    if world.is_main:
        print_scores(scored)
        _log.info("written to %s", folder)
    return [result for results in scored.values() for result in results]
