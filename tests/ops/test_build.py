"""Machines without a compiler, failing compilers, parallel ranks, and the choice of a backend."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from locap.ops.ms_deform_attn import backends, build, ms_deform_attn
from locap.utils.errors import MissingDependencyError, UsageError

INPUTS = (torch.randn(1, 4, 2, 8), [(2, 2)], torch.rand(1, 3, 2, 1, 2, 2), torch.rand(1, 3, 2, 1, 2))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing is compiled or chosen yet."""
    monkeypatch.setenv("LOCAP_OPS_CACHE", str(tmp_path / "ops"))
    caches = (backends._automatic, backends.usable_library, backends.load)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def broken_compiler(folder: Path) -> Path:
    path = folder / "broken"
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\necho "x.cpp:1: error: out of ideas" >&2\nexit 3\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.fault("N4")
def test_no_compiler_is_said_once_and_the_reference_runs(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO, logger="locap"):
        logging.getLogger("locap").propagate = True
        found = [ms_deform_attn(*INPUTS) for _ in range(2)]
    assert torch.equal(found[0], ms_deform_attn(*INPUTS, backend="reference"))
    (line,) = [record.getMessage() for record in caplog.records if "deformable" in record.getMessage()]
    assert "\n" not in line
    for part in ("reference", "no-such-compiler", "install", "C++17"):
        assert part in line


def test_other_ranks_say_nothing(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("RANK", "3")
    ms_deform_attn(*INPUTS)
    assert not [record for record in caplog.records if "deformable" in record.getMessage()]


def test_a_chosen_backend_that_cannot_be_built_raises_with_the_compilers_words(fresh, monkeypatch):
    monkeypatch.setenv("CXX", str(broken_compiler(fresh)))
    for _ in range(2):  # the second call does not fall back either
        with pytest.raises(MissingDependencyError, match="out of ideas"):
            ms_deform_attn(*INPUTS, backend="cpu")
    assert not list((fresh / "ops").glob("*.so"))
    assert not list((fresh / "ops").glob(".build-*"))


def test_backends_that_do_not_fit():
    with pytest.raises(UsageError, match="fastest"):
        ms_deform_attn(*INPUTS, backend="fastest")
    with pytest.raises(UsageError, match="cpu tensor"):
        ms_deform_attn(*INPUTS, backend="cuda")


def test_shapes_that_contradict_each_other():
    value, shapes, locations, weights = INPUTS
    with pytest.raises(ValueError, match="9 tokens"):
        ms_deform_attn(value, [(3, 3)], locations, weights)
    with pytest.raises(ValueError, match="weights"):
        ms_deform_attn(value, shapes, locations, weights[..., :1])
    with pytest.raises(ValueError, match="locations"):
        ms_deform_attn(value, shapes, locations[:, :, :1], weights)


def test_ranks_that_start_together_compile_once(fresh, monkeypatch):
    """A compiler that only counts: every rank gets the same file, whole."""
    script = fresh / "counting"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\necho x >> {fresh}/calls\nsleep 0.1\n'
        'for last; do :; done\necho compiled > "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "CXX": str(script), "LOCAP_OPS_CACHE": str(fresh / "ops")}
    command = [sys.executable, build.__file__, "cpu"]
    ranks = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {rank.communicate(timeout=120)[0].strip().removeprefix("cpu: ") for rank in ranks}
    assert len(paths) == 1
    assert Path(paths.pop()).read_text() == "compiled\n"
    steps, _ = build._commands("cpu", "c++", fresh, fresh / "x.so")
    assert len((fresh / "calls").read_text().split()) == len(steps) + 1  # and the linking


def test_a_library_in_the_package_needs_no_compiler(fresh, monkeypatch):
    package = fresh / "package"
    built = build.into_package("cpu", package)
    monkeypatch.setattr(build, "_packaged", lambda kind: package / "lib" / built.name)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.library("cpu") == built
    assert torch.allclose(ms_deform_attn(*INPUTS, backend="cpu"), ms_deform_attn(*INPUTS, backend="reference"))
    assert not (fresh / "ops").exists()


@pytest.mark.fault("N4")
def test_a_damaged_library_is_named(fresh, monkeypatch):
    path = fresh / "damaged.so"
    path.write_text("not a library")
    monkeypatch.setattr("locap.ops.ms_deform_attn.library.library", lambda kind: path)
    with pytest.raises(MissingDependencyError, match=r"damaged\.so cannot be loaded"):
        ms_deform_attn(*INPUTS, backend="cpu")


def test_gpu_architectures_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAP_CUDA_ARCHS", "8.0, 120")
    assert build.cuda_archs() == ["80", "120"]
    _, command = build._commands("cuda", "nvcc", tmp_path, tmp_path / "x.so")
    assert "-gencode=arch=compute_120,code=compute_120" in command
