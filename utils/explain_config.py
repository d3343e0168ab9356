"""Where the values of a configuration come from, what a key means, and what differs between two configurations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf

from .config import TracedConfig, index_config
from .config_keys import KeyIndex, KeySpec, render_value
from .schema import ModelConfig
from .yaml_reader import Leaf

DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """A key, its value as YAML, and the places that set it; none for a default."""

    name: str
    value: str
    places: tuple[str, ...]
    is_default: bool

    @property
    def origin(self) -> str:
        """Where the value was set, in words; the entries of one key may come from several places."""
        return ", ".join(self.places) or DEFAULT


@dataclass(frozen=True)
class Explanation:
    """A key of the configurations of the systems; ``systems`` is empty where it is the same for all."""

    spec: KeySpec
    systems: tuple[str, ...] = ()

    @property
    def type_name(self) -> str:
        """The type in words."""
        return type_name(self.spec.type)


def type_name(kind: Any) -> str:
    """Return ``list[str]`` for the type ``list[str]``, ``int`` for ``int``."""
    if get_origin(kind) is None:
        return kind.__name__
    return f"{get_origin(kind).__name__}[{', '.join(type_name(argument) for argument in get_args(kind))}]"


def settings(traced: TracedConfig) -> list[Setting]:
    """Return every key of a configuration, in the order of the schema."""
    return [_setting(traced, spec) for spec in traced.index.specs.values()]


def _setting(traced: TracedConfig, spec: KeySpec) -> Setting:
    value = OmegaConf.select(traced.cfg, spec.name)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    places = [readable(leaf.where) for leaf in _leaves_of(spec, traced.merged.values())]
    return Setting(spec.name, render_value(value), tuple(dict.fromkeys(places)), value == spec.default)


def _leaves_of(spec: KeySpec, leaves: Sequence[Leaf]) -> list[Leaf]:
    return [leaf for leaf in leaves if leaf.key == spec.name or (spec.is_dict and leaf.key.startswith(f"{spec.name}."))]


def history(traced: TracedConfig, name: str) -> list[tuple[str, str, str]]:
    """Return (place, key, value) of everything that sets a key or an entry of it; the last one counts."""
    spec, _ = traced.index.find(name) or (None, None)
    leaves = _leaves_of(spec, traced.leaves) if spec else []
    return [(readable(leaf.where), leaf.key, _as_given(leaf.value)) for leaf in leaves]


def _as_given(value: Any) -> str:
    return value if isinstance(value, str) and value else render_value(value)


def readable(where: str) -> str:
    """Return a place ``folder/../file:line`` without its detours."""
    path, colon, line = where.rpartition(":")
    if not line.isdigit() or ".." not in Path(path).parts:
        return where
    resolved, here = Path(path).resolve(), Path.cwd()
    return f"{resolved.relative_to(here) if resolved.is_relative_to(here) else resolved}{colon}{line}"


def explain(name: str, schemas: Mapping[str, type[ModelConfig]]) -> list[Explanation]:
    """Return what is known about a key, an entry of a key, or all keys of a section, in the systems of ``schemas``.

    Raises:
        UsageError: there is no such key; names the nearest one.
    """
    indices = {system: index_config(schema) for system, schema in schemas.items()}
    everything = KeyIndex({key: spec for index in indices.values() for key, spec in index.specs.items()})
    by_spec: dict[tuple[str, str], list[str]] = {}
    specs: dict[tuple[str, str], KeySpec] = {}
    for system, index in indices.items():
        for spec in _wanted(name, index):
            specs[spec.name, repr(spec)] = spec
            by_spec.setdefault((spec.name, repr(spec)), []).append(system)
    if not specs:
        raise everything.unknown(name, "command line")
    return [
        Explanation(spec, () if len(by_spec[key]) == len(indices) else tuple(by_spec[key]))
        for key, spec in specs.items()
    ]


def _wanted(name: str, index: KeyIndex) -> list[KeySpec]:
    if found := index.find(name):
        return [found[0]]
    return [spec for key, spec in index.specs.items() if key.startswith(name + ".")]


def differences(first: TracedConfig, second: TracedConfig) -> list[tuple[str, Setting | None, Setting | None]]:
    """Return the keys whose values differ; None for a configuration, of another system, that lacks the key."""
    left, right = ({setting.name: setting for setting in settings(traced)} for traced in (first, second))
    names = dict.fromkeys([*left, *right])
    pairs = [(name, left.get(name), right.get(name)) for name in names]
    return [(name, a, b) for name, a, b in pairs if a is None or b is None or a.value != b.value]


# JSON schema, for editors


def json_schema(schemas: Mapping[str, type[ModelConfig]]) -> dict[str, Any]:
    """Return the JSON schema of a configuration file; MODEL takes the keys of any system in ``schemas``."""
    root = _section()
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    root["title"] = "locap configuration"
    names = {"type": "string", "pattern": r"\.ya?ml$"}
    root["properties"]["_base_"] = {"anyOf": [names, {"type": "array", "items": names}]}
    for spec in index_config(None).specs.values():
        if not spec.name.startswith("MODEL."):
            _place(root, spec.name, _value_schema(spec))
    root["properties"]["MODEL"] = {"anyOf": [_model(name, schema) for name, schema in schemas.items()]}
    for pattern in _dead_of(index_config(None)):
        if not pattern.startswith("MODEL"):
            _place(root, pattern, {"deprecated": True, "description": "of the original; no effect here"})
    return root


def _model(system: str, schema: type[ModelConfig]) -> dict[str, Any]:
    index, root = index_config(schema), _section()
    for name, spec in index.specs.items():
        if name.startswith("MODEL."):
            _place(root, name, _value_schema(spec))
    for pattern in _dead_of(index):
        if pattern.startswith("MODEL."):
            _place(root, pattern, {"deprecated": True, "description": "of the original; no effect here"})
    model = root["properties"]["MODEL"]
    model["properties"]["NAME"] = {"const": system, "description": index.specs["MODEL.NAME"].help}
    return {"title": system, **model}


def _dead_of(index: KeyIndex) -> Iterator[str]:
    for pattern in index.dead:
        name = pattern.removesuffix(".*")
        if not index.is_section(name):
            yield name


def _section() -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": {}, "additionalProperties": False}


def _place(root: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        root = root["properties"].setdefault(parent, _section())
    root["properties"].setdefault(last, schema)


def _value_schema(spec: KeySpec) -> dict[str, Any]:
    item = _item_schema(spec)
    described = {"description": spec.help}
    if spec.default != "???":
        described["default"] = spec.default
    if get_origin(spec.type) is list:
        return {**described, "type": "array", "items": item}
    if spec.is_dict:
        return {**described, "type": ["object", "null"], "additionalProperties": {"anyOf": [item, {"type": "null"}]}}
    return {**described, **item}


def _item_schema(spec: KeySpec) -> dict[str, Any]:
    if spec.choices:
        exact = [choice for choice in spec.choices if not (isinstance(choice, str) and "*" in choice)]
        open_ends = [re.escape(choice).replace(r"\?\*", ".+") for choice in spec.choices if choice not in exact]
        patterns = [{"type": "string", "pattern": f"^{text}$"} for text in open_ends]
        return {"anyOf": [*([{"enum": exact}] if exact else []), *patterns]}
    if spec.item_type is bool:
        return {"anyOf": [{"type": "boolean"}, {"enum": ["yes", "no", 0, 1]}]}
    kind = {int: "integer", float: "number", str: "string"}[spec.item_type]
    bounds = {"minimum": spec.minimum, "maximum": spec.maximum}
    return {"type": kind, **{word: limit for word, limit in bounds.items() if limit is not None}}
