"""A tokeniser close to Stanford's rules, for machines without Java: equal on ordinary captions, not on odd strings."""

from __future__ import annotations

import re
import unicodedata

_UNKNOWN = re.compile("[\u200b\U00010000-\U0010ffff]")  # no token to Stanford's rules
_REPLACED = str.maketrans(
    dict.fromkeys("“”«»", '"')
    | dict.fromkeys("\u2018\u2019", "'")
    | dict.fromkeys("\u2013\u2014", " -- ")
    | {"…": " ... ", "½": "1/2"}
)
_CLITICS = "s|m|d|re|ve|ll"
_TOKEN = re.compile(
    rf"""
      </?[a-z][^<>]*>                                     # a tag
    | (?:https?://|www\.)\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+  # an address
    | \w+?(?=n't\b) | n't\b                               # do + n't
    | '(?:{_CLITICS})\b                                   # 's
    | (?:[^\W\d]\.){{2,}}                                 # u.s., p.m.
    | (?:dr|mr|mrs|ms|st|jr|sr|vs|etc|no|inc|prof|ave|mt)\.(?=\s+\S|$)
    | \d+(?:[.,:/]\d+)+ | \d+(?:st|nd|rd|th)\b            # 3.14, 10:30, 2nd
    | \w+(?:-(?!-)\w+|'(?!(?:{_CLITICS})\b|t\b)\w+|&\w+)* # words, with hyphens
    | --+ | \.\.\.+ | \S                                  # punctuation
    """,
    re.VERBOSE,
)
_SPLIT = {
    "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me", "cannot": "can not",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''",
}  # fmt: skip


def split_words(caption: str) -> list[str]:
    """Return the lower-case tokens of a caption, punctuation included."""
    tokens: list[str] = []
    text = _UNKNOWN.sub(" ", unicodedata.normalize("NFC", caption))
    for token in _TOKEN.findall(text.translate(_REPLACED).lower()):
        tokens += _SPLIT.get(token, token).split()
    return tokens
