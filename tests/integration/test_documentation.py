"""What README and docs name is there: files, links, commands and their options."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from locap import entry

from .conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "configs" / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(
    r"(?:\bE|entry\.py|\blocap) ((?:" + "|".join(["train", "evaluate", "predict", *entry.MODULES]) + r")\b[^`\n|]*)"
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def parser_of(verb: str) -> argparse.ArgumentParser:
    (commands,) = (a for a in entry.make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices[verb]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a command and of the commands below it, some of which come with a module of their own."""
    if getattr(parser, "module", None):
        importlib.import_module(parser.module, "locap.trainer").add_arguments(parser)
    own = set(parser._option_string_actions)
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return own.union(*(options_of(choice) for a in below for choice in a.choices.values()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configurations_that_are_named_are_there(page):
    for path in re.findall(r"\bconfigs/[\w/.-]+?\.yaml", page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_options_that_are_named(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in COMMAND.findall(text):
        verb, *words = command.split()
        known = options_of(parser_of(verb))
        before_overrides = " ".join(words).partition("--overrides")[0].split()
        for word in before_overrides:
            if word.startswith("--"):
                assert re.sub(r"[^\w-].*$", "", word) in known, command
