"""The report of a run: one HTML file with figures, curves and pictures that opens anywhere, without a network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.records import Category, Record
from ..utils.files import write_text
from .charts import RunLog, is_finite, loss_charts, metric_charts, read_log
from .drawing import ImageLike, printable
from .html_page import HINT, whole_page
from .region_figure import region_figure

Pair = tuple[ImageLike | None, Record, Record]  # image (None: the truth's own), truth, prediction
KEY_METRICS = 8  # charts shown at once where no goals say which matter; the others unfold


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach."""

    value: float
    at_most: bool = False

    def is_met(self, figure: float | None) -> bool:
        """Return whether ``figure`` reaches the goal; one that is missing or not finite does not."""
        if not is_finite(figure):
            return False
        return bool(figure <= self.value if self.at_most else figure >= self.value)

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {format_figure(self.value)}"


REPORT_STYLE = """
p.lead, .note { color: var(--muted); margin: 0 0 .6rem; }
section > svg, details > svg { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  height: auto; padding: .6rem; display: block; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; padding: .35rem .9rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 600; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; }
@media (max-width: 700px) { .pair { grid-template-columns: 1fr; } }
summary { cursor: pointer; margin: .8rem 0; color: var(--muted); }
"""


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics_path: str | Path,
    categories: Sequence[Category],
    figures: Mapping[str, float | None],
    goals: Mapping[str, float | Goal] | None = None,
    example: tuple[ImageLike | None, Record] | None = None,
    grids: Mapping[str, Sequence[Pair]] | None = None,
    config_summary: Mapping[str, object] | None = None,
) -> Path:
    """Write one self-contained HTML file about a run.

    Args:
        path: of the file.
        title: of the page.
        metrics_path: the run's ``metrics.jsonl`` (see `read_log`); curves are left out when it does not exist.
        categories: names for the records' ``category_id``.
        figures: final figures by name; None for one that could not be measured.
        goals: by the same names, a number to reach at least or a `Goal`. Missed and unmeasured ones are shown as such.
        example: (image, prediction), shown large; an image of None reads the record's own.
        grids: heading -> (image, truth, prediction) each, shown side by side.
        config_summary: settings worth reading.

    Returns:
        The path.
    """
    targets = {name: goal if isinstance(goal, Goal) else Goal(float(goal)) for name, goal in (goals or {}).items()}
    run = read_log(metrics_path)
    parts = [
        _lead(run, figures, targets),
        _section("Figures", _figures_table(figures, targets)),
        _section("An example", _example(example, categories)),
        _section("Metrics over the run", _metrics(run, targets)),
        _section("Training", loss_charts(run)),
        *(_section(heading, _pairs(pairs, categories)) for heading, pairs in (grids or {}).items()),
        _section("Settings", _settings(config_summary or {})),
    ]
    return write_text(path, whole_page(title, "\n".join(filter(None, parts)), style=REPORT_STYLE))


def _text(value: object) -> str:
    return html.escape(printable(value))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{body}</section>" if body else ""


def _lead(run: RunLog, figures: Mapping[str, float | None], goals: Mapping[str, Goal]) -> str:
    """Say in one line how far the run went and how many goals it met."""
    said = []
    if run.train:
        last = run.train[-1]
        said.append(f"{last['step']:,.0f} steps")
        said += [f"{last['epoch']:.4g} epochs"] if is_finite(last.get("epoch")) else []
    seconds = [event["seconds"] for event in (*run.train, *run.evaluate) if is_finite(event.get("seconds"))]
    said += [f"{max(seconds) / 60:.1f} minutes"] if seconds else []
    if goals:
        met = sum(goal.is_met(figures.get(name)) for name, goal in goals.items())
        said.append(f"{met} of {len(goals)} goals met")
    return f'<p class="lead">{" · ".join(said)}</p>'


def format_figure(value: object) -> str:
    """Return a number with four significant digits."""
    return f"{value:.4g}" if is_finite(value) else "not measured"


def _figures_table(figures: Mapping[str, float | None], goals: Mapping[str, Goal]) -> str:
    """Return the table of figures, goals first; a goal whose figure is missing has its row too."""
    names = list(dict.fromkeys([*goals, *figures]))
    if not names:
        return ""
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td class="figure">{format_figure(figures.get(name))}</td>'
        f"{_verdict(figures.get(name), goals.get(name))}</tr>"
        for name in names
    )
    head = "<tr><th>figure</th><th>value</th><th>goal</th><th></th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _verdict(figure: float | None, goal: Goal | None) -> str:
    if goal is None:
        return "<td></td><td></td>"
    if goal.is_met(figure):
        said = '<span class="met">✓ met</span>'
    elif is_finite(figure):
        said = f'<span class="missed">✗ missed by {abs(figure - goal.value):.3g}</span>'
    else:
        said = '<span class="missed">✗ not measured</span>'
    return f'<td class="figure">{goal}</td><td>{said}</td>'


def _example(example: tuple[ImageLike | None, Record] | None, categories: Sequence[Category]) -> str:
    if example is None:
        return ""
    image, record = example
    figure = region_figure(image, record, categories)
    return f'<p class="note">{HINT}</p><div class="card">{figure}</div>'


def _pairs(pairs: Sequence[Pair], categories: Sequence[Category]) -> str:
    """Return truth beside prediction for each image."""
    cards = []
    for image, truth, prediction in pairs:
        image = truth.read_image() if image is None else image
        sides = (
            region_figure(image, record, categories, title=f"{label} · {truth.image_id}", beside=False, max_width=640)
            for label, record in (("truth", truth), ("prediction", prediction))
        )
        cards.append(f'<div class="card pair">{"".join(sides)}</div>')
    return "".join(cards)


def _metrics(run: RunLog, goals: Mapping[str, Goal]) -> str:
    """Return the metrics' curves: those with a goal in sight, the others folded away."""
    names = run.names("metrics", "evaluate")
    first = [name for name in goals if name in names] or names[:KEY_METRICS]
    others = [name for name in names if name not in first]
    shown = metric_charts(run, first, {name: goal.value for name, goal in goals.items()})
    folded = metric_charts(run, others, {})
    return shown + (f"<details><summary>{len(others)} more metrics</summary>{folded}</details>" if folded else "")


def _settings(settings: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in settings.items())
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""
