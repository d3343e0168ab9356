"""What a result leaves on disk, and what it becomes elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from locap.datasets.records import Category, Record, Region, encode_mask, read_records
from locap.inference.results import Result

CATEGORIES = [Category(1, "cat"), Category(2, "sky", is_thing=False)]
LEFT = np.zeros((40, 60), bool)
LEFT[:, :30] = True


def region(number: int, mask: np.ndarray, category: int, caption: str = "") -> Region:
    return Region(number, category, encode_mask(mask), score=0.5, captions=(caption,) if caption else ())


@pytest.mark.parametrize("panoptic", [True, False])
def test_every_mode_is_in_the_file_and_the_table_shows_segments_first(tmp_path: Path, panoptic: bool):
    record = Record("photo", 40, 60)
    record.instances = [region(1, LEFT, 1, "an instance"), region(2, LEFT, 1, "another")]
    record.semantic = [region(1, LEFT, 1), region(2, ~LEFT, 2)]
    if panoptic:
        record.regions, record.id_map = [region(1, LEFT, 1, "a segment")], LEFT.astype(np.int32)
    shown = io.StringIO()
    image = np.zeros((40, 60, 3), np.uint8)
    result = Result(record, tuple(CATEGORIES), image)
    paths = result.save(tmp_path, "photo")
    result.print(Console(file=shown, width=100))
    [read], _, _ = read_records(paths[0])
    assert (read.instances, read.semantic, read.regions) == (record.instances, record.semantic, record.regions)
    assert paths[1].is_file()
    assert ("a segment" in shown.getvalue(), "an instance" in shown.getvalue()) == (panoptic, not panoptic)
