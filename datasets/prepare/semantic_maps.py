"""Semantic PNGs of COCO panoptic, as the original Pix2Cap, X-Decoder and detectron2 ask for; locap needs none.

``annotations/panoptic_<split>.json`` and ``panoptic_<split>/*.png`` become ``panoptic_semseg_<split>/*.png``: 8-bit
grey, a pixel is the contiguous index (0 to 132) of its segment's category, crowds included, 255 where there is none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from ...utils.errors import DataError, LocapError
from ...utils.files import atomic_path
from ...utils.untrusted import each_object, get, read_id_map, read_json, resolve_under, shown
from ..categories import COCO_PANOPTIC, contiguous_indices
from ..readers.whereabouts import locate

SPLITS = ("val2017", "train2017")
NOTHING = 255


def semantic_map(ids: np.ndarray, indices: Mapping[int, int]) -> np.ndarray:
    """Return uint8 (height, width): the index of each pixel's segment, `NOTHING` where it has none.

    Args:
        ids: int (height, width), an id map.
        indices: segment id -> contiguous index of its category.
    """
    known = np.array(sorted(indices), np.int64)
    values = np.array([indices[i] for i in known.tolist()] + [NOTHING], np.uint8)
    places = np.searchsorted(known, ids)
    listed = np.append(known, -1)[places] == ids
    return values[np.where(listed, places, len(known))]


def prepare(root: str | Path | None, split: str, workers: int = 1) -> int:
    """Write the PNGs of a split below ``<root>/coco`` or ``<root>``; those that are there already are left alone.

    Returns:
        How many were written.

    Raises:
        DataError: the annotations or a PNG are missing or wrong.
    """
    _, base, (annotations,) = locate(f"panoptic_{split}", root, ((f"annotations/panoptic_{split}.json",),))
    source, target = base / f"panoptic_{split}", base / f"panoptic_semseg_{split}"
    target.mkdir(exist_ok=True)
    there = {entry.name for entry in os.scandir(target)}
    jobs = [job for job in _jobs(annotations) if job[0] not in there]
    console = Console(stderr=True)
    with ThreadPool(workers) as pool:
        done = pool.imap_unordered(partial(_write, source, target), jobs)
        return sum(1 for _ in track(done, split, len(jobs), console=console, disable=not sys.stderr.isatty()))


def _jobs(annotations: Path) -> list[tuple[str, dict[int, int]]]:
    """Return (name of the PNG, segment id -> contiguous index) of each image."""
    known, jobs = contiguous_indices(COCO_PANOPTIC), []
    for body, where in each_object(read_json(annotations), shown(annotations), "annotations"):
        indices = {}
        for segment, place in each_object(body, where, "segments_info"):
            category = get(segment, "category_id", (int,), place)
            if category not in known:
                raise DataError("A segment has an unknown category.", where=place, value=category)
            indices[get(segment, "id", (int,), place)] = known[category]
        jobs.append((get(body, "file_name", (str,), where), indices))
    return jobs


def _write(source: Path, target: Path, job: tuple[str, dict[int, int]]) -> None:
    name, indices = job
    semantic = semantic_map(read_id_map(resolve_under(source, name)), indices)
    with atomic_path(resolve_under(target, name)) as temporary:
        Image.fromarray(semantic).save(temporary, "PNG")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the PNGs of the splits; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("splits", nargs="*", default=SPLITS, metavar="SPLIT", help="default: val2017 train2017")
    parser.add_argument("--root", metavar="FOLDER", help="of the data sets; default: $DETECTRON2_DATASETS, $DATASETS")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="images at a time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        for split in arguments.splits:
            sys.stdout.write(f"{split}: {prepare(arguments.root, split, arguments.workers)} PNGs written\n")
    except LocapError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    return 0
