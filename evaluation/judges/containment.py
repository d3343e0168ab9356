"""A scorer without a judge: are the words of the reference in the answer? Never to be compared with a judge's scores.

``a <AND> b`` wants all elements, ``a <OR> b`` any; AND binds tighter. Both sides are compared as sequences of words and
numbers: Unicode NFKC, without case, punctuation and thousands separators; ``-1``, ``0.75`` and ``3/4`` are one word.
"""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"(?<![\w.])-?\d+(?:[./:]\d+)*|\w+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def containment_score(reference: str, answer: str) -> float:
    """Return 1.0 if any alternative has all its elements in the answer, else 0.0.

    An element without words, such as ``+``, must occur literally; an empty one is ignored.
    """
    alternatives = ([e for e in part.split("<AND>") if e.strip()] for part in reference.split("<OR>"))
    words = _words(answer)
    return float(any(part and all(_holds(words, answer, element) for element in part) for part in alternatives))


def _holds(words: list[str], answer: str, element: str) -> bool:
    wanted = _words(element)
    if not wanted:
        return element.strip() in answer
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
    return _WORD.findall(_THOUSANDS.sub("", text))
