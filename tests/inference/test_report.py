"""The HTML report and its charts."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from locap.datasets.records import Category, Record, Region, encode_mask
from locap.inference.charts import POINTS, binned, is_noisy, loss_charts, metric_charts, read_log, smoothed
from locap.inference.report import Goal, write_report

from .pages import Page

EVIL = "<script>alert('x')</script> & $x^ \ud800"
CATEGORIES = [Category(1, f"circle {EVIL}")]


def train(step: int, **more) -> dict:
    body = {
        "event": "train",
        "step": step,
        "epoch": step / 100,
        "seconds": step / 2,
        "lr": 1e-3,
        "loss": 5.0 - step / 100,
    }
    return body | {"losses": {"mask": 3.0, "caption": 0.01}, "images_per_second": 40.0, "grad_norm": 1.0} | more


def evaluate(step: int, **metrics) -> dict:
    return {"event": "evaluate", "step": step, "seconds": step / 2, "metrics": metrics}


def write_lines(path: Path, *events: dict, tail: str = "") -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail, encoding="utf-8")
    return path


def square_record(captions: tuple[str, ...] = (EVIL,)) -> Record:
    mask = np.zeros((120, 160), bool)
    mask[20:80, 30:110] = True
    mask[40:60, 50:80] = False
    regions = [Region(1, 1, encode_mask(mask), captions=captions, score=0.9), Region(2, 1, box_xyxy=(0, 0, 40, 40))]
    return Record("scene <1>", 120, 160, np.full((120, 160, 3), 90, np.uint8), regions)


def test_torn_lines_are_left_out_and_a_resumed_run_tells_the_later_account(tmp_path: Path):
    path = write_lines(
        tmp_path / "metrics.jsonl",
        *(train(step, loss=1.0) for step in (10, 20, 30)),
        evaluate(30, PQ=1.0),
        train(20, loss=2.0),
        evaluate(20, PQ=2.0),
        evaluate(20, METEOR=0.2),
        train(30, loss=float("nan")),
        tail='{"event":"note"}\n{"event":"train","st',
    )
    run = read_log(path)
    steps, losses = run.series("loss")
    assert (steps.tolist(), losses.tolist()) == ([10, 20], [1.0, 2.0])
    assert [event["metrics"] for event in run.evaluate] == [{"PQ": 2.0, "METEOR": 0.2}]
    assert read_log(tmp_path / "absent.jsonl").train == []


def test_charts_are_svg_in_the_page_s_ink_and_leave_matplotlib_alone(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    path = write_lines(
        tmp_path / "m.jsonl", *map(train, range(50)), evaluate(0, **{"P$Q <b>": 1.0}), evaluate(49, PQ=50.0)
    )
    run = read_log(path)
    losses, metrics = loss_charts(run), metric_charts(run, ["PQ", "P$Q <b>"], {"PQ": 85})
    assert dict(matplotlib.rcParams) == before
    for svg, titles in ((losses, ["loss", "learning rate", "mask", "caption"]), (metrics, ["PQ", "P$Q <b>", "goal"])):
        texts = {
            "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
        }
        assert set(titles) <= texts
        assert "currentColor" in svg
    assert loss_charts(read_log(tmp_path / "absent")) == ""


def test_long_series_are_averaged_without_drift():
    steps, values = binned(np.arange(10000.0), np.arange(10000.0))
    assert len(steps) == POINTS
    np.testing.assert_allclose(steps, values)
    np.testing.assert_allclose(smoothed(np.full(100, 3.0)), 3.0)
    assert not is_noisy(np.linspace(1, 0, 100))
    assert is_noisy(np.random.default_rng(0).normal(size=100))


@pytest.mark.parametrize(
    ("goal", "figure", "met"),
    [
        (Goal(85), 85.0, True),
        (Goal(85), 84.999, False),
        (Goal(10, at_most=True), 8.0, True),
        (Goal(10, at_most=True), 11, False),
        (Goal(1), None, False),
        (Goal(1), float("nan"), False),
        (Goal(1), np.float32(2), True),
    ],
)
def test_goal(goal: Goal, figure: float | None, met: bool):
    assert goal.is_met(figure) is met


def test_report_is_one_safe_file_that_shows_missed_goals(tmp_path: Path):
    path = write_lines(
        tmp_path / "m.jsonl", *map(train, range(40)), evaluate(0, PQ=0.5, SQ=1.0), evaluate(39, PQ=80.0, SQ=2.0)
    )
    record = square_record()
    report = write_report(
        tmp_path / "out" / "report.html",
        title=f"Run {EVIL}",
        metrics_path=path,
        categories=CATEGORIES,
        figures={"PQ": 80.25, "METEOR": 0.31, "minutes": 9.0, EVIL: 1.0},
        goals={"PQ": 85, "METEOR": 0.29, "minutes": Goal(10, at_most=True), "mAP": 35},
        example=(None, record),
        grids={f"Unseen {EVIL}": [(None, record, square_record(("second",)))]},
        config_summary={"KEY": EVIL},
    )
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert "<script>alert" not in text
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the page's own
    sources = [
        attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if tag in ("img", "link", "script", "a")
    ]
    assert all(source is None or source.startswith("data:image/") for source in sources)
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    said = " ".join(page.words)
    assert "2 of 4 goals met" in said
    assert "✗ missed by 4.75" in said
    assert "✗ not measured" in said
    assert "1 more metrics" in said


def test_report_of_an_empty_run(tmp_path: Path):
    report = write_report(tmp_path / "r.html", title="empty", metrics_path=tmp_path / "no", categories=[], figures={})
    assert "<h1>empty</h1>" in report.read_text(encoding="utf-8")
