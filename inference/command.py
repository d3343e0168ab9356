"""The command ``predict``: describe images, everything in them or what is asked about."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..utils.errors import UsageError
from .config_arguments import add_config_arguments, device_of, read_config
from .image_list import find_images


class AppendAsk(argparse.Action):
    """Collects (kind, value) of --box, --point, --mask and --text in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Append one."""
        kind = self.option_strings[0].removeprefix("--")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (kind, values)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of prediction."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, patterns; - reads a list of files")
    parser.add_argument("--image", nargs="+", default=[], metavar="IMAGE", help="the same as IMAGE")
    parser.add_argument("--model", metavar="FOLDER", help="a model or run folder: its config.yaml and newest weights")
    parser.add_argument(
        "--output", default="output", metavar="FOLDER", help="where pictures and predictions go; default: %(default)s"
    )
    _add_prompts(parser)
    parser.add_argument("--name", metavar="NAME", help="of the files written, without suffix; default: the image's")
    parser.add_argument("--batch-size", type=int, default=0, metavar="N", help="images at once; default: 8")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1; default: DEVICE")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="default: auto")
    parser.add_argument("--no-pictures", action="store_true", help="write predictions only")
    parser.add_argument("--html", action="store_true", help="also one page, index.html, of the first 100 images")
    add_config_arguments(parser, required=False)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_argument_group(
        "prompts",
        "repeatable, about every image, in pixels of the original image from its upper left corner; without any, "
        "everything is described",
    )
    for option, count, parse, names, text in (
        ("--box", 4, float, ("X0", "Y0", "X1", "Y1"), "describe what is in this box"),
        ("--point", 2, float, ("X", "Y"), "describe what is at this point"),
        ("--mask", None, str, "FILE", "describe what is under this mask: an image, not black inside, or run lengths"),
        ("--text", None, str, "PHRASE", "find what this phrase refers to"),
    ):
        prompts.add_argument(
            option, nargs=count, type=parse, metavar=names, action=AppendAsk, dest="asks", default=[], help=text
        )
    prompts.add_argument("--all", action="store_true", help="everything, which is what happens without prompts")
    prompts.add_argument("--regions", metavar="FILE", help="a record file: its images, and what to describe in each")
    prompts.add_argument("--prompt", metavar="TEXT", help="words of your own, such as a question about the regions")
    prompts.add_argument("--normalized", action="store_true", help="boxes and points are shares of width and height")


def run(arguments: argparse.Namespace) -> int:
    """Write a line of predictions and a picture per image; 3 when some images could not be read."""
    _check(arguments)
    cfg = read_config(arguments)
    from .asks import make_asks

    prompt = None if arguments.regions else arguments.prompt  # else it is about the regions of that file
    asks = make_asks(arguments.asks, prompt=prompt)  # told before torch is loaded
    images = find_images([*arguments.images, *arguments.image], sys.stdin)
    from ..utils.devices import pick_device
    from .prediction_run import Outputs, predict_images, questions

    return predict_images(
        cfg,
        questions(
            cfg, images, asks, regions=arguments.regions, prompt=arguments.prompt, normalized=arguments.normalized
        ),
        Outputs(Path(arguments.output), arguments.name, pictures=not arguments.no_pictures, page=arguments.html),
        device=pick_device(arguments.device or device_of(cfg)),
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        inputs=[path for path in (arguments.regions, *_mask_files(arguments)) if path],
    )


def _mask_files(arguments: argparse.Namespace) -> list[str]:
    return [value for kind, value in arguments.asks if kind == "mask"]


def _check(arguments: argparse.Namespace) -> None:
    given = list(dict.fromkeys(f"--{kind}" for kind, _ in arguments.asks))
    given += ["--regions"] if arguments.regions else []
    if arguments.all and given:
        raise UsageError("Ask for everything, or for something.", value=f"--all {' '.join(given)}", fix="leave out one")
    if not arguments.model and not arguments.conf_files:
        raise UsageError("No model is given.", fix="give --conf_files FILE.yaml, or --model RUN_FOLDER")
    if Path(arguments.output).exists() and not Path(arguments.output).is_dir():
        raise UsageError("This is a file, not a folder.", where="--output", value=arguments.output, allowed="a folder")
    beside = given[:-1] + [name for name in ("images", "image", "normalized") if getattr(arguments, name)]
    if arguments.regions and beside:
        what = "A file of regions says which images and which regions, in pixels."
        raise UsageError(what, where="--regions", value=" ".join(beside), fix="leave out one")
    if arguments.batch_size < 0:
        raise UsageError("There is no such batch.", where="--batch-size", value=arguments.batch_size, allowed="from 1")
