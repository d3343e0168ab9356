"""The benchmarks' command line."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ...utils.errors import LocapError
from ...utils.logging import set_up_logging
from .class_texts import class_texts
from .deformable_encoder import deformable_encoder
from .inference import captioner, inference
from .prompted_captions import build_prompted, prompted_captions
from .report import Report
from .training import training_step
from .workload import SHAPES, Shape, build

COMMANDS = ("inference", "captioner", "class_texts", "training_step", "deformable_encoder", "prompted_captions")


def main(argv: list[str] | None = None) -> int:
    """Measure, show and write; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    set_up_logging()
    torch.set_num_threads(arguments.threads)
    try:
        report = run(arguments)
    except LocapError as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code
    report.show(Console())
    if arguments.output:
        report.write(Path(arguments.output), {name: value for name, value in vars(arguments).items() if value})
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m locap.modeling.benchmarks",
        description="Count operations, take processor time and memory, and compare with the published code's way.",
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--size", choices=list(SHAPES), default="full", help="the published model, or a smaller one")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="height and width; default: 512, small 256, tiny 128x160"
    )
    parser.add_argument("--images", type=int, help="per batch; default: 1, small and tiny 2")
    parser.add_argument("--segments", type=int, help="per image in training; default: 12, small 8, tiny 6")
    parser.add_argument("--words", type=int, help="per caption in training, the end included; default: 24, small 16")
    parser.add_argument("--kept", type=int, default=20, help="segments per image at inference")
    parser.add_argument("--boxes", type=int, default=100, help="prompted_captions: of one image")
    parser.add_argument("--measured", type=int, help="prompted_captions: boxes really done one by one; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; medians are shown")
    parser.add_argument("--threads", type=int, default=1, help="processor time is steadiest with one")
    parser.add_argument("--only-ours", action="store_true", help="leave out the published code's way")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--conf_files", nargs="+", default=[], metavar="YAML", help="in place of the shipped one")
    parser.add_argument("--overrides", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="must come last")
    return parser


def run(arguments: argparse.Namespace) -> Report:
    """Do what the arguments ask for."""
    if arguments.command == "deformable_encoder":
        shape, tiny = shape_of(arguments), arguments.size == "tiny"
        sizes = {"side": shape.height, "images": shape.images, "dim": 64 if tiny else 256, "layers": 2 if tiny else 6}
        return deformable_encoder(**sizes, repeats=arguments.repeats, original=not arguments.only_ours)
    if arguments.command == "prompted_captions":
        side = ("COCO.INPUT.IMAGE_SIZE", str(arguments.image_size)) if arguments.image_size else ()
        prompted = build_prompted(arguments.size, arguments.conf_files, [*side, *arguments.overrides])
        counts = {"boxes": arguments.boxes, "measured": arguments.measured}
        return prompted_captions(prompted, **counts, repeats=arguments.repeats)
    model = build(arguments.size, arguments.conf_files, arguments.overrides)
    common = {"repeats": arguments.repeats, "original": not arguments.only_ours}
    if arguments.command == "captioner":
        return captioner(model, kept=arguments.kept, **common)
    if arguments.command == "class_texts":
        return class_texts(model, **common)
    if arguments.command == "inference":
        return inference(model, shape_of(arguments), kept=arguments.kept, **common)
    return training_step(model, shape_of(arguments), **common)


def shape_of(arguments: argparse.Namespace) -> Shape:
    """Return the size's shape with what was given in its place."""
    side = arguments.image_size
    given = {"images": arguments.images, "segments": arguments.segments, "words": arguments.words}
    given |= {"height": side, "width": side}
    return replace(SHAPES[arguments.size], **{name: value for name, value in given.items() if value})


if __name__ == "__main__":
    sys.exit(main())
