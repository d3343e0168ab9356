"""Captions and class names to tokens and back."""

from __future__ import annotations

import pytest
import torch

from locap.utils.errors import UsageError
from locap.utils.tokenizers import CaptionTokenizer, TextTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s", "'", "s", ".", "-", "[", "]", "sep"]


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def test_captions_round_trip(vocabulary):
    tokenizer = CaptionTokenizer.from_pretrained(vocabulary)
    ids = tokenizer.encode("A Red  circles.")
    assert ids == [2, 5, 6, 7, 8, 11, 3]
    assert tokenizer.decode(ids) == "a red circles."
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size) == (2, 3, 0, 16)


def test_decoding_cleans_up_spaces_and_skips_special_tokens(vocabulary):
    tokenizer = CaptionTokenizer.from_pretrained(str(vocabulary))
    assert tokenizer.decode([2, 5, 7, 9, 10, 6, 12, 7, 11, 3, 3, 0]) == "a circle's red-circle."
    assert tokenizer.decode(torch.tensor([7, 10])) == "circle s"
    assert tokenizer.decode([]) == ""


def test_control_tokens_in_a_text_are_text(vocabulary):
    assert CaptionTokenizer.from_pretrained(vocabulary).encode("red [SEP] \x00") == [2, 6, 13, 15, 14, 3]
    assert TextTokenizer.from_pretrained(vocabulary, 7)(["[SEP]"]).tolist() == [[2, 13, 15, 14, 3, 3, 3]]


def test_odd_texts_do_not_fail(vocabulary):
    tokenizer = CaptionTokenizer.from_pretrained(vocabulary)
    for text in ("", " \n", "\ud800 red", "🙂", "|||", "שלום", "a " * 10_000):
        ids = tokenizer.encode(text)
        assert (ids[0], ids[-1]) == (2, 3)
        assert len(ids) <= 40


def test_long_captions_lose_their_end_or_as_published_their_first_two_words(vocabulary):
    words = "a " * 1 + "red " * 1 + "circle " * 36 + ". " * 2 + "- " * 9
    first = CaptionTokenizer.from_pretrained(vocabulary).encode(words)
    last = CaptionTokenizer.from_pretrained(vocabulary, keep="last").encode(words)
    assert len(first) == len(last) == 40
    assert first == [2, 5, 6, *[7] * 36, 3]
    assert last == [2, *[7] * 36, 11, 11, 3]
    for count in (37, 38):  # short enough: both the same
        text = "red " * count
        assert CaptionTokenizer.from_pretrained(vocabulary, keep="last").encode(text) == [2, *[6] * count, 3]
    assert CaptionTokenizer.from_pretrained(vocabulary, keep="last").encode("a " + "red " * 38) == [2, *[6] * 38, 3]


def test_shorter_limit(vocabulary):
    assert CaptionTokenizer.from_pretrained(vocabulary, max_tokens=4).encode("a red circle") == [2, 5, 6, 3]


def test_text_rows_have_one_length(vocabulary):
    tokenizer = TextTokenizer.from_pretrained(vocabulary, 5)
    rows = tokenizer(["a red", "a red circle a red"])
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[2, 5, 6, 3, 3], [2, 5, 6, 7, 3]]
    assert tokenizer.end_id == 3
    assert tokenizer([]).shape == (0, 5)


@pytest.mark.parametrize("option", [{"keep": "middle"}, {"max_tokens": 2}])
def test_bad_options_are_refused(vocabulary, option):
    with pytest.raises(UsageError):
        CaptionTokenizer.from_pretrained(vocabulary, **option)


def test_a_folder_without_vocabulary_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"vocab\.txt"):
        CaptionTokenizer.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="holds no tokenizer"):
        TextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("just\nwords\n")
    with pytest.raises(UsageError, match="The vocabulary"):
        CaptionTokenizer.from_pretrained(tmp_path).encode("words")


def test_bert_base_uncased(shared):
    tokenizer = CaptionTokenizer.from_pretrained(shared / "data" / "tokenizers" / "bert-base-uncased")
    ids = tokenizer.encode("The man's half-eaten cake can't fall.")
    assert ids == [101, 1996, 2158, 1005, 1055, 2431, 1011, 8828, 9850, 2064, 1005, 1056, 2991, 1012, 102]
    assert tokenizer.decode(ids) == "the man's half-eaten cake can't fall."
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size) == (101, 102, 0, 30_522)


def test_clip(shared):
    tokenizer = TextTokenizer.from_pretrained(shared / "data" / "tokenizers" / "clip-vit-base-patch32", 77)
    rows = tokenizer(["a photo of a cat.", "word " * 200])
    assert rows.shape == (2, 77)
    assert rows[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert (rows[0, 7:] == 49407).all()
    assert rows.argmax(1).tolist() == [7, 76]
    assert tokenizer.end_id == 49407
