"""The benchmarks' command line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from ...utils.errors import LocapError
from ...utils.logging import set_up_logging
from .flatness import flatness
from .loading import Files, loading
from .report import Report, write
from .scenes import IMAGES, PANOPTIC, draw_data_set

COCO = ("annotations/pix2cap_coco_val.json", "val2017", "panoptic_val2017")


def main(argv: list[str] | None = None) -> int:
    """Measure, show and write; returns the exit code: 1 when the loaders disagree."""
    arguments = make_parser().parse_args(argv)
    set_up_logging()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="locap-benchmark-") as folder:
            reports = run(arguments, Path(folder))
    except LocapError as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code
    for report in reports:
        report.show(Console())
    if arguments.output:
        write(Path(arguments.output), reports)
    return 0 if all(all(report.facts.values()) for report in reports) else 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m locap.datasets.benchmarks",
        description="Measure our loader beside a straightforward one on the same files.",
    )
    parser.add_argument("command", choices=["loading", "memory"])
    parser.add_argument("--crop", type=int, nargs="+", metavar="PIXELS", help="default: 1024, and 640 x 480 as stored")
    parser.add_argument("--coco", metavar="FOLDER", help="Pix2Cap-COCO val in COCO's folders; default: drawn scenes")
    parser.add_argument("--images", type=int, default=64, help="loading: of an epoch")
    parser.add_argument("--records", type=int, default=8000, help="memory: of an epoch")
    parser.add_argument("--batch", type=int, default=4, help="loading: images in a batch")
    parser.add_argument("--workers", type=int, default=2, help="processes of each loader")
    parser.add_argument("--epochs", type=int, default=4, help="loading: the first warms up")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    return parser


def run(arguments: argparse.Namespace, folder: Path) -> list[Report]:
    """Do what the arguments ask for, with drawn scenes in a folder."""
    if arguments.command == "memory":
        draw_data_set(folder, 4)
        return [flatness(folder, records=arguments.records, workers=arguments.workers)]
    files = _coco(Path(arguments.coco)) if arguments.coco else _drawn(folder, min(arguments.images, 24))
    sizes = {name: getattr(arguments, name) for name in ("images", "batch", "workers", "epochs")}
    if arguments.crop:
        return [loading(files, crop=crop, **sizes) for crop in arguments.crop]
    return [loading(files, crop=1024, **sizes), loading(files, crop=640, scales=(1.0, 1.0), **sizes)]


def _coco(folder: Path) -> Files:
    return Files(*(folder / name for name in COCO))


def _drawn(folder: Path, count: int) -> Files:
    return Files(draw_data_set(folder, count), folder / IMAGES, folder / PANOPTIC)


if __name__ == "__main__":
    sys.exit(main())
