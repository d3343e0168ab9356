"""The README.md of a model folder: what the system is, how to use it, what it was measured to do."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import LocapError
from ..utils.untrusted import read_json

REPORT = "locap-evaluation/1"
QUESTIONS = {
    "box": (
        "boxes to describe",
        "captioner.caption(boxes=[(10, 10, 60, 60)]).captions  # (x0, y0, x1, y1), pixels of the image",
    ),
    "point": ("points to describe", "captioner.caption(points=[(30, 30)]).captions  # (x, y)"),
    "mask": ("masks to describe", ""),
    "text": ("phrases to find", 'captioner.locate("the red one").record.regions'),
    "prompt": ("instructions", ""),
}
_SHOWN_CLASSES = 20


def write_card(captioner: Any, *, name: str, license: str) -> str:
    """Return the card.

    Args:
        captioner: a `Captioner`; where its weights are those of a run, the figures of its last evaluation are shown.
        name: folder, or ``owner/name``, for the usage.
        license: of the weights.
    """
    return "\n".join([*_front(captioner, license), *_usage(captioner, name), *_system(captioner), *_figures(captioner)])


def _front(captioner: Any, license: str) -> Iterator[str]:
    prompted = bool(captioner.takes & {"box", "point", "mask"})
    facts = {
        "license": license,
        **({"license_name": "not-stated"} if license == "other" else {}),
        "library_name": "locap",
        "pipeline_tag": "image-to-text" if prompted else "image-segmentation",
        "tags": ["locap", _plain_name(captioner), "region-captioning", "image-captioning"],
    }
    yield from ("---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", "")


def _plain_name(captioner: Any) -> str:
    return captioner.cfg.MODEL.NAME.removesuffix("_model")


def _usage(captioner: Any, name: str) -> Iterator[str]:
    yield from (f"# {name}", "", _summary(captioner), "", "```python", "import locap", "")
    yield f"captioner = locap.load({json.dumps(name, ensure_ascii=False)})  # or the folder that this file is in"
    yield 'captioner.set_image("photo.jpg")'
    yield "captioner.caption_everything().captions"
    yield from (code for kind, (_, code) in QUESTIONS.items() if kind in captioner.takes and code)
    yield from ("```", "")


def _summary(captioner: Any) -> str:
    taken = [words for kind, (words, _) in QUESTIONS.items() if kind in captioner.takes]
    asked = f"It takes {', '.join(taken)}." if taken else "It takes no prompts."
    return f"A system `{_plain_name(captioner)}` of locap: it describes what an image shows, region by region. {asked}"


def _system(captioner: Any) -> Iterator[str]:
    cfg, model = captioner.cfg, captioner.engine.model
    inputs, names = cfg.COCO.INPUT, [_cell(category.name) for category in captioner.categories]
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    takes = ", ".join(sorted(captioner.takes)) or "an image alone"
    solver, canvas = cfg.SOLVER, getattr(model, "canvas", None)
    size = "{1} x {0}".format(*canvas) if canvas else f"{inputs.MIN_SIZE_TEST} to {inputs.MAX_SIZE_TEST}"
    length = f"{solver.MAX_STEPS} steps" if solver.MAX_STEPS else f"{solver.MAX_NUM_EPOCHS} epochs"
    sets = [_cell(entry) for entry in cfg.DATASETS.TRAIN if "/" not in entry]
    yield from ("| | |", "|---|---|")
    yield f"| system | `{cfg.MODEL.NAME}` |"
    yield f"| takes | {takes} |"
    yield f"| parameters | {sum(p.numel() for p in model.parameters()):,} |"
    yield f"| image encoder | `{cfg.MODEL.BACKBONE.NAME}` |"
    yield f"| image size | {size} pixels |"
    yield f"| classes | {len(names)}: {', '.join(names[:_SHOWN_CLASSES])}{more} |"
    data = ", ".join(dict.fromkeys(sets)) or "own data"
    yield f"| trained on | {data}, {length} of {cfg.COCO.TRAIN.BATCH_SIZE_TOTAL} images |"
    yield from ("", "`config.yaml` says the rest.", "")


def _cell(text: object) -> str:
    """Return a text of others as a table of Markdown shows it: no cell, line or HTML begins in it."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "&#124;")


def _figures(captioner: Any) -> Iterator[str]:
    folder = Path(captioner.cfg.RESUME_FROM)
    found = folder.glob("evaluations/step_*") if captioner.cfg.RESUME_FROM else ()
    steps = sorted(step for step in found if step.name.removeprefix("step_").isdecimal())
    rows = [row for file in sorted(steps[-1].glob("**/results.json")) for row in _rows(file)] if steps else []
    yield from ("## Figures", "")
    if not rows:
        yield from (
            "None are stored with these weights: `python entry.py evaluate --model <folder>` measures them.",
            "",
        )
        return
    yield f"Of the evaluation after step {int(steps[-1].name.removeprefix('step_'))}; fractions of 1, not percentages."
    yield from ("", "| data | images | protocol | figure | value |", "|---|---|---|---|---|", *rows, "")


def _rows(file: Path) -> list[str]:
    """Return a table row per figure of a report; none when it is no such report."""
    try:
        body = read_json(file)
        truth, results = body["ground_truth"], body["results"] if body.get("format") == REPORT else []
        data = f"| {_cell(truth['name'])} | {truth['images']} |"
        return [
            f"{data} {result['protocol']} ({result['variant']}) | {name} | {value:.4f} |"
            for result in results
            for name, value in result["figures"].items()
        ]
    except (LocapError, KeyError, TypeError, AttributeError, ValueError):
        return []
