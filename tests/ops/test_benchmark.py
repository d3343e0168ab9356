"""The benchmark's figures: present, consistent, and its gate."""

from __future__ import annotations

import json

import pytest
import torch

from locap.ops.ms_deform_attn import benchmark
from locap.ops.ms_deform_attn.reference import ms_deform_attn


def same(*inputs):
    return ms_deform_attn(*inputs)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(benchmark.SHAPES, "tiny", (64, 8))
    monkeypatch.setattr(benchmark, "_copy_speed", lambda device: 1e10)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("options", [[], ["--fused", "--dtype", "bfloat16", "--points", "uniform"]])
def test_figures(options: list[str], tmp_path, monkeypatch, capsys):
    file = tmp_path / "figures.json"
    anchor = [] if options else ["--anchor", f"{__name__}:same"]
    monkeypatch.setattr(benchmark, "anchor_of", lambda name: same)
    arguments = ["--shape", "tiny", "--impl", "reference,reference", "--repeats", "2", "--output", str(file)]
    assert benchmark.main([*arguments, *options, *anchor]) == 0
    found = json.loads(file.read_text())
    assert {row["direction"] for row in found["results"]} == {"forward", "backward"}
    limit = 2**-6 if options else 1e-4
    assert all(max(row["errors"]) < limit and row["milliseconds"] > 0 for row in found["results"])
    assert "reference" in capsys.readouterr().out


def test_work_of_a_known_case():
    """1024 x 1024 pixels, D = 32: 68.8 MB must move forward and 137.6 MB backward, for 0.53 GFLOP of sampling."""
    problem = benchmark.draw("mask2former", torch.float32, "local", device="cpu")
    work = benchmark.work_of(problem)
    assert work["forward"]["bytes"] == pytest.approx(68.8e6, rel=1e-3)
    assert work["backward"]["bytes"] == pytest.approx(137.6e6, rel=1e-3)
    assert work["forward"]["flop"] == pytest.approx(0.53e9, rel=1e-2)


def test_gate_and_mistakes(capsys):
    arguments = ["--shape", "tiny", "--impl", "reference", "--anchor", "torch:no_such_function"]
    assert benchmark.main(arguments) == 2
    assert benchmark.main(["--shape", "tiny", "--impl", "fast"]) == 2
    slow = benchmark.Result("ours", "forward", 1.0, 0.0, 1.0, None, [0.0], to_reference=7.0)
    assert not benchmark._passes([slow], (8, 5))
    assert benchmark._passes([slow], (6, 5))
    assert "7.0 times" in capsys.readouterr().err
