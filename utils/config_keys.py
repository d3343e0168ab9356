"""How a configuration key is declared, described and checked.

A section is a dataclass, a key is a field made by `key`: its help text becomes the comment in a written
configuration, its choices and bounds become the check and the error message.

    @dataclass
    class Solver:
        BASE_LR: float = key(1e-4, "learning rate before the multipliers", minimum=0)
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from .errors import UsageError, nearest, shortened

MISSING = "???"  # OmegaConf's sign for "must be given"
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,4})?")
_PLAIN = re.compile(r"(\./)?[A-Za-z_/][\w./-]*(:[\w./-]+)*", re.ASCII)
_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
_TYPE_NAMES = {bool: "true, false, yes, no, 1 or 0", int: "a whole number", float: "a finite number", str: "a text"}


def key(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a key.

    Args:
        default: its value when nobody sets it; `MISSING` makes it mandatory.
        help: meaning and unit, one line.
        choices: the allowed values (of each item, for lists); ``?*`` in a text stands for any name.
        minimum: smallest allowed value (of each item or entry).
        maximum: largest allowed value.
    """
    metadata = {"help": help, "choices": tuple(choices), "minimum": minimum, "maximum": maximum}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(schema: type) -> Any:
    """Declare a section."""
    return dataclasses.field(default_factory=schema)


@dataclass(frozen=True)
class KeySpec:
    """What is known about one dotted key."""

    name: str
    type: Any
    default: Any
    help: str = ""
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def is_dict(self) -> bool:
        """Whether the key holds entries of free names."""
        return get_origin(self.type) is dict

    @property
    def item_type(self) -> type:
        """The type of the value, or of the items or entries it holds."""
        return get_args(self.type)[-1] if get_origin(self.type) else self.type

    def allowed(self) -> str:
        """Say in words which values are accepted, and the default."""
        text = self._allowed_items()
        if get_origin(self.type) is list:
            text = f"a list [a, b, ...], each item {text}"
        if self.is_dict:
            text = f"entries {{name: value}}, each value {text}"
        return text if self.default == MISSING else f"{text} (default: {render_value(self.default)})"

    def _allowed_items(self) -> str:
        if self.choices:
            return ", ".join(_choice_text(choice) for choice in self.choices)
        bounds = [
            f"{word} {limit:g}"
            for word, limit in (("at least", self.minimum), ("at most", self.maximum))
            if limit is not None
        ]
        return " ".join([_TYPE_NAMES[self.item_type], *([" and ".join(bounds)] if bounds else [])])

    def convert(self, value: Any) -> Any:
        """Turn the text of a value (lists and dictionaries of texts included) into the key's type and check it.

        Raises:
            ValueError: the value is not allowed; the message completes ``KEY: ``.
        """
        origin = get_origin(self.type)
        if origin is list:
            if not isinstance(value, list):
                raise ValueError(f"{_shown(value)} is not a list.")
            return [self._scalar(item) for item in value]
        if origin is dict:
            if not isinstance(value, Mapping):
                raise ValueError(f"{_shown(value)} is not a set of entries.")
            return {name: self._scalar(item) for name, item in value.items()}
        return self._scalar(value)

    def _scalar(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("it has no value." if value is None else f"{_shown(value)} is not a single value.")
        result = _parse(value, self.item_type)
        if self.choices and not any(_fits(result, choice) for choice in self.choices):
            raise ValueError(f"{_shown(value)} is not one of the allowed values.")
        if self.minimum is not None and result < self.minimum:
            raise ValueError(f"{value} is too small.")
        if self.maximum is not None and result > self.maximum:
            raise ValueError(f"{value} is too large.")
        return result

    def suggestion(self, value: Any) -> str | None:
        """Return the allowed word nearest to a wrong value."""
        choices = list(BOOLEANS) if self.item_type is bool else self.choices
        words = [word for word in choices if isinstance(word, str) and "*" not in word]
        by_folded = {word.casefold(): word for word in words}
        return by_folded.get(nearest(value.casefold(), by_folded) or "") if isinstance(value, str) else None


def _parse(text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.casefold() in BOOLEANS:
            return BOOLEANS[text.casefold()]
        raise ValueError(f"{_shown(text)} is neither true nor false.")
    if kind is int:
        if _INT.fullmatch(text):
            return int(text)
        raise ValueError(f"{_shown(text)} is not a whole number.")
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    raise ValueError(f"{_shown(text)} is not a finite number.")


def _fits(value: Any, choice: Any) -> bool:
    return fnmatch.fnmatchcase(value, choice) if isinstance(choice, str) else value == choice


def _choice_text(choice: Any) -> str:
    is_pattern = isinstance(choice, str) and "*" in choice
    return choice.replace("?*", "<name>") if is_pattern else render_value(choice)


def _shown(value: Any) -> str:
    return shortened(repr(value if isinstance(value, str) else render_value(value)), 200)


def render_value(value: Any) -> str:
    """Write a value in one line of YAML that reads back as itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(render_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{render_value(k)}: {render_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float):  # YAML 1.1 readers take 1e-05 for text
        return repr(value) if "." in repr(value) else repr(value).replace("e", ".0e")
    if isinstance(value, str) and (value.casefold() in _WORDS or not _PLAIN.fullmatch(value)):
        return '"' + "".join(_escaped(letter) for letter in value) + '"'
    return str(value)


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"


def index_keys(schema: type, *, replace: Mapping[str, type] | None = None, prefix: str = "") -> dict[str, KeySpec]:
    """List every key of a schema by its dotted name, in order.

    Args:
        schema: the dataclass of the section.
        replace: schemas to use for the named top-level sections instead of the declared ones.
        prefix: dotted name of the section, with its final dot.
    """
    index: dict[str, KeySpec] = {}
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = (replace or {}).get(field.name, hints[field.name])
        name = prefix + field.name
        if dataclasses.is_dataclass(hint):
            index.update(index_keys(hint, prefix=name + "."))
        else:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            index[name] = KeySpec(name, hint, default, **field.metadata)
    return index


FAMILIAR = {  # last words of names in other frameworks: what is meant
    "batch_size": "COCO.TRAIN.BATCH_SIZE_TOTAL",
    "checkpoint_period": "CHECKPOINT_EVERY_STEPS",
    "epochs": "SOLVER.MAX_NUM_EPOCHS",
    "eval_period": "EVAL_EVERY_STEPS",
    "ims_per_batch": "COCO.TRAIN.BATCH_SIZE_TOTAL",
    "learning_rate": "SOLVER.BASE_LR",
    "lr": "SOLVER.BASE_LR",
    "max_iter": "SOLVER.MAX_STEPS",
    "num_epochs": "SOLVER.MAX_NUM_EPOCHS",
    "output_dir": "SAVE_DIR",
    "weights": "RESUME_FROM",
}


class KeyIndex:
    """All keys of one configuration: finds a key, knows the dead ones, and explains an unknown one."""

    def __init__(self, specs: Mapping[str, KeySpec], dead: Iterable[str] = ()) -> None:
        self.specs = specs
        self.dead = tuple(dead)
        self._sections = {name[: match.start()] for name in specs for match in re.finditer(r"\.", name)}

    def find(self, name: str) -> tuple[KeySpec, str | None] | None:
        """Return the key and, for a key with free entries, the name of the entry; None when there is no such key."""
        if name in self.specs:
            return self.specs[name], None
        for match in re.finditer(r"\.", name):
            spec = self.specs.get(name[: match.start()])
            if spec is not None and spec.is_dict and name[match.end() :]:
                return spec, name[match.end() :]
        return None

    def is_section(self, name: str) -> bool:
        """Whether the name is a section."""
        return name in self._sections

    def is_dead(self, name: str) -> bool:
        """Whether the name is a key of the original configuration without effect here; ``A.*`` covers a section."""
        return any(fnmatch.fnmatchcase(n, pattern) for n in (name, name + ".") for pattern in self.dead)

    def unknown(self, name: str, where: str) -> UsageError:
        """Explain a name that is no key."""
        if self.is_section(name):
            what = f"{name} is a section, not a key."
            return UsageError(what, where=where, allowed=", ".join(self._children(name)))
        parents = [name[: match.start()] for match in re.finditer(r"\.", name)]
        if owner := next((parent for parent in parents if parent in self.specs), None):
            return UsageError(
                f"{owner} is not a section: there is no {name}.", where=where, allowed=self.specs[owner].allowed()
            )
        what = f'There is no configuration key "{name}".'
        close = self._nearest(name)
        if close is None:
            parent = name
            while parent and not self.is_section(parent):
                parent = parent.rpartition(".")[0]
            inside = f"in {parent}: " if parent else ""
            return UsageError(what, where=where, allowed=inside + ", ".join(self._children(parent)))
        return UsageError(what, where=where, fix=f"did you mean {close}? It takes {self.specs[close].allowed()}")

    def _children(self, parent: str) -> Iterator[str]:
        prefix = parent + "." if parent else ""
        yield from dict.fromkeys(n[len(prefix) :].partition(".")[0] for n in self.specs if n.startswith(prefix))

    def _nearest(self, name: str) -> str | None:
        """Return the key most likely meant: of a familiar name, a neighbour in its section, of that last word, any."""
        folded = {known.casefold(): known for known in self.specs}
        parent, _, last = name.casefold().rpartition(".")
        if FAMILIAR.get(last) in self.specs:
            return FAMILIAR[last]
        in_section = [known for known in folded if parent and known.rpartition(".")[0] == parent]
        neighbour = nearest(last, [known.rpartition(".")[2] for known in in_section])
        if neighbour:
            return folded[f"{parent}.{neighbour}"]
        same_word = [known for known in folded if known.rpartition(".")[2] == last]
        close = nearest(name.casefold(), same_word) or (same_word[0] if same_word else None)
        return folded.get(close or ("" if in_section else nearest(name.casefold(), folded) or ""))
