"""Charts of a run's log, as SVG that takes its ink from the page and so fits light and dark themes."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

log = logging.getLogger(__name__)

INK = "#010203"  # drawn in this, then replaced by the page's own text colour
LINES = ("#2f6fed", "#e0701a", "#2ea852", "#d63384", "#7c4ddb", "#0f9fb5", "#b8860b", "#d9303e", "#8a6a4f", "#5f7f1f")
TICK_STEPS = (1, 2, 2.5, 5, 10)
POINTS = 300  # per line; longer logs are averaged in bins
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "locap",
    "text.parse_math": False,  # a dollar sign in a metric's name is no formula
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


@dataclass(slots=True)
class RunLog:
    """What a run wrote into ``metrics.jsonl``, steps ascending."""

    train: list[dict[str, Any]] = field(default_factory=list)
    evaluate: list[dict[str, Any]] = field(default_factory=list)

    def series(self, key: str, group: str | None = None, event: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Return (steps, values) of the finite numbers under ``key``, or under ``group`` → ``key``."""
        events = self.train if event == "train" else self.evaluate
        pairs = [(item["step"], (item.get(group) or {}).get(key) if group else item.get(key)) for item in events]
        pairs = [(step, value) for step, value in pairs if is_finite(value)]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, float), np.array(values, float)

    def names(self, group: str, event: str = "train") -> list[str]:
        """Return the keys under ``group`` of all events, in order of appearance."""
        events = self.train if event == "train" else self.evaluate
        return list(dict.fromkeys(name for item in events for name in (item.get(group) or {})))


def is_finite(value: object) -> bool:
    """Return whether ``value`` is a number that can be drawn."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


EVENTS = ("train", "evaluate", "pictures")


def read_log(path: str | Path) -> RunLog:
    """Read ``metrics.jsonl``; lines torn by a crash are left out.

    A run that was resumed from an earlier step wrote some steps twice: the later account holds.
    """
    path = Path(path)
    run = RunLog()
    torn = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        event = _event(line)
        if event is None:
            torn += bool(line.strip())
            continue
        if event["event"] == "pictures":
            continue
        events = getattr(run, event["event"])
        while events and events[-1]["step"] > event["step"]:
            events.pop()
        events.append(_merged(events.pop(), event) if events and events[-1]["step"] == event["step"] else event)
    if torn:
        log.warning("%s: %d unreadable line(s) left out", path, torn)
    return run


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    known = isinstance(event, dict) and event.get("event") in EVENTS and is_finite(event.get("step"))
    return event if known and all(isinstance(event.get(group, {}), dict) for group in ("losses", "metrics")) else None


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Join two accounts of one step: several evaluators may write one event each."""
    return old | new | {group: old.get(group, {}) | new.get(group, {}) for group in ("losses", "metrics")}


def loss_charts(run: RunLog) -> str:
    """Chart the total loss, its parts (each in its own scale), the learning rate and the throughput."""
    panels = [
        ("loss", run.series("loss"), None),
        ("learning rate", run.series("lr"), None),
        ("images per second", run.series("images_per_second"), None),
        ("gradient norm", run.series("grad_norm"), None),
        *((name, run.series(name, "losses"), None) for name in run.names("losses")),
    ]
    return multiples(panels, markers=False)


def metric_charts(run: RunLog, names: Sequence[str], goals: Mapping[str, float]) -> str:
    """Chart metrics over the steps, one panel each since their scales differ, with the goal as a dashed line."""
    panels = [(name, run.series(name, "metrics", "evaluate"), goals.get(name)) for name in names]
    return multiples(panels, markers=True)


Chart = tuple[str, tuple[np.ndarray, np.ndarray], float | None]


def multiples(panels: Sequence[Chart], *, markers: bool, columns: int = 4) -> str:
    """Draw (title, (steps, values), goal or None) side by side in one SVG; panels without values are left out.

    Returns:
        An ``<svg>`` element, or nothing when no panel has values.
    """
    panels = [panel for panel in panels if len(panel[1][0])]
    if not panels:
        return ""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(2.95 * columns, 2 * rows + 0.2), layout="constrained")
        figure.get_layout_engine().set(wspace=0.05)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, axis in enumerate(axes):
            if place < len(panels):
                _draw_panel(axis, panels[place], LINES[place % len(LINES)], markers)
            else:
                axis.set_axis_off()
        figure.supxlabel("step", fontsize=8.5)
        return _svg(figure)


def _draw_panel(axis: Any, panel: Chart, color: str, markers: bool) -> None:
    title, (steps, values), goal = panel
    axis.set_title(title if len(title) <= 34 else title[:33] + "…")
    if markers:
        axis.plot(steps, values, color=color, linewidth=1.6, marker="o", markersize=3.5)
    else:
        steps, values = binned(steps, values)
        noisy = is_noisy(values)
        axis.plot(steps, values, color=color, linewidth=0.9 if noisy else 1.6, alpha=0.35 if noisy else 1)
        if noisy:
            axis.plot(steps, smoothed(values), color=color, linewidth=1.6)
    if goal is not None:
        axis.axhline(goal, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axis.annotate("goal", (1, goal), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7.5)
    if goal is not None or values.min() >= 0:
        low, high = axis.get_ylim()
        axis.set_ylim(min(0, values.min()), high + 0.06 * (high - low))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=TICK_STEPS))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=TICK_STEPS))
    axis.grid(alpha=0.18, color=INK, linewidth=0.6)


def binned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average long series in `POINTS` bins of equal length."""
    if len(steps) <= POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), POINTS)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def smoothed(values: np.ndarray, share: float = 0.06) -> np.ndarray:
    """Return the centred moving average over ``share`` of the series, over less of it at the ends."""
    half = round(share * len(values) / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def is_noisy(values: np.ndarray) -> bool:
    """Return whether a series goes up and down more than along, so that only its mean can be followed."""
    return len(values) > 20 and float(np.abs(np.diff(values)).sum()) > 2 * float(np.ptp(values))


def _svg(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element for a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # the page decides about size and font
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([^"]*)pt"', r'\1 style="width:100%;max-width:\2pt"', svg, count=1)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
