"""METEOR's English synonym dictionary: the synsets of WordNet 3.0 per word, from the jar that pip brings."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from ...utils.errors import MissingDependencyError
from . import java

# inflection -> base form, tried in this order until the result is a word
ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SynonymDictionary:
    """Which synsets a word belongs to.

    Attributes:
        lines: word, spaces as ``_`` -> the numbers of its synsets between spaces.
        bases: irregular inflection -> its base forms.
    """

    lines: Mapping[str, str]
    bases: Mapping[str, tuple[str, ...]]

    def synsets(self, word: str) -> frozenset[int]:
        """Return the synsets of a word and of its base forms, as SPICE looks them up; empty for an unknown word."""
        word = word.strip().lower().replace(" ", "_")
        forms = self.bases[word] if word in self.bases else (self._regular_base(word),)
        return frozenset(int(number) for form in (word, *forms) for number in self.lines.get(form, "").split())

    def _regular_base(self, word: str) -> str:
        if word.endswith("ss") or len(word) <= 2:
            return word
        bases = (word.removesuffix(ending) + base for ending, base in ENDINGS if word.endswith(ending))
        return next((base for base in bases if base in self.lines), "")


@functools.cache
def shared_synonyms() -> SynonymDictionary:
    """Return the dictionary, read once.

    Raises:
        MissingDependencyError: pycocoevalcap is missing or its jar is damaged.
    """
    jar = java.find_jar("meteor", "meteor-1.5.jar")
    try:
        with zipfile.ZipFile(jar) as archive:
            words, forms = (archive.read(f"synonym/english.{name}").decode() for name in ("synsets", "exceptions"))
    except (OSError, KeyError, zipfile.BadZipFile) as err:
        raise MissingDependencyError(
            "METEOR's synonym dictionary cannot be read.",
            where=str(jar),
            value=str(err),
            fix="pip install --force-reinstall pycocoevalcap",
        ) from None
    bases: dict[str, tuple[str, ...]] = {}
    lines = forms.split("\n")
    for base, inflections in zip(lines[::2], lines[1::2], strict=False):
        for inflection in inflections.split():
            bases[inflection] = (*bases.get(inflection, ()), base)
    lines = words.split("\n")
    return SynonymDictionary(dict(zip(lines[::2], lines[1::2], strict=False)), bases)
