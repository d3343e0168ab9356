"""Train the WordPiece vocabulary of the embedded data set on its own texts.

The result is part of the package (``datasets/vocabularies/shapes``); run this again only when the grammar changes:

    python -m locap.datasets.prepare.shapes_vocabulary
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from ...utils.files import write_json, write_text
from ..records import Record
from ..shapes import CATEGORIES, Shapes

FOLDER = Path(__file__).resolve().parent.parent / "vocabularies" / "shapes"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Words outside the grammar (a user's prompt) are spelled letter by letter instead of becoming [UNK].
ALPHABET = (*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), ".", ",", "?")


def texts_of(record: Record) -> Iterator[str]:
    """Yield every text of a record."""
    for region in record.regions:
        yield from (*region.captions, *region.phrases, *region.expressions)
    yield from record.captions
    yield from (narrative.caption for narrative in record.narratives)
    yield from (turn.text for talk in record.conversations for turn in talk)


def train_vocabulary(texts: Iterable[str]) -> list[str]:
    """Train WordPiece until every word is one piece; return the pieces in id order.

    Training leaves fragments behind that merged into longer pieces ("##tripe"). They never come out of the tokenizer,
    so only special tokens, the alphabet and the pieces in use are kept.
    """
    texts = list(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=4000, special_tokens=list(SPECIAL_TOKENS), continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    used = {piece for encoding in tokenizer.encode_batch(texts) for piece in encoding.tokens}
    return [*SPECIAL_TOKENS, *ALPHABET, *sorted(used.difference(SPECIAL_TOKENS, ALPHABET))]


def write_vocabulary(pieces: Sequence[str], folder: Path) -> None:
    """Write ``vocab.txt`` and ``tokenizer_config.json`` as ``BertTokenizer.from_pretrained(folder)`` reads them."""
    write_text(folder / "vocab.txt", "\n".join(pieces) + "\n")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", config | dict(zip(names, SPECIAL_TOKENS, strict=True)), indent=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1500, help="training scenes whose texts are read")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the vocabulary goes")
    options = parser.parse_args(argv)
    texts = [text for record in Shapes(options.scenes, image_size=32) for text in texts_of(record)]
    texts += [category.name for category in CATEGORIES]
    write_vocabulary(train_vocabulary(texts), options.folder)


if __name__ == "__main__":
    main()
