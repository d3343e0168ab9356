"""Writers turn records into files that others, or `locap.datasets.readers.own_files`, read.

A writer is called with the path, the records, of which it can hold everything (`kept`), the categories and a `Naming`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import coco, labelme, panoptic, record_file, visual_genome
from .holds import Holds, kept
from .naming import Naming

__all__ = ["WRITERS", "Holds", "Naming", "Writer", "kept"]


@dataclass(frozen=True, slots=True)
class Writer:
    """A format that can be written.

    Attributes:
        write: see the module's description.
        holds: what of a record it can hold.
        numbers: image ids must be numbers.
        suffix: of the file; "" for a folder.
    """

    write: Callable[..., Path]
    holds: Holds
    numbers: bool = False
    suffix: str = ".json"


WRITERS = {
    "jsonl": Writer(record_file.write_lines, record_file.HOLDS, suffix=".jsonl"),
    "records": Writer(record_file.write, record_file.HOLDS),
    "coco": Writer(coco.write, coco.HOLDS),
    "panoptic": Writer(panoptic.write_panoptic, panoptic.PANOPTIC, numbers=True),
    "pix2cap": Writer(panoptic.write_pix2cap, panoptic.PIX2CAP, numbers=True),
    "vg": Writer(visual_genome.write, visual_genome.HOLDS, numbers=True),
    "labelme": Writer(labelme.write, labelme.HOLDS, suffix=""),
}
