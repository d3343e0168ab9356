"""The shipped vocabulary: small, whole words, no unknown word in any text of the embedded data set."""

from __future__ import annotations

import pytest
from transformers import BertTokenizer

from locap.datasets.prepare import shapes_vocabulary
from locap.datasets.shapes import CATEGORIES, Shapes


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer.from_pretrained(shapes_vocabulary.FOLDER)


def texts(split, count):
    return [text for record in Shapes(count, split=split, image_size=32) for text in shapes_vocabulary.texts_of(record)]


def test_special_tokens_come_first(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(shapes_vocabulary.SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, len(tokenizer) <= 400) == (0, 1, True)


def test_every_word_of_unseen_scenes_is_one_piece(tokenizer):
    unseen = [*texts("test", 200), *(category.name for category in CATEGORIES)]
    for text in unseen:
        pieces = tokenizer.tokenize(text)
        assert "[UNK]" not in pieces
        assert " ".join(pieces) == text.replace("?", " ?")


def test_words_outside_the_grammar_are_spelled_and_upper_case_is_folded(tokenizer):
    assert "[UNK]" not in tokenizer.tokenize("A zebra, perhaps.")
    assert tokenizer.tokenize("RED Star") == ["red", "star"]


def test_training_gives_the_shipped_vocabulary(tokenizer, tmp_path):
    pieces = shapes_vocabulary.train_vocabulary([*texts("train", 300), *(category.name for category in CATEGORIES)])
    shapes_vocabulary.write_vocabulary(pieces, tmp_path)
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
