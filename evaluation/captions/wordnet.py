"""WordNet 3.0's synonyms from its own files, as NLTK finds them; the files are an optional download."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...utils.errors import MissingDependencyError

SYSTEM_FOLDER = Path("/usr/share/wordnet")  # Debian's package wordnet-base
_NOUN = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
)  # fmt: skip
_VERB = (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""))
_ADJECTIVE = (("er", ""), ("est", ""), ("er", "e"), ("est", "e"))
_ENDINGS = {"noun": _NOUN, "verb": _VERB, "adj": _ADJECTIVE, "adv": ()}
Read = Callable[[str], str]  # name of a file of WordNet -> its text


@dataclass(frozen=True, slots=True)
class PartOfSpeech:
    """The words of one part of speech.

    Attributes:
        synsets: lower-case word -> numbers of its synsets.
        members: number of a synset -> its words as written, those of several words left out.
        bases: irregular inflection -> its base forms.
        endings: (inflected, base) endings of regular inflections.
    """

    synsets: Mapping[str, Sequence[str]]
    members: Mapping[str, Sequence[str]]
    bases: Mapping[str, Sequence[str]]
    endings: Sequence[tuple[str, str]]

    def base_forms(self, word: str) -> list[str]:
        """Return the known words that ``word`` may be a form of, itself included."""
        if word in self.bases:
            return [form for form in (word, *self.bases[word]) if form in self.synsets]
        tried, found = [word], []
        if word in self.synsets:
            found.append(word)
        while tried:
            tried = [w.removesuffix(old) + new for w in tried for old, new in self.endings if w.endswith(old)]
            found += [form for form in tried if form in self.synsets]
            if found:
                break
        return found


class WordNet:
    """Synonyms of English words.

    Args:
        read: returns the text of one of WordNet's files, e.g. ``data.noun``.
    """

    def __init__(self, read: Read) -> None:
        self._parts = [_read_part(read, name, endings) for name, endings in _ENDINGS.items()]
        self._known: dict[str, frozenset[str]] = {}

    def synonyms(self, word: str) -> frozenset[str]:
        """Return every single word that shares a synset with a form of ``word``."""
        if word not in self._known:
            lower = word.lower()
            self._known[word] = frozenset(
                member
                for part in self._parts
                for form in part.base_forms(lower)
                for synset in part.synsets[form]
                for member in part.members[synset]
            )
        return self._known[word]


@functools.cache
def shared_wordnet() -> WordNet:
    """Return WordNet, read once from NLTK's data or from the system.

    Raises:
        MissingDependencyError: its files are nowhere, or are not version 3.0.
    """
    where, read = find_wordnet()
    try:
        if "WordNet 3.0 Copyright" not in read("data.noun")[:4000]:
            raise MissingDependencyError("The installed WordNet is not version 3.0.", where=where)
        return WordNet(read)
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile) as err:
        raise MissingDependencyError("WordNet's files are damaged.", where=where, value=str(err)) from None


def find_wordnet() -> tuple[str, Read]:
    """Return where WordNet lies, and how to read one of its files.

    Raises:
        MissingDependencyError: it is nowhere.
    """
    import nltk

    corpora = [Path(folder) / "corpora" for folder in nltk.data.path]
    folders = [*(folder / "wordnet" for folder in corpora), SYSTEM_FOLDER]
    if folder := next((folder for folder in folders if (folder / "data.noun").is_file()), None):
        return str(folder), lambda name: (folder / name).read_text("utf-8")
    archives = [folder / "wordnet.zip" for folder in corpora]
    if archive := next((path for path in archives if path.is_file()), None):
        return str(archive), lambda name: _read_member(archive, f"wordnet/{name}")
    raise MissingDependencyError(
        "WordNet 3.0 is not on this machine.",
        where=", ".join(map(str, folders)),
        fix="python -m nltk.downloader wordnet",
    )


def _read_member(path: Path, name: str) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode("utf-8")


def _read_part(read: Read, name: str, endings: Sequence[tuple[str, str]]) -> PartOfSpeech:
    bases = {form: words for form, *words in (line.split() for line in read(f"{name}.exc").splitlines())}
    members = {fields[0]: _words_of(fields) for fields in _entries(read(f"data.{name}"))}
    synsets = {fields[0]: fields[-int(fields[2]) :] for fields in _entries(read(f"index.{name}"))}
    return PartOfSpeech(synsets, members, bases, endings)


def _entries(text: str) -> Iterator[list[str]]:
    """Yield the fields of each line; the licence at the top is indented."""
    return (line.split() for line in text.splitlines() if line and not line.startswith(" "))


def _words_of(fields: Sequence[str]) -> list[str]:
    """Return a synset's words: their number in hexadecimal is field 3, they stand at 4, 6, …; ``(p)`` marks places."""
    words = (word.partition("(")[0] for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2])
    return [word for word in words if "_" not in word]
