"""Predict given photographs: a picture, a JSON and a table each."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..datasets.readers import SHAPES_SPLITS, open_dataset
from ..datasets.records import Record
from ..datasets.shapes import Shapes
from ..modeling.systems import find_system
from ..utils import untrusted
from ..utils.errors import UsageError
from .asks import Ask, check_inside
from .captioner import Captioner
from .engines import make_engine
from .images import record_of_image

_log = logging.getLogger(__name__)


def predict_images(
    cfg: Any,
    images: Sequence[str] | None,
    output: Path,
    *,
    asks: Sequence[Ask] = (),
    device: torch.device | str = "cpu",
    name: str | None = None,
) -> list[Path]:
    """Predict images and write the results to a folder.

    Args:
        cfg: the resolved configuration; RESUME_FROM names the weights.
        images: files; None takes the first image of DATASETS.TEST.
        output: the folder.
        asks: questions about every image, for systems that are prompted.
        device: where to compute.
        name: of the files written; by default each image's own. Where names meet, a number follows.

    Returns:
        The paths written.

    Raises:
        DataError: an image is missing, before anything is computed, or unreadable.
        UsageError: the system takes no prompts, or one lies outside an image; before anything is computed.
    """
    check_answerable(cfg, asks)
    for image in images or ():
        untrusted.require_file(image, what="image")
        if asks:
            check_inside(asks, *untrusted.read_image_size(image), Path(image).name)
    records = map(record_of_image, images) if images else [first_test_image(cfg)]
    captioner = Captioner(make_engine(cfg, device), cfg)
    console = Console()
    written: list[Path] = []
    taken: set[str] = set()
    for record in records:
        result = captioner.ask(captioner.see(record), asks)
        written += result.save(output, _unused(name or Path(str(record.image_id)).stem, taken))
        result.print(console)
        _log.info("written: %s", ", ".join(str(path) for path in written[-2:]))
    return written


def check_answerable(cfg: Any, asks: Sequence[Ask]) -> None:
    """Raise UsageError when the configured system takes no such questions; before anything is loaded."""
    takes = find_system(cfg.MODEL.NAME).takes(cfg)
    for ask in asks:
        if ask.kind not in takes:
            raise UsageError(
                f"This system takes no {ask.kind}.",
                where=f"--{ask.kind}",
                value=cfg.MODEL.NAME,
                allowed=", ".join(f"--{kind}" for kind in sorted(takes)) or "no prompts: it describes all it finds",
                fix=f"leave out --{ask.kind}",
            )


def _unused(stem: str, taken: set[str]) -> str:
    """Return the stem, with a number where it is taken already, and take it."""
    numbered = (f"{stem}_{number}" for number in itertools.count(2))
    chosen = next(candidate for candidate in itertools.chain([stem], numbered) if candidate not in taken)
    taken.add(chosen)
    return chosen


def first_test_image(cfg: Any) -> Record:
    """Return the first record of DATASETS.TEST."""
    if not cfg.DATASETS.TEST:
        raise UsageError("There is no image.", fix="give --image FILE, or name a data set in DATASETS.TEST")
    name = cfg.DATASETS.TEST[0].rpartition(":")[2]  # a task may stand before it
    if name in SHAPES_SPLITS:
        return Shapes(1, seed=cfg.SHAPES.SEED, split=SHAPES_SPLITS[name], image_size=cfg.SHAPES.IMAGE_SIZE)[0]
    return open_dataset(name, cfg.DATASETS.ROOT or None)[0]
