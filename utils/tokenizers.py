"""Text to token ids and back: captions, class names and phrases, texts of language models.

All read a local folder or a hub name, in BERT layout (``vocab.txt``), CLIP layout (``vocab.json``, ``merges.txt``) or
that of any language model (``tokenizer.json``).
The text of a data set is plain text: "[SEP]" in a caption is five characters, never a control token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .errors import DataError, UsageError
from .hub import VOCABULARY_FILES, resolve
from .untrusted import read_json, shown

_CLEAN_UP = (  # what transformers 4.38 does to decoded word pieces; later versions leave it to the caller
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
    (" - ", "-"),  # the last two belong to GRiT's caption decoder
    (" 's", "'s"),
)


class CaptionTokenizer:
    """BERT word pieces for captions: ``[CLS] pieces [SEP]``, at most ``max_tokens`` ids in all.

    Args:
        tokenizer: a transformers ``BertTokenizer``.
        max_tokens: the longest sequence, start and end token included.
        keep: which pieces of a longer caption stay. "first" cuts the end off. "last" does what the published Pix2Cap
            weights were trained with: cut to the first ``max_tokens``, then keep the last ``max_tokens - 2`` of these,
            so that a long caption loses its first two pieces.
    """

    def __init__(self, tokenizer, max_tokens: int = 40, keep: Literal["first", "last"] = "first") -> None:
        if keep not in ("first", "last"):
            raise UsageError("Unknown way to shorten captions.", value=keep, allowed="first, last")
        if max_tokens < 3:
            raise UsageError("max_tokens leaves no room for a caption.", value=max_tokens, allowed="3 or more")
        self._tokenizer, self.max_tokens, self.keep = tokenizer, max_tokens, keep
        self.start_id: int = tokenizer.cls_token_id
        self.end_id: int = tokenizer.sep_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self.vocab_size: int = len(tokenizer)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, max_tokens: int = 40, keep: Literal["first", "last"] = "first"
    ) -> CaptionTokenizer:
        """Load a vocabulary by hub name or from a folder.

        Raises:
            UsageError: the folder is missing or holds no word pieces.
            MissingDependencyError: the hub name is not cached and the hub out of reach.
        """
        folder = resolve(name_or_path, what="caption tokenizer", files=VOCABULARY_FILES)
        if not _is_word_piece(folder):
            raise UsageError("The caption tokenizer needs a BERT vocabulary.", where=shown(folder), allowed="vocab.txt")
        return cls(_load_bert(folder), max_tokens, keep)

    def encode(self, text: str) -> list[int]:
        """Return ``[start] + pieces + [end]``, 2 to ``max_tokens`` ids."""
        ids = _pieces(self._tokenizer, text)
        room = self.max_tokens - 2
        ids = ids[:room] if self.keep == "first" else ids[: self.max_tokens][-room:]
        return [self.start_id, *ids, self.end_id]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text of token ids without special tokens, with the spaces of written English."""
        return _written(self._tokenizer, ids)


class LanguageTokenizer:
    """Texts and instructions of a language model, whatever its kind.

    A text is begin, pieces, end. Where a vocabulary has no token for the beginning, as T5's, padding is the beginning;
    where it has none for padding, as LLaMA's, the unknown token is, or else the beginning: never the end, which a model
    must learn to write. So BERT has begin, end and padding 101, 102, 0, T5 0, 1, 0 and LLaMA 1, 2, 0.

    Args:
        tokenizer: of transformers.
        max_tokens: the longest text, begin and end included; longer ones lose words, never their end.
    """

    def __init__(self, tokenizer, max_tokens: int) -> None:
        if max_tokens < 3:
            raise UsageError("max_tokens leaves no room for a text.", value=max_tokens, allowed="3 or more")
        self._tokenizer, self.max_tokens = tokenizer, max_tokens
        end = _first(tokenizer.sep_token_id, tokenizer.eos_token_id)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id != end else None
        begin = _first(tokenizer.cls_token_id, tokenizer.bos_token_id, pad)
        if begin is None or end is None:
            raise UsageError("The vocabulary has no tokens for the beginning and the end of a text.", value=str(begin))
        self.start_id: int = begin
        self.end_id: int = end
        self.pad_id: int = _first(pad, tokenizer.unk_token_id, begin)
        self.vocab_size: int = len(tokenizer)
        self._control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, max_tokens: int) -> LanguageTokenizer:
        """Load a vocabulary by hub name (``google/flan-t5-xl``) or from a folder; no code of the repository's is run.

        Raises:
            UsageError: the folder is missing or holds no vocabulary.
            MissingDependencyError: the hub name is not cached and the hub out of reach.
        """
        folder = resolve(
            name_or_path, what="language model's tokenizer", files=(*VOCABULARY_FILES, "*.model", "config.json")
        )
        return cls(_load_bert(folder) if _is_word_piece(folder) else _load_any(folder), max_tokens)

    def encode(self, text: str) -> list[int]:
        """Return ``[begin] + pieces + [end]``, 2 to ``max_tokens`` ids."""
        return [self.start_id, *self._pieces(text)[: self.max_tokens - 2], self.end_id]

    def encode_context(self, text: str, max_tokens: int) -> list[int]:
        """Return an instruction, ``pieces + [end]``, at most ``max_tokens`` ids; none for an empty one."""
        pieces = self._pieces(text)[: max_tokens - 1]
        return [*pieces, self.end_id] if pieces else []

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text of token ids up to the first end, without special tokens."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        return _written(self._tokenizer, ids).strip()

    def _pieces(self, text: str) -> list[int]:
        """Return the pieces of a text; control tokens that it spells out are dropped."""
        return [piece for piece in _pieces(self._tokenizer, text) if piece not in self._control]


class TextTokenizer:
    """Fixed-length input of the text encoder: start, pieces, end, padded with the end token.

    The sentence embedding is read at the *first* ``end_id`` of a row.

    Args:
        tokenizer: a transformers ``CLIPTokenizer`` or ``BertTokenizer``.
        context_length: length of every row.
    """

    def __init__(self, tokenizer, context_length: int = 77) -> None:
        if context_length < 3:
            raise UsageError("The context length leaves no room for text.", value=context_length, allowed="3 or more")
        self._tokenizer, self.context_length = tokenizer, context_length
        clip = tokenizer.cls_token_id is None or type(tokenizer).__name__.startswith("CLIP")
        self.start_id: int = tokenizer.bos_token_id if clip else tokenizer.cls_token_id
        self.end_id: int = tokenizer.eos_token_id if clip else tokenizer.sep_token_id
        self.vocab_size: int = len(tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, context_length: int = 77) -> TextTokenizer:
        """Load a CLIP or BERT vocabulary by hub name or from a folder; raises as `CaptionTokenizer.from_pretrained`."""
        folder = resolve(name_or_path, what="text tokenizer", files=VOCABULARY_FILES)
        return cls(_load_bert(folder) if _is_word_piece(folder) else _load_clip(folder), context_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return int64 (N, context_length); longer texts lose their end, the end token stays."""
        rows = torch.full((len(texts), self.context_length), self.end_id, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *_pieces(self._tokenizer, text)[: self.context_length - 2]]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def _pieces(tokenizer, text: str) -> list[int]:
    if not isinstance(text, str):
        raise DataError("A text is not a string.", value=text)
    text = text.encode("utf-8", "replace").decode("utf-8")  # an unpaired surrogate has no UTF-8 form
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def _written(tokenizer, ids: Sequence[int] | Tensor) -> str:
    ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for spaced, joined in _CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _is_word_piece(folder: Path) -> bool:
    if (folder / "vocab.txt").is_file():
        return True
    if (folder / "vocab.json").is_file() or not (folder / "tokenizer.json").is_file():
        return False
    return read_json(folder / "tokenizer.json").get("model", {}).get("type") == "WordPiece"


def _load_bert(folder: Path):
    from transformers import BertTokenizer

    return _load(BertTokenizer, folder, ("cls_token", "sep_token", "pad_token"))


def _load_clip(folder: Path):
    from transformers import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        allowed = "vocab.txt (BERT), vocab.json and merges.txt (CLIP), or tokenizer.json"
        raise UsageError("The folder holds no tokenizer.", where=shown(folder), allowed=allowed)
    return _load(CLIPTokenizer, folder, ("bos_token", "eos_token"))


def _load_any(folder: Path):
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked after this
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as err:  # the Rust reader raises bare Exception on a broken vocabulary
        reason = str(err).strip().splitlines()[0]
        allowed = "tokenizer.json and tokenizer_config.json"
        raise UsageError(f"The vocabulary cannot be read: {reason}", where=shown(folder), allowed=allowed) from None


def _load(kind, folder: Path, needed: Sequence[str]):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked after this
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # the Rust reader raises bare Exception on a broken vocabulary
        raise UsageError(f"The vocabulary cannot be read: {str(err).splitlines()[0]}", where=shown(folder)) from None
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    missing = [name for name in needed if getattr(tokenizer, name) not in vocabulary]
    if missing:
        raise UsageError("The vocabulary lacks special tokens.", where=shown(folder), value=", ".join(missing))
    return tokenizer
