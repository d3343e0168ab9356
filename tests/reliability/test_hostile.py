"""Files made to do harm, opened as the commands open them: nothing runs or crashes, each ends with its message."""

from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from locap.modeling.checkpoints.loader import load_weights
from locap.utils.untrusted import load_flat_tensors, read_plain_pickle

from . import hostile_images, hostile_texts, hostile_weights
from .hostile_weights import GOOD, Hostile

SECONDS = 5
MEMORY = 2**30  # more than the process has before


class Outcome(NamedTuple):
    """How opening a file in a process of its own ended."""

    status: int
    said: str
    seconds: float


def model() -> nn.Module:
    """Return what the weights are for."""
    return nn.Linear(3, 2)


def load_into_model(path: Path) -> None:
    """Open weights as training and evaluation do."""
    load_weights(model(), path)


def opened(case: Hostile) -> Outcome:
    """Open a file in a process that may take five seconds and a gigabyte."""
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _open_and_leave(case, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return Outcome(os.waitstatus_to_exitcode(status), said, time.monotonic() - started)


def _open_and_leave(case: Hostile, writer: int) -> None:
    """Tell through the pipe what opening raised: 0 nothing, 1 what was expected, 2 anything else."""
    status, said = 2, ""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        copyreg.add_extension("posix", "system", hostile_weights.EXTENSION)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            case.open(case.path)
            status = 0
        except BaseException as err:
            status, said = (1 if case.error and type(err) is case.error else 2), f"{type(err).__name__}: {err}"
    finally:
        with contextlib.suppress(OSError):
            os.write(writer, said.encode("utf-8", "replace")[:4000])
        os._exit(status)


def wrong(case: Hostile, outcome: Outcome) -> str | None:
    """Return what is wrong with how a file was received, if anything."""
    expected = 0 if case.error is None else 1
    if outcome.status < 0:
        return f"{case.name}: killed by {signal.Signals(-outcome.status).name}"
    if outcome.status != expected:
        return f"{case.name}: {outcome.said or 'opened'}"
    if case.error and not any(
        word in outcome.said for word in ("where:", "value:", "allowed:", "in the configuration")
    ):
        return f"{case.name}: says too little: {outcome.said}"
    return None


def harmless(cases: Iterable[Hostile], folder: Path, figure: Callable[[str, str], None], kind: str) -> None:
    """Open every file and demand that all end as they have to."""
    cases = list(cases)
    outcomes = [opened(case) for case in cases]
    assert [text for case, outcome in zip(cases, outcomes, strict=True) if (text := wrong(case, outcome))] == []
    assert sorted(path.name for path in folder.rglob("*") if path.name.startswith("ran_")) == []
    slowest = max(outcome.seconds for outcome in outcomes)
    allowed = sum(case.error is None for case in cases)
    figure("T11", f"{kind}: {len(cases)} opened, 0 ran, 0 crashed, {allowed} rightly accepted, {slowest:.1f} s at most")


@pytest.mark.fault("H4")
def test_pickles_that_call_something(tmp_path, figure):
    harmless(hostile_weights.executing(tmp_path, load_into_model), tmp_path, figure, "pickles")


@pytest.mark.fault("H4")
def test_the_calls_are_real(tmp_path):
    """Otherwise nothing running would prove nothing."""

    def run(path: Path) -> None:
        pickle.loads(path.read_bytes())

    for number, name in enumerate(hostile_weights.calls(tmp_path)):
        sentinel = tmp_path / f"ran_{number}"
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(b"\x80\x02" + hostile_weights.calls(sentinel)[name] + b".")
        opened(Hostile(name, path, run, None))
        assert sentinel.exists(), name


@pytest.mark.fault("H4")
def test_pickles_among_annotations(tmp_path, figure):
    cases = [
        case._replace(open=read_plain_pickle, error=hostile_texts.DataError)
        for case in hostile_weights.executing(tmp_path, load_into_model)
        if case.path.suffix == ".bin"
    ]
    harmless(cases, tmp_path, figure, "pickled annotations")


@pytest.mark.fault("H4")
def test_good_weights_load_all_the_same(tmp_path):
    """In the containers that the hostile ones come in."""
    members = hostile_weights.good_archive()
    (tmp_path / "zip.pt").write_bytes(hostile_weights.archive(members))
    torch.save(GOOD, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "strided.pt").write_bytes(
        hostile_weights.archive({"data.pkl": hostile_weights.tensor("2, 3", "3, 1"), "data/0": bytes(24)})
    )
    for name in ("zip.pt", "old.pth"):
        loaded = load_flat_tensors(tmp_path / name)
        assert all(torch.equal(loaded[key], GOOD[key]) for key in GOOD), name
    assert load_flat_tensors(tmp_path / "strided.pt")["weight"].shape == (2, 3)


@pytest.mark.fault("H4", "H5")
def test_archives(tmp_path, figure):
    harmless(hostile_weights.archives(tmp_path, load_into_model), tmp_path, figure, "PyTorch archives")


@pytest.mark.fault("H5")
def test_archives_without_a_model(tmp_path, figure):
    """As files are combined and exported: no shape is known that they would have to have."""
    bombs = ("expanded", "longer", "negative", "offset", "sizes", "storage that", "swells")
    cases = [
        case._replace(open=load_flat_tensors)
        for case in hostile_weights.archives(tmp_path, load_into_model)
        if case.name.startswith(bombs)
    ]
    harmless(cases, tmp_path, figure, "archives without a model")


@pytest.mark.fault("H5")
def test_safetensors(tmp_path, figure):
    harmless(hostile_weights.safetensors(tmp_path, load_into_model), tmp_path, figure, "safetensors")


@pytest.mark.fault("H5")
def test_arrays(tmp_path, figure):
    harmless(hostile_weights.arrays(tmp_path, load_into_model), tmp_path, figure, "NumPy archives")


@pytest.mark.fault("G7")
def test_configurations(tmp_path, figure):
    harmless(hostile_texts.configurations(tmp_path), tmp_path, figure, "configurations")


@pytest.mark.fault("R2")
def test_annotations(tmp_path, figure):
    harmless(hostile_texts.annotations(tmp_path), tmp_path, figure, "JSON")


@pytest.mark.fault("R7", "R8")
def test_masks(tmp_path, figure):
    harmless(hostile_texts.masks(tmp_path), tmp_path, figure, "masks")


@pytest.mark.fault("E7", "E8")
def test_images(tmp_path, figure):
    harmless(hostile_images.images(tmp_path), tmp_path, figure, "images")
