"""Captions and class names to tokens and back."""

from __future__ import annotations

import pytest
import torch

from locap.utils.errors import UsageError
from locap.utils.tokenizers import CaptionTokenizer, LanguageTokenizer, TextTokenizer

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


@pytest.mark.fault("R10")
def test_control_tokens_in_a_text_are_text(vocabulary):
    assert CaptionTokenizer.from_pretrained(vocabulary).encode("red [SEP] \x00") == [2, 6, 13, 15, 14, 3]
    assert TextTokenizer.from_pretrained(vocabulary, 7)(["[SEP]"]).tolist() == [[2, 13, 15, 14, 3, 3, 3]]


@pytest.mark.fault("R10")
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


@pytest.fixture
def t5_vocabulary(tmp_path):
    from transformers import T5Tokenizer

    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz./<>"]
    words = [("▁" + word, -1.0) for word in ("a", "red", "circle")]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    T5Tokenizer(vocab=special + words + letters, extra_ids=2).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def llama_vocabulary(tmp_path):
    from transformers import LlamaTokenizer

    words = ["<unk>", "<s>", "</s>", "▁", "a", "r", "e", "d", "▁a", "▁r", "▁re", "▁red"]
    merges = [("▁", "a"), ("▁", "r"), ("▁r", "e"), ("▁re", "d")]
    LlamaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges).save_pretrained(tmp_path)
    return tmp_path


def test_texts_of_a_bert_decoder(vocabulary):
    tokenizer = LanguageTokenizer.from_pretrained(vocabulary, 6)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size) == (2, 3, 0, 16)
    assert tokenizer.encode("A red circles. A red") == [2, 5, 6, 7, 8, 3]  # longer ones keep their end
    assert tokenizer.encode_context("a red circle", 3) == [5, 6, 3]
    assert tokenizer.encode_context("", 3) == []
    assert tokenizer.decode([2, 5, 6, 7, 8, 11, 3, 6, 0]) == "a red circles."


def test_t5_begins_with_its_padding(t5_vocabulary):
    tokenizer = LanguageTokenizer.from_pretrained(t5_vocabulary, 40)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (0, 1, 0)
    ids = tokenizer.encode("a red circle.")
    assert (ids[:4], ids[-1]) == ([0, 4, 5, 6], 1)
    assert tokenizer.decode(ids) == "a red circle."
    assert tokenizer.encode_context("a red circle", 40) == [4, 5, 6, 1]
    assert tokenizer.encode("a </s> red")[1:-1].count(1) == 0  # an end in a text is no end


def test_llama_has_no_padding_of_its_own(llama_vocabulary):
    tokenizer = LanguageTokenizer.from_pretrained(llama_vocabulary, 40)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.encode("a red") == [1, 8, 11, 2]
    assert tokenizer.decode([1, 8, 11, 2, 11]) == "a red"


def test_padding_is_never_the_end(llama_vocabulary):
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(llama_vocabulary)
    tokenizer.pad_token = tokenizer.eos_token  # as many checkpoints have it
    assert LanguageTokenizer(tokenizer, 40).pad_id == 0


def test_no_language_tokenizer_there(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        LanguageTokenizer.from_pretrained(tmp_path, 40)
    with pytest.raises(UsageError, match="no room"):
        LanguageTokenizer(None, 2)
