"""Memory of loader processes that visit many records without reading any image."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..records import Record
from ..transforms.mapper import Sample
from .loading import OTHER, OURS, our_epochs
from .measuring import Way, measure_in_turn
from .report import Report
from .scenes import ANNOTATIONS, IMAGES, PANOPTIC, multiply, open_data_set
from .straightforward import entries_of, straightforward_epochs


def flatness(folder: Path, *, records: int = 8000, batch: int = 32, workers: int = 2, epochs: int = 3) -> Report:
    """Measure what visiting records costs in memory, from the first batch on.

    Args:
        folder: a drawn data set; gets one more JSON, whose records share its images.
        records: of this JSON, and of an epoch.
        batch: records in a batch.
        workers: processes of each loader.
        epochs: over all records.
    """
    annotations = multiply(folder / ANNOTATIONS, records)
    reader = open_data_set(folder, annotations.name)
    document = json.loads(annotations.read_text(encoding="utf-8"))
    entries = Entries(entries_of(document, folder / IMAGES, folder / PANOPTIC))
    sizes = {"batch": batch, "workers": workers}
    ways = [Way(OTHER, straightforward_epochs(entries, **sizes)), Way(OURS, our_epochs(reader, touch, **sizes))]
    return Report(
        "records", {"records": records, **sizes}, measure_in_turn(ways, images=records, batch=batch, epochs=epochs)
    )


class Entries(Dataset):
    """A list of dictionaries, of which each is copied deeply when it is asked for."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: tuple[int, int]) -> int:
        return len(copy.deepcopy(self.entries[key[1]])["segments_info"])


def touch(record: Record, epoch: int, index: int) -> Sample:
    """Stand for a mapper that reads no pixels."""
    return Sample(torch.zeros(3, 1, 1, dtype=torch.uint8), record.image_id, (1, 1))
