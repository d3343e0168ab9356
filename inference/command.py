"""The command ``predict``: describe images, everything in them or what is asked about."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .config_arguments import add_config_arguments, device_of, read_config


class AppendAsk(argparse.Action):
    """Collects (kind, value) of --box, --point and --text in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Append one."""
        kind = self.option_strings[0].removeprefix("--")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (kind, values)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of prediction."""
    parser.add_argument("--image", nargs="+", metavar="FILE", help="photographs; default: the first test image")
    parser.add_argument("--model", metavar="FOLDER", help="a run folder: its config.yaml and newest weights")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where pictures and JSON go")
    prompts = parser.add_argument_group(
        "prompts",
        "for systems that take them; repeatable, in pixels of the original image from its upper left corner. Without "
        "any, such a system narrates the image and, if it can, finds and describes what it shows.",
    )
    for option, count, parse, names, text in (
        ("--box", 4, float, ("X0", "Y0", "X1", "Y1"), "describe what is in this box"),
        ("--point", 2, float, ("X", "Y"), "describe what is at this point"),
        ("--text", None, str, "PHRASE", "find what this phrase refers to"),
    ):
        prompts.add_argument(
            option, nargs=count, type=parse, metavar=names, action=AppendAsk, dest="asks", default=[], help=text
        )
    parser.add_argument("--name", metavar="NAME", help="of the files written, without suffix; default: the image's")
    add_config_arguments(parser, required=False)


def run(arguments: argparse.Namespace) -> None:
    """Write a picture and a JSON per image."""
    cfg = read_config(arguments)
    from .asks import make_asks

    asks = make_asks(arguments.asks)  # told before torch is loaded
    from ..utils.devices import pick_device
    from .single_image import predict_images

    device = pick_device(device_of(cfg))
    predict_images(cfg, arguments.image, Path(arguments.output), asks=asks, device=device, name=arguments.name)
