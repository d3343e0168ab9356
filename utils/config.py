"""From YAML files and command-line tokens to one checked, frozen configuration.

Order, later wins: schema defaults, the ``_base_`` files of a file, the file itself, further files,
``--config_overrides``, ``--overrides``. Sections and entries merge key by key, lists and single values are replaced;
``{}`` empties a key with entries and ``null`` removes one of them. Everything wrong in one load is reported together.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .config_files import find_file
from .config_keys import MISSING, KeyIndex, KeySpec, index_keys, render_value
from .errors import UsageError, nearest, shortened
from .files import write_text
from .schema import Config, ModelConfig
from .yaml_reader import Leaf, parse_mapping, parse_value, read_yaml

COMMAND_LINE = "command line"
MAX_INCLUDES = 20
_SHOWN_PROBLEMS = 10
_LINE_WIDTH = 120
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TracedConfig:
    """A configuration and what it came from.

    Attributes:
        cfg: the read-only configuration.
        index: all its keys.
        leaves: what was set, in the order in which it counts, also what something later replaced.
        merged: what of it counts, by dotted name.
    """

    cfg: DictConfig
    index: KeyIndex
    leaves: Sequence[Leaf]
    merged: Mapping[str, Leaf]


def load_config(
    conf_files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    model_schemas: Mapping[str, type[ModelConfig]],
    config_overrides: Sequence[str] = (),
) -> DictConfig:
    """Merge, type and check a configuration.

    Args:
        conf_files: YAML files, later ones win; of locap's own the name is enough (`find_file`).
        overrides: ``KEY VALUE KEY VALUE ...``, keys dotted; lists as ``[a, b]``, entries as ``{a: 1}``.
        model_schemas: the MODEL section by MODEL.NAME (``locap.modeling.schemas.MODEL_SCHEMAS``).
        config_overrides: tokens that, joined by spaces, are one JSON object.

    Returns:
        The read-only configuration with attribute access: ``cfg.SOLVER.BASE_LR``.

    Raises:
        UsageError: naming every key, file and line that is wrong.
    """
    traced = trace_config(conf_files, overrides, model_schemas=model_schemas, config_overrides=config_overrides)
    _warn_dead(traced.merged, traced.index)
    return traced.cfg


def trace_config(
    conf_files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    model_schemas: Mapping[str, type[ModelConfig]],
    config_overrides: Sequence[str] = (),
) -> TracedConfig:
    """Load a configuration as `load_config` does, and keep where its values were set."""
    problems: list[UsageError] = []
    leaves = [leaf for path in conf_files for leaf in _read_file(find_file(path), problems, ())]
    if config_overrides:
        leaves += _attempt(problems, parse_mapping, " ".join(config_overrides), "--config_overrides", problems) or []
    unreadable = bool(problems)
    schema = _model_schema(leaves, overrides, model_schemas, problems)
    index = index_config(schema)
    leaves += _read_overrides(overrides, index, problems)
    merged = _merge(leaves)
    values = _typed_values(merged, index, problems)
    if not unreadable:
        missing = [name for name, spec in index.specs.items() if values.get(name, spec.default) == MISSING]
        problems += [_missing(index.specs[name]) for name in missing if name != "MODEL.NAME" or schema is not None]
    _raise(problems)
    cfg = _build(schema, values)
    _raise(_conflicts(cfg, schema, merged))
    return TracedConfig(cfg, index, leaves, merged)


def index_config(schema: type[ModelConfig] | None) -> KeyIndex:
    """Return the keys of the configurations of one model; of an unknown model, those that all have."""
    known = schema or ModelConfig
    dead = (*Config.DEAD, *known.DEAD, *(() if schema else ("MODEL.*",)))
    return KeyIndex(index_keys(Config, replace={"MODEL": known}), dead)


def save_config(cfg: DictConfig, path: str | Path, *, omit: Sequence[str] = ()) -> Path:
    """Write the configuration with a comment per key, atomically; the file can be given back as ``--conf_files``.

    Args:
        cfg: the configuration.
        path: of the file.
        omit: keys and sections that are left out; who reads the file gets their defaults.
    """
    title = "# A key whose comment begins with + is not in the original Pix2Cap configuration."
    lines = [title, *_render(cfg, "", frozenset(omit))]
    return write_text(path, "".join(line + "\n" for line in lines))


def _attempt(problems: list[UsageError], function: Any, *arguments: Any) -> Any:
    """Call, and note a user error instead of raising it; returns None then."""
    try:
        return function(*arguments)
    except UsageError as error:
        problems.append(error)
        return None


# Files


def _read_file(path: Path, problems: list[UsageError], including: tuple[Path, ...]) -> list[Leaf]:
    """Read a file after the files it includes."""
    resolved = path.resolve()
    if resolved in including or len(including) >= MAX_INCLUDES:
        chain = " -> ".join(str(p) for p in (*including, resolved))
        problems.append(
            UsageError(
                "_base_ includes go round in a circle, or are nested too deeply.", where=str(including[-1]), value=chain
            )
        )
        return []
    own = _attempt(problems, read_yaml, path, problems) or []
    leaves: list[Leaf] = []
    for leaf in own:
        if leaf.key == "_base_":
            for name in _base_names(leaf, problems):
                leaves += _read_file(path.parent / name, problems, (*including, resolved))
    return leaves + [leaf for leaf in own if leaf.key != "_base_"]


def _base_names(leaf: Leaf, problems: list[UsageError]) -> list[str]:
    names = leaf.value if isinstance(leaf.value, list) else [leaf.value]
    wrong = [name for name in names if not isinstance(name, str) or not name.endswith((".yaml", ".yml"))]
    for name in wrong:
        allowed = "a .yaml file or a list of them, relative to this file"
        problems.append(
            UsageError("_base_ must name configuration files.", where=leaf.where, value=name, allowed=allowed)
        )
    return [] if wrong else names


def _merge(leaves: Sequence[Leaf]) -> dict[str, Leaf]:
    """Let later leaves win; an emptied key loses its earlier entries."""
    merged: dict[str, Leaf] = {}
    for leaf in leaves:
        if isinstance(leaf.value, dict):
            for name in [name for name in merged if name.startswith(leaf.key + ".")]:
                del merged[name]
        merged.pop(leaf.key, None)  # keeps the order in which values count
        merged[leaf.key] = leaf
    return merged


# The model's schema


def _model_schema(
    leaves: Sequence[Leaf],
    overrides: Sequence[str],
    schemas: Mapping[str, type[ModelConfig]],
    problems: list[UsageError],
) -> type[ModelConfig] | None:
    """Return the schema that MODEL.NAME asks for; None, and a problem, when there is none."""
    given = [leaf for leaf in leaves if leaf.key == "MODEL.NAME"]
    given += [Leaf(k, v, COMMAND_LINE) for k, v in pairwise(overrides) if k == "MODEL.NAME"]
    allowed = ", ".join(schemas)
    if not given:
        if not problems:  # an unreadable file may well have named it
            fix = f"add to the file: MODEL: {{NAME: {next(iter(schemas))}}}"
            problems.append(UsageError("MODEL.NAME is not set.", allowed=allowed, fix=fix))
        return None
    name, where = given[-1].value, given[-1].where
    if isinstance(name, str) and name in schemas:
        return schemas[name]
    close = nearest(name, schemas) if isinstance(name, str) else None
    fix = f"did you mean {close}?" if close else None
    problems.append(UsageError("MODEL.NAME names no known model.", where=where, value=name, allowed=allowed, fix=fix))
    return None


# The command line


def _read_overrides(tokens: Sequence[str], index: KeyIndex, problems: list[UsageError]) -> list[Leaf]:
    """Pair keys with values; a token that cannot be a value shows where the pairs went wrong."""
    leaves: list[Leaf] = []
    position = 0
    while position < len(tokens):
        name = tokens[position]
        following = tokens[position + 1] if position + 1 < len(tokens) else None
        known = index.find(name) or index.is_dead(name)
        position += 1
        if not known and "=" in name:
            fix = f"write --overrides {' '.join(name.split('=', 1))}"
            problems.append(UsageError(f"{name}: keys and values are separate words.", where=COMMAND_LINE, fix=fix))
        elif following is None or following in index.specs:
            problems.append(_no_value(name, following, leaves) if known else index.unknown(name, COMMAND_LINE))
        else:
            leaves += _override(name, following, index, problems)
            position += 1
    return leaves


def _no_value(name: str, following: str | None, leaves: Sequence[Leaf]) -> UsageError:
    read = ", ".join(f"{leaf.key} = {leaf.value}" for leaf in leaves) or "nothing"
    what = f"{name} has no value" + (f": the next word, {following}, is a key itself." if following else ".")
    return UsageError(what, where=COMMAND_LINE, allowed="KEY VALUE KEY VALUE ...", fix=f"read so far: {read}")


def _override(name: str, text: str, index: KeyIndex, problems: list[UsageError]) -> list[Leaf]:
    """Return the leaf of one pair, its text read as YAML where lists, entries or quotes ask for it."""
    found = index.find(name)
    is_structured = found is not None and found[1] is None and found[0].type is not found[0].item_type
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    is_null = found is not None and found[1] is not None and text == "null"
    value: Any = None if is_null else text
    if is_quoted or (is_structured and text[:1] in ("[", "{")):
        before = len(problems)
        value = _attempt(problems, parse_value, text, f"{COMMAND_LINE}, {name}")
        if len(problems) > before:
            return []
    if isinstance(value, dict) and value:  # replaces the entries, unlike a file, which adds to them
        entries = [Leaf(f"{name}.{entry}", item, COMMAND_LINE) for entry, item in value.items()]
        return [Leaf(name, {}, COMMAND_LINE), *entries]
    return [Leaf(name, value, COMMAND_LINE)]


# Types and checks


def _typed_values(merged: Mapping[str, Leaf], index: KeyIndex, problems: list[UsageError]) -> dict[str, Any]:
    """Return the value of every key that is set."""
    values: dict[str, Any] = {}
    for name, leaf in merged.items():
        found = index.find(name)
        if found is None:
            is_empty_section = index.is_section(name) and leaf.value in (None, {})
            if not is_empty_section and not index.is_dead(name):
                problems.append(index.unknown(name, leaf.where))
            continue
        spec, entry = found
        if entry is not None:
            _set_entry(values.setdefault(spec.name, dict(spec.default)), spec, entry, leaf, problems)
        else:
            values[name] = _converted(spec, leaf.value, leaf, problems)
    return values


def _set_entry(entries: dict, spec: KeySpec, entry: str, leaf: Leaf, problems: list[UsageError]) -> None:
    if leaf.value is None:
        entries.pop(entry, None)
    else:
        entries |= _converted(spec, {entry: leaf.value}, leaf, problems)


def _converted(spec: KeySpec, value: Any, leaf: Leaf, problems: list[UsageError]) -> Any:
    """Return the typed value; the default, and a problem, where it is wrong."""
    try:
        if isinstance(value, str) and ("${" in value or value == MISSING):
            raise ValueError(f"{shortened(repr(value))} is a reference or a placeholder: write the value itself.")
        return spec.convert(value)
    except ValueError as error:
        close = spec.suggestion(leaf.value)
        fix = f"did you mean {leaf.key} {close}?" if close else None
        what = f"{leaf.key}: {error}"
        problems.append(UsageError(what, where=leaf.where, value=leaf.value, allowed=spec.allowed(), fix=fix))
        return {} if spec.is_dict else spec.default


def _missing(spec: KeySpec) -> UsageError:
    return UsageError(f"{spec.name} ({spec.help}) is not set.", allowed=spec.allowed())


def _build(schema: type[ModelConfig], values: Mapping[str, Any]) -> DictConfig:
    cfg = OmegaConf.structured(Config(MODEL=schema()))
    for name, value in values.items():
        OmegaConf.update(cfg, name, value, merge=False)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def _conflicts(cfg: DictConfig, schema: type[ModelConfig], merged: Mapping[str, Leaf]) -> list[UsageError]:
    pairs = [*Config.conflicts(cfg), *schema.conflicts(cfg)]
    return [
        UsageError(f"{name}: {reason}.", where=merged[name].where if name in merged else "default")
        for name, reason in pairs
    ]


def _warn_dead(merged: Mapping[str, Leaf], index: KeyIndex) -> None:
    """Name the set keys without effect in one line, those of a section together."""
    dead = [name for name in merged if index.find(name) is None and index.is_dead(name)]
    by_section: dict[str, list[str]] = {}
    for name in dead:
        parent, _, last = name.rpartition(".")
        by_section.setdefault(parent, []).append(last)
    shown = [_grouped(parent, names) for parent, names in by_section.items()]
    if dead:
        _log.warning("%d keys of the original configuration have no effect here: %s", len(dead), ", ".join(shown))


def _grouped(parent: str, names: Sequence[str]) -> str:
    joined = ", ".join(names)
    if not parent:
        return joined
    return f"{parent}.{joined}" if len(names) == 1 else f"{parent}.{{{joined}}}"


def _raise(problems: Sequence[UsageError]) -> None:
    """Raise a single problem as it is, several as one error with a line each."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"  {_one_line(problem)}" for problem in problems[:_SHOWN_PROBLEMS]]
        hidden = len(problems) - len(lines)
        rest = [f"  ... and {hidden} more"] if hidden else []
        raise UsageError("\n".join([f"{len(problems)} problems in the configuration:", *lines, *rest]))


def _one_line(problem: UsageError) -> str:
    parts = [f"{problem.where}: {problem.what}" if problem.where else problem.what]
    parts += [f"Allowed: {problem.allowed.rstrip('.')}."] if problem.allowed else []
    parts += [f"{problem.fix[:1].upper()}{problem.fix[1:]}"] if problem.fix else []
    return " ".join(parts)


# Writing


def _render(node: DictConfig, indent: str, omit: frozenset[str] = frozenset(), prefix: str = "") -> Iterator[str]:
    """Yield the lines of a section: single values first come, first written, each with its meaning."""
    fields = {field.name: field for field in dataclasses.fields(OmegaConf.get_type(node))}
    for name in node:
        value = node[name]
        if prefix + name in omit:
            continue
        if isinstance(value, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(value)):
            title = OmegaConf.get_type(value).__doc__.splitlines()[0].rstrip(".")
            yield from ([] if indent else [""])
            yield f"{indent}{name}:  # {title}"
            yield from _render(value, indent + "  ", omit, f"{prefix}{name}.")
        else:
            yield from _commented(f"{indent}{name}: {render_value(_plain(value, fields[name]))}", fields[name], indent)


def _plain(value: Any, field: dataclasses.Field) -> Any:
    """Return the value without OmegaConf; entries that were removed from the default are null, so that they stay so."""
    if not OmegaConf.is_config(value):
        return value
    plain = OmegaConf.to_container(value)
    if isinstance(plain, dict):
        plain = dict.fromkeys(field.default_factory()) | plain
    return plain


def _commented(line: str, field: dataclasses.Field, indent: str) -> list[str]:
    comment = "# " + field.metadata["help"]
    if len(line) + 2 + len(comment) <= _LINE_WIDTH:
        return [f"{line}  {comment}"]
    return [indent + comment, line]
