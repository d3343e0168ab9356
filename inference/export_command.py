"""The command ``export``: a system's weights, or its vision part, for others to use."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .config_arguments import add_config_arguments, read_config

KINDS = {
    "folder": "a model folder: configuration, weights and card; locap.load and --model take it",
    "hub": "the same, uploaded to the Hugging Face hub; --output is owner/name",
    "original": "the weights under the names of the original code; .pt as it reads them, or .safetensors",
    "torch.export": "the part that reads images, compared with the system before it is kept; .pt2",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of export."""
    kinds = "; ".join(f"{kind}: {text}" for kind, text in KINDS.items())
    parser.add_argument("--model", metavar="FOLDER", help="a run or model folder; else --conf_files and RESUME_FROM")
    parser.add_argument("--to", required=True, choices=KINDS, help=kinds)
    parser.add_argument("--output", required=True, metavar="WHERE", help="the folder, file or owner/name written to")
    parser.add_argument("--like", metavar="FILE", help="original: its file, for tensors that it stores but never reads")
    parser.add_argument(
        "--license", default="other", help="folder, hub: of the weights, for the card, such as apache-2.0"
    )
    parser.add_argument("--private", action="store_true", help="hub: only you can see a new repository")
    parser.add_argument("--revision", metavar="BRANCH", help="hub: branch to write to; default: main")
    add_config_arguments(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Write what is asked for; returns the exit code."""
    cfg = read_config(arguments)
    if arguments.to == "original":
        from ..modeling.systems import export_weights

        written = export_weights(cfg, arguments.output, layout="original", like=arguments.like)
    else:
        written = _export_model(cfg, arguments)
    sys.stderr.write(f"written: {written}\n")
    return 0


def _export_model(cfg: Any, arguments: argparse.Namespace) -> Any:
    from .captioner import Captioner
    from .engines import make_engine
    from .model_folder import push_model, save_model

    captioner = Captioner(make_engine(cfg, "cpu"), cfg)
    if arguments.to == "folder":
        return save_model(captioner, arguments.output, license=arguments.license)
    if arguments.to == "hub":
        options = {"private": arguments.private, "revision": arguments.revision, "license": arguments.license}
        return push_model(captioner, arguments.output, **options)
    return _export_vision(captioner, arguments.output)


def _export_vision(captioner: Any, output: str) -> Any:
    from ..modeling.vision_export import export_vision

    found = export_vision(captioner.cfg, captioner.engine.model, output)
    batch = "any number of images" if found.any_batch else "one image"
    sys.stderr.write(f"{batch} of {found.width} x {found.height} pixels; largest difference from the system:\n")
    sys.stderr.writelines(f"  {name} {gap:.1e}\n" for name, gap in found.differences.items())
    return found.path
