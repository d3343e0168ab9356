"""The arguments that choose a configuration, the same for every command that needs one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omegaconf import read_write

from ..modeling.schemas import MODEL_SCHEMAS
from ..utils.config import load_config
from ..utils.errors import UsageError
from .model_folder import find_model, read_folder

CONF_FILES = "later ones win; those of `configs list` are found by their names from any folder"


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the configuration's arguments; --overrides takes the rest of the line."""
    parser.add_argument("--conf_files", nargs="+", required=required, default=[], metavar="YAML", help=CONF_FILES)
    parser.add_argument(
        "--config_overrides", nargs="+", default=[], metavar="JSON", help='one JSON object, {"KEY": value, ...}'
    )
    parser.add_argument(
        "--overrides",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="keys and their values; must come last",
    )


def read_config(arguments: argparse.Namespace) -> Any:
    """Load the configuration that the arguments describe."""
    files, overrides, more = list(arguments.conf_files), list(arguments.overrides), list(arguments.config_overrides)
    model = getattr(arguments, "model", None)
    if model:
        model = find_model(model)
        overrides += ["RESUME_FROM", str(model), "RESUME", "false", "WEIGHT", "false"]
    elif not files:
        raise UsageError("There is no configuration.", fix="give --conf_files FILE.yaml, or --model RUN_FOLDER")
    if files:
        cfg = load_config(files, overrides, model_schemas=MODEL_SCHEMAS, config_overrides=more)
    else:
        cfg = read_folder(model, overrides, more)
    if not cfg.BASENAME:
        with read_write(cfg):
            cfg.BASENAME = Path(files[0]).stem if files else model.name
    return cfg


def device_of(cfg: Any) -> str:
    """Return DEVICE, or "cpu" when CUDA is switched off."""
    return cfg.DEVICE if cfg.CUDA else "cpu"
