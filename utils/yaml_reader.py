"""YAML of unknown origin, read as dotted keys that know the line they stand on.

Nothing but mappings, lists and text can come out: tags (``!!python/...``) are refused, scalars stay text because only
the schema knows whether ``no`` is a word or a boolean, and the size is bounded before and after aliases are followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .config_files import missing_file
from .errors import UsageError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 20
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Leaf:
    """A dotted key with its value: text, None, a list, or a dictionary inside a list; ``{}`` for an empty section."""

    key: str
    value: Any
    where: str


def read_yaml(path: str | Path, problems: list[UsageError]) -> list[Leaf]:
    """Read a file with a mapping at its root; keys given twice are added to ``problems``.

    Raises:
        UsageError: the file is missing, not UTF-8, too large or no YAML; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path)
    if path.stat().st_size > MAX_BYTES:
        raise UsageError("The file is too large.", where=str(path), allowed=f"at most {MAX_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"The file is not UTF-8 text (byte {error.start}).", where=str(path)) from None
    return parse_mapping(text, str(path), problems)


def parse_mapping(text: str, source: str, problems: list[UsageError]) -> list[Leaf]:
    """Read a text with a mapping at its root; ``source`` names it in errors."""
    node = _compose(text, source)
    if node is None:
        raise UsageError("The configuration is empty.", where=source, allowed="KEY: value lines")
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
        raise UsageError(f"The configuration is a {kind}.", where=f"{source}:1", allowed="KEY: value lines")
    return list(_Reader(source, problems).leaves(node, "", 0))


def parse_value(text: str, source: str) -> Any:
    """Read one value, for example ``[a, b]`` or ``{a: 1}``."""
    node = _compose(text, source)
    return None if node is None else _Reader(source, []).plain(node, 0)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        _check_events(text, source)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, source) from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise UsageError(f"This is not YAML: {str(error).splitlines()[0]}.", where=source) from None


def _check_events(text: str, source: str) -> None:
    """Refuse what would be dangerous to compose, on the flat event stream."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        where = f"{source}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if depth > MAX_DEPTH:
            raise _too_deep(where)
        if count > MAX_NODES:
            raise _too_many(where)
        if documents > 1:
            raise UsageError("The file holds more than one YAML document.", where=where, allowed="one document")
        if getattr(event, "tag", None) is not None:
            raise UsageError("YAML tags are not allowed.", where=where, value=event.tag, allowed="plain values")


def _syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> UsageError:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}" if mark else source
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if line[: len(line) - len(line.lstrip())].count("\t"):
        return UsageError("The line is indented with a tab.", where=where, fix="indent with spaces")
    return UsageError(
        f"This is not YAML: {error.problem or error.context}.", where=where, value=line.strip()[:80] or None
    )


def _too_deep(where: str) -> UsageError:
    return UsageError("The YAML is nested too deeply.", where=where, allowed=f"at most {MAX_DEPTH} levels")


def _too_many(where: str) -> UsageError:
    return UsageError("The YAML is too large.", where=where, allowed=f"at most {MAX_NODES} values, aliases followed")


class _Reader:
    """Turns nodes into leaves; counts every visit, so that aliases can't multiply the work."""

    def __init__(self, source: str, problems: list[UsageError]) -> None:
        self._source = source
        self._problems = problems
        self._visits = 0
        self._lines: dict[str, int] = {}

    def leaves(self, node: yaml.MappingNode, prefix: str, depth: int) -> Iterator[Leaf]:
        for key_node, value in node.value:
            where = self._visit(key_node, depth)
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                raise UsageError("A key must be a word.", where=where)
            key = prefix + key_node.value
            if key in self._lines:
                self._problems.append(
                    UsageError(f"{key} is given twice, first on line {self._lines[key]}.", where=where)
                )
                continue
            self._lines[key] = key_node.start_mark.line + 1
            yield from self._value(key, value, depth, where)

    def _value(self, key: str, node: yaml.Node, depth: int, where: str) -> Iterator[Leaf]:
        self._visit(node, depth)
        if isinstance(node, yaml.MappingNode) and node.value:
            yield from self.leaves(node, key + ".", depth + 1)
        else:
            yield Leaf(key, self.plain(node, depth), where)

    def plain(self, node: yaml.Node, depth: int) -> Any:
        where = self._visit(node, depth)
        if isinstance(node, yaml.ScalarNode):
            return None if node.style is None and node.value in _NULLS else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, depth + 1) for item in node.value]
        result = {}
        for key_node, value in node.value:
            key = self.plain(key_node, depth + 1)
            if not isinstance(key, str) or key in result:
                raise UsageError("Keys must be words, each given once.", where=where, value=key)
            result[key] = self.plain(value, depth + 1)
        return result

    def _visit(self, node: yaml.Node, depth: int) -> str:
        where = f"{self._source}:{node.start_mark.line + 1}"
        self._visits += 1
        if depth > MAX_DEPTH:
            raise _too_deep(where)
        if self._visits > MAX_NODES:
            raise _too_many(where)
        return where
