"""One image in, a record with segments and captions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from ..datasets.batches import Batch
from ..datasets.collate import collate
from ..datasets.records import Category, Record, write_records
from ..datasets.transforms.mapper import EvalMapper
from ..modeling.systems import build_trained
from ..utils import untrusted
from ..utils.files import atomic_path
from .model_folder import categories_for
from .visualise import draw_record, print_record


class Predictor:
    """A system ready for images.

    Args:
        model: in evaluation mode, on the device it is to run on.
        categories: its classes.
        mapper: brings an image to the model's test size.
    """

    def __init__(self, model: nn.Module, categories: Sequence[Category], mapper: EvalMapper) -> None:
        self.model, self.categories, self.mapper = model.eval(), tuple(categories), mapper

    @classmethod
    def from_config(cls, cfg: Any, device: torch.device | str = "cpu") -> Predictor:
        """Build the configured system and load the weights of RESUME_FROM.

        Raises:
            UsageError: RESUME_FROM is empty.
            CheckpointError: the weights are missing or don't fit.
        """
        categories = categories_for(cfg)
        model = build_trained(cfg, categories, device=device)
        inputs = cfg.COCO.INPUT
        return cls(model, categories, EvalMapper(shortest=inputs.MIN_SIZE_TEST, longest=inputs.MAX_SIZE_TEST))

    def predict(self, record: Record) -> Record:
        """Predict one image; see the system's ``predict`` for what the result holds."""
        batch: Batch = collate([self.mapper(record)])
        device = next(self.model.parameters()).device
        prediction = self.model.predict(batch.to(device))[0]
        prediction.image = record.image
        return prediction

    def predict_image(self, image: str | Path | np.ndarray) -> Record:
        """Predict a file or uint8 (height, width, 3) RGB pixels."""
        return self.predict(record_of_image(image))


def record_of_image(image: str | Path | np.ndarray) -> Record:
    """Return a record without regions around an image.

    Raises:
        DataError: the file cannot be read as an image.
    """
    pixels = image if isinstance(image, np.ndarray) else untrusted.read_image(image)
    name = "image" if isinstance(image, np.ndarray) else Path(image).name
    return Record(name, *pixels.shape[:2], image=pixels)


def write_prediction(
    folder: Path,
    name: str,
    image: np.ndarray,
    prediction: Record,
    categories: Sequence[Category],
    console: Console,
    prompts: Sequence[str] = (),
) -> list[Path]:
    """Write ``<name>.json`` (a record file) and ``<name>.png`` (the picture), print a table of regions and narratives.

    The file holds every mode's results; picture and table show the segments, or the instances when there are no others.
    ``prompts`` are what the regions answer, if anything.
    """
    prediction.image = None
    paths = [write_records(folder / f"{name}.json", [prediction], categories)]
    if prediction.id_map is None and prediction.instances:
        prediction = replace(prediction, regions=prediction.instances)
    picture = draw_record(image, prediction, categories)
    with atomic_path(folder / f"{name}.png") as temporary:
        picture.save(temporary)
    print_record(prediction, categories, console, prompts)
    return [*paths, folder / f"{name}.png"]
