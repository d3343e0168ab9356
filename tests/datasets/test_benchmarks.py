"""The benchmark of loading: both loaders deliver the same, it writes what it measured, and memory stays flat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from locap.datasets.batches import Batch
from locap.datasets.benchmarks import __main__ as program
from locap.datasets.benchmarks.loading import Files, loading
from locap.datasets.benchmarks.memory import bytes_of
from locap.datasets.benchmarks.scenes import ANNOTATIONS, IMAGES, PANOPTIC, draw_data_set
from locap.utils.id_maps import PADDING_ID

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of processes is read from /proc")


def files_in(folder):
    return Files(folder / ANNOTATIONS, folder / IMAGES, folder / PANOPTIC)


def test_both_loaders_deliver_the_same_and_ours_is_lighter(tmp_path):
    draw_data_set(tmp_path, 3, height=48, width=64)
    report = loading(files_in(tmp_path), crop=64, images=8, workers=1, epochs=2)
    other, ours, expanded = report.measurements
    assert report.facts == {"same images and masks": True}
    assert other.batch_bytes > 1.5 * ours.batch_bytes
    assert ours.batch_bytes == expanded.batch_bytes
    assert 4 * 64 * 64 * 7 <= ours.batch_bytes < 4 * (64 * 64 * 7 + 8000)
    assert min(each.images_per_second for each in report.measurements) > 0


def test_another_mask_is_noticed(tmp_path, monkeypatch):
    draw_data_set(tmp_path, 3, height=48, width=64)
    from locap.datasets.benchmarks import straightforward

    original = straightforward.draw_jitter
    monkeypatch.setattr(straightforward, "draw_jitter", lambda *a, **k: original(*a, **{**k, "flip": "none"}))
    report = loading(files_in(tmp_path), crop=64, images=8, workers=0, epochs=1)
    assert report.facts == {"same images and masks": False}


def measured(tmp_path, *arguments: object) -> list[dict]:
    """Run the program in a process of its own, whose workers inherit nothing from other tests; returns its rows."""
    path = tmp_path / "found.json"
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("locap_entry", {str(ROOT / "entry.py")!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
from locap.datasets.benchmarks.__main__ import main
sys.exit(main({[str(each) for each in (*arguments, "--output", path)]!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(path.read_text())["reports"]
    return report["measurements"]


def test_worker_memory_is_flat(tmp_path):
    """Growth over three epochs, pixels decoded, from the first epoch's end."""
    _, ours, _ = measured(tmp_path, "loading", "--crop", 256, "--images", 24, "--workers", 2, "--epochs", 4)
    memory = [each["own"] for each in ours["memory"]]
    assert memory[-1] / memory[0] - 1 <= 0.05, memory


def test_visiting_records_costs_no_memory(tmp_path):
    other, ours = measured(tmp_path, "memory", "--records", 1000, "--workers", 1)
    growth = [each["memory"][-1]["own"] - each["started"]["own"] for each in (other, ours)]
    assert growth[1] <= 1.0, ours  # MB: what a worker allocates to begin with
    assert growth[0] > 4 * growth[1]


def test_the_program_shows_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "draw_data_set", lambda folder, n: draw_data_set(folder, n, height=24, width=32))
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "found.json"
    options = ["--crop", "32", "--images", "4", "--workers", "1", "--epochs", "1"]
    assert program.main(["loading", *options, "--output", str(path)]) == 0
    (report,) = json.loads(path.read_text())["reports"]
    assert report["ratios"]["ours"]["bytes a batch"] > 1
    assert report["facts"] == {"same images and masks": True}
    assert "MB a batch" in capsys.readouterr().out
    assert program.main(["loading", "--coco", str(tmp_path / "nowhere")]) == 3
    assert "nowhere" in capsys.readouterr().err


def test_bytes_are_those_of_tensors():
    batch = Batch.blank(8)
    assert bytes_of(batch) == 3 * 64 + 4 * 64 + batch.targets[0].caption_tokens.numel() * 8
    assert bytes_of({"a": [batch.images[0], "text", PADDING_ID]}) == 192
