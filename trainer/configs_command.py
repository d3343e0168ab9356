"""The command ``configs``: list, show, explain and compare configurations, and describe them to an editor."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..inference.config_arguments import add_config_arguments
from ..modeling.schemas import MODEL_SCHEMAS
from ..utils.config import TracedConfig, trace_config
from ..utils.config_files import SHIPPED, shipped_name
from ..utils.errors import LocapError, UsageError
from ..utils.explain_config import Explanation, Setting, differences, explain, history, json_schema, settings
from ..utils.tables import write_table
from ..utils.yaml_reader import read_yaml

_ABSENT = "(no such key)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the configurations that come with locap")
    listing.set_defaults(configs=_list)
    listing.add_argument("folder", nargs="?", default=str(SHIPPED), help="another folder of YAML files")

    show = actions.add_parser("show", help="every key with its value, and the file and line that set it")
    show.set_defaults(configs=_show)
    show.add_argument("--changed", action="store_true", help="only what differs from the defaults")
    add_config_arguments(show)

    explaining = actions.add_parser("explain", help="what a key, or each key of a section, means and takes")
    explaining.set_defaults(configs=_explain)
    explaining.add_argument("key", metavar="KEY", help="such as SOLVER.BASE_LR, or a section such as SOLVER")
    add_config_arguments(explaining, required=False)

    diff = actions.add_parser("diff", help="the keys that differ between two configurations or run folders")
    diff.set_defaults(configs=_diff)
    diff.add_argument("first", metavar="A", help="a YAML file or a run folder")
    diff.add_argument("second", metavar="B", nargs="?", help="another; default: A itself, for what the rest changes")
    add_config_arguments(diff, required=False)
    diff.epilog = "--conf_files, --config_overrides and --overrides are given after B."

    schema = actions.add_parser("schema", help="a JSON schema, with which editors complete and check keys")
    schema.set_defaults(configs=_schema)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    return arguments.configs(arguments)


# list


@dataclass(frozen=True)
class Shipped:
    """A configuration file: its first comment, and its system and data sets where it is complete in itself."""

    path: Path
    about: str
    system: str
    datasets: str


def shipped(folder: Path) -> list[Shipped]:
    """Describe the YAML files below a folder.

    Raises:
        UsageError: there are none.
    """
    paths = sorted(folder.rglob("*.yaml"))
    if not paths:
        raise UsageError("There is no configuration file here.", where=str(folder), allowed="a folder of .yaml files")
    return [_describe(path) for path in paths]


def _describe(path: Path) -> Shipped:
    about = _first_comment(path)
    try:
        cfg = _trace([str(path)]).cfg
    except LocapError as err:
        reason = "part of others" if err.what == "MODEL.NAME is not set." else err.what.splitlines()[0]
        return Shipped(path, about, f"({reason})", "")
    sets = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return Shipped(path, about, cfg.MODEL.NAME, ", ".join(sets))


def _first_comment(path: Path, depth: int = 0) -> str:
    """Return the comment a file begins with, else that of the first file it is based on."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if lines and lines[0].startswith("#"):
        return lines[0].lstrip("# ").strip()
    try:
        bases = [leaf.value for leaf in read_yaml(path, []) if leaf.key == "_base_"]
    except UsageError:
        return ""
    names = bases[0] if bases and isinstance(bases[0], list) else bases
    return _first_comment(path.parent / str(names[0]), depth + 1) if names and depth < 5 else ""


def _list(arguments: argparse.Namespace) -> int:
    found = shipped(Path(arguments.folder))
    rows = [(_near(item.path), item.system, item.about, item.datasets) for item in found]
    write_table(("FILE", "SYSTEM", "ABOUT", "DATA SETS"), rows)
    return 0


def _near(path: Path) -> str:
    """Return the name by which a file is found from here."""
    return shipped_name(path) or str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# show, explain, diff


def _trace(files: Sequence[str], arguments: argparse.Namespace | None = None) -> TracedConfig:
    """Load files, each a YAML file or the folder of a run, and what the command line adds."""
    paths = [Path(file) / "config.yaml" if (Path(file) / "config.yaml").is_file() else Path(file) for file in files]
    overrides = arguments.overrides if arguments else []
    more = arguments.config_overrides if arguments else []
    return trace_config(paths, overrides, model_schemas=MODEL_SCHEMAS, config_overrides=more)


def _show(arguments: argparse.Namespace) -> int:
    found = settings(_trace(arguments.conf_files, arguments))
    shown = [setting for setting in found if not (arguments.changed and setting.is_default)]
    write_table(("KEY", "VALUE", "SET BY"), [(setting.name, setting.value, setting.origin) for setting in shown])
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    traced = _trace(arguments.conf_files, arguments) if arguments.conf_files else None
    schemas = {traced.cfg.MODEL.NAME: MODEL_SCHEMAS[traced.cfg.MODEL.NAME]} if traced else MODEL_SCHEMAS
    found = explain(arguments.key, schemas)
    for item in found:
        sys.stdout.write(_explanation(item, traced) + "\n")
    return 0


def _explanation(item: Explanation, traced: TracedConfig | None) -> str:
    spec = item.spec
    added = spec.help.startswith("+ ")
    lines = [f"{spec.name}: {spec.help.removeprefix('+ ')}", f"  type:     {item.type_name}"]
    lines += [f"  allowed:  {', '.join(MODEL_SCHEMAS) if spec.name == 'MODEL.NAME' else spec.allowed()}"]
    lines += [f"  systems:  {', '.join(item.systems)}"] if item.systems else []
    lines += ["  origin:   not in the original Pix2Cap configuration"] if added else []
    if traced is not None:
        value = next(setting.value for setting in settings(traced) if setting.name == spec.name)
        lines += [f"  value:    {value}"]
        lines += [f"  set by:   {place}: {key} = {given}" for place, key, given in history(traced, spec.name)] or [
            "  set by:   nothing: this is the default"
        ]
    return "\n".join(lines) + "\n"


def _diff(arguments: argparse.Namespace) -> int:
    first = _trace([arguments.first])
    second = _trace([arguments.second or arguments.first, *arguments.conf_files], arguments)
    rows = [(name, _side(left), _side(right)) for name, left, right in differences(first, second)]
    if not rows:
        sys.stdout.write("no key differs\n")
        return 0
    name = arguments.second or "with the rest of the command line"
    write_table(("KEY", arguments.first, name), rows)
    return 0


def _side(setting: Setting | None) -> str:
    return _ABSENT if setting is None else f"{setting.value}  ({setting.origin})"


def _schema(arguments: argparse.Namespace) -> int:
    sys.stdout.write(json.dumps(json_schema(MODEL_SCHEMAS), indent=1) + "\n")
    return 0
