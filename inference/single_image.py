"""Predict given photographs: a picture, a JSON and a table each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..datasets.readers import SHAPES_SPLITS, open_dataset
from ..datasets.records import Record
from ..datasets.shapes import Shapes
from .predictor import Predictor, record_of_image, write_prediction

_log = logging.getLogger(__name__)


def predict_images(
    cfg: Any,
    images: Sequence[str] | None,
    output: Path,
    *,
    device: torch.device | str = "cpu",
    name: str | None = None,
) -> list[Path]:
    """Predict images and write the results to a folder.

    Args:
        cfg: the resolved configuration; RESUME_FROM names the weights.
        images: files; None takes the first image of DATASETS.TEST.
        output: the folder.
        device: where to compute.
        name: of the files written; by default each image's own.

    Returns:
        The paths written.
    """
    records = [record_of_image(image) for image in images] if images else [first_test_image(cfg)]
    predictor = Predictor.from_config(cfg, device)
    console = Console()
    written = []
    for record in records:
        stem = name or Path(str(record.image_id)).stem
        prediction = predictor.predict(record)
        written += write_prediction(output, stem, record.read_image(), prediction, predictor.categories, console)
        _log.info("written: %s", ", ".join(str(path) for path in written[-2:]))
    return written


def first_test_image(cfg: Any) -> Record:
    """Return the first record of DATASETS.TEST."""
    name = cfg.DATASETS.TEST[0]
    if name in SHAPES_SPLITS:
        return Shapes(1, seed=cfg.SHAPES.SEED, split=SHAPES_SPLITS[name], image_size=cfg.SHAPES.IMAGE_SIZE)[0]
    return open_dataset(name, cfg.DATASETS.ROOT or None)[0]
