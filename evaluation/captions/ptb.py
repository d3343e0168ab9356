"""Penn-Treebank tokens as every caption metric of the field counts them.

The tokeniser is Stanford CoreNLP 3.4.1 (the jar of pycocoevalcap, ``-preserveLines -lowerCase``); punctuation tokens
are dropped afterwards. All captions of a call go through one process, one caption per line.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...utils.errors import LocapError, MissingDependencyError
from . import java
from .words import split_words

DROPPED = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."))
TIMEOUT = 600.0  # seconds; 12,000 captions take about 2
MEMORY = 500_000  # captions remembered, about 100 MB
_LINE_ENDS = re.compile("[\n\r\v\f\u2028\u2029]")  # characters at which the program starts a new line
_LAST_LINE = "the end"  # the program looks ahead at the end of its input; with this line no caption stands there


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Captions as tokens between single spaces, in the order given, and the tokeniser's name."""

    captions: list[str]
    tokenizer: str
    warning: str | None = None  # why it is not CoreNLP


class PtbTokenizer:
    """The CoreNLP tokeniser; remembers what it has tokenised, so unchanged references cost nothing the next time."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """Tokenise captions; the result has exactly one string per caption, in the same order.

        Raises:
            MissingDependencyError: Java or the jar is missing, or the program failed.
        """
        lines = [_LINE_ENDS.sub(" ", caption).encode("utf-8", "replace").decode("utf-8") for caption in captions]
        unknown = [line for line in dict.fromkeys(lines) if line not in self._known]
        if unknown:
            if len(self._known) > MEMORY:
                self._known, unknown = {}, list(dict.fromkeys(lines))
            answers = (drop_punctuation(line.split(" ")) for line in raw_tokens(unknown))
            self._known.update(zip(unknown, answers, strict=True))
        return [self._known[line] for line in lines]


@functools.cache
def shared_tokenizer() -> PtbTokenizer:
    """Return this program's tokeniser with its memory."""
    return PtbTokenizer()


def tokenize(captions: Sequence[str]) -> Tokenized:
    """Tokenise with CoreNLP, or without Java with the built-in approximation, which the result then names."""
    try:
        return Tokenized(shared_tokenizer().tokenize(captions), "CoreNLP 3.4.1 PTB")
    except MissingDependencyError as err:
        words = [drop_punctuation(split_words(caption)) for caption in captions]
        warning = f"captions were split by the built-in approximation of the PTB tokeniser: {err.what}"
        return Tokenized(words, "built-in PTB approximation", warning)


def drop_punctuation(tokens: Iterable[str]) -> str:
    """Join tokens, without the punctuation that caption metrics ignore."""
    return " ".join(token for token in tokens if token not in DROPPED)


def raw_tokens(lines: Sequence[str]) -> list[str]:
    """Return what the program writes for each line, punctuation included; no line may hold a line end."""
    jar = java.find_jar("tokenizer", "stanford-corenlp-3.4.1.jar")
    command = [str(java.find_java()), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # too short to optimise more
    command += ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]
    command += ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command += ["-encoding", "UTF-8"]
    text = "\n".join([*lines, _LAST_LINE]) + "\n"
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True, timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError) as err:
        said = (getattr(err, "stderr", None) or b"").decode("utf-8", "replace").strip()[-2000:]
        raise MissingDependencyError(
            "The PTB tokeniser could not be run.", where=" ".join(command), value=str(err), fix=said or None
        ) from None
    answers = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if len(answers) != len(lines) + 1:
        raise LocapError(f"The PTB tokeniser returned {len(answers) - 1} lines for {len(lines)} captions.")
    return [answer.rstrip() for answer in answers[:-1]]
