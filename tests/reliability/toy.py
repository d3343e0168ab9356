"""A training run that takes milliseconds: the real loop, saver, average and log around two small layers.

Its losses are sums over ragged counts, it draws dropout, and its batches differ, so that whatever is not restored
exactly shows in the weights.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from locap.datasets.batches import Batch
from locap.modeling.losses.terms import LossTerm
from locap.trainer.distributed import World, process_group
from locap.trainer.ema import MovingAverage
from locap.trainer.logs import JsonLines
from locap.trainer.loop import Hooks, StepReport, TrainingLoop
from locap.trainer.optimizer import Schedule
from locap.trainer.saving import Saver
from locap.utils.fault_points import activate

STEPS, PER_EPOCH = 4, 3


class Toy(nn.Module):
    """Two layers with dropout; the loss of an image is the square of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"images": len(batch)}

    def forward(self, batch: Batch, step_seed: int) -> dict[str, LossTerm]:
        means = torch.stack([image.float().mean((1, 2)) / 255 for image in batch.images])
        return {"loss_square": LossTerm((self.layers(means) - 1).square().sum(), "images", 1.0)}


def batches(start: int, rank: int = 0, size: int = 1) -> Iterator[Batch]:
    """Yield this rank's share of global batches of five images; the fifth leaves the last rank one short."""
    for number in range(start, 10**6):
        mine = [number * 5 + k for k in range(rank, 5, size)]
        images = [torch.full((3, 2, 2), 37 * index % 251, dtype=torch.uint8) for index in mine]
        yield Batch(images, [], mine, [(2, 2)] * len(images))


def settings(folder: Path, write_ahead: bool) -> SimpleNamespace:
    return SimpleNamespace(
        KEEP_CHECKPOINTS=2,
        KEEP_BEST=0,
        ASYNC_CHECKPOINTS=write_ahead,
        RESUME_FROM=str(folder),
        COCO=SimpleNamespace(TRAIN=SimpleNamespace(BATCH_SIZE_TOTAL=5)),
    )


def train(
    folder: Path,
    *,
    steps: int = STEPS,
    write_ahead: bool = False,
    world: World | None = None,
    every: int = 1,
    options: Mapping[str, Any] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    **hooks: Any,
) -> None:
    """Train to the end, from the newest checkpoint of the folder if it has one.

    Args:
        folder: of the run.
        steps: of the optimiser, in all.
        write_ahead: save in a thread.
        world: this process among its peers.
        every: how many steps lie between saves, and between lines of the log.
        options: further arguments of `TrainingLoop`.
        after_step: called with the number of a step when it has been saved, if it is.
        hooks: further ones.
    """
    world, model = world or World(), Toy()
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 0.1, "initial_lr": 0.1}], fused=True)
    schedule = Schedule("WarmupCosineLR", max(20, steps), warmup_steps=3, warmup_factor=0.1)
    own = {"world": world, "clip_norm": 1.0, "average": MovingAverage(model, 0.9)}
    loop = TrainingLoop(model, optimizer, schedule, **own | dict(options or {}))
    saver = Saver(folder, model, loop, settings(folder, write_ahead), world)
    resumed = any(folder.glob("checkpoints/step_????????"))
    if resumed:
        saver.resume()
    log = JsonLines(folder / "metrics.jsonl", resume_step=loop.state.step) if world.is_main else None

    def report(values: StepReport) -> None:
        if log:
            log.log("train", values.step, {"loss": values.loss, "norm": values.grad_norm, "lr": values.lr})

    def after() -> None:
        if loop.state.step % every == 0 or loop.stopping:
            saver.save()
        after_step(loop.state.step)

    state = loop.state
    stream = batches(state.epoch * PER_EPOCH + state.batch, world.rank, world.size)
    given = Hooks(should_report=lambda step: step % every == 0, on_report=report, after_step=after, **hooks)
    loop.run(stream, PER_EPOCH, steps, given)
    saver.save()
    saver.wait()
    if log:
        log.close()


def outcome(folder: Path) -> dict[str, object]:
    """Return the bytes of the last checkpoint and the lines of the log: equal for equal runs."""
    last = folder / "checkpoints" / (folder / "latest").read_text().strip()
    found: dict[str, object] = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    found["state"] = json.loads((last / "state.json").read_text()) | {"seconds": 0}
    found["metrics"] = (folder / "metrics.jsonl").read_text()
    return found


def in_process(function: Callable[[], None], fault: str | None = None, rank: int = 0, timeout: float = 60) -> int:
    """Call in a forked process, with a fault; returns its exit code."""
    process = started(function, fault, rank)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"still running after {timeout} seconds, with the fault {fault}")
    return process.exitcode


def started(function: Callable[[], None], fault: str | None = None, rank: int = 0) -> multiprocessing.Process:
    """Start a forked process."""

    def run() -> None:
        os.environ.pop("LOCAP_FAULT", None)
        if fault:
            os.environ["LOCAP_FAULT"] = fault
        activate(rank=rank)
        function()

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


def on_ranks(function: Callable[[World], None], size: int, fault: str | None = None, timeout: float = 60) -> list[int]:
    """Call on several ranks; returns their exit codes. A rank that outlives a killed one is killed too."""
    port = free_port()
    members = [started(lambda rank=rank: _member(function, rank, size, port), fault, rank) for rank in range(size)]
    deadline = time.monotonic() + timeout
    while any(member.is_alive() for member in members) and time.monotonic() < deadline:
        if fault and any((member.exitcode or 0) < 0 for member in members):
            deadline = min(deadline, time.monotonic() + 0.2)
        time.sleep(0.005)
    for member in members:
        if member.is_alive():
            member.kill()
            member.join()
    return [member.exitcode for member in members]


def _member(function: Callable[[World], None], rank: int, size: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group(device="cpu") as world:
        function(world)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
