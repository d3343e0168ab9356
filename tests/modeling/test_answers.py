"""What a prompted system says, in records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from locap.datasets.batches import PromptTargets
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.records import Record, decode_mask
from locap.modeling.heads.answers import Answers, answer_records
from locap.modeling.text_decoders.generation import GeneratedText
from locap.utils.tokenizers import LanguageTokenizer


@pytest.fixture(scope="module")
def words() -> LanguageTokenizer:
    return LanguageTokenizer.from_pretrained(FOLDER, 40)


def told(tokenizer: LanguageTokenizer, *texts: str, **options) -> Answers:
    """Answer with texts whose piece k is at (10 k, k) and (10 k + 2, k + 4), the begin at 0."""
    rows = [tokenizer.encode(text) for text in texts]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.end_id] * (length - len(row)) for row in rows])
    first = torch.arange(length)[:, None] * torch.tensor([10.0, 1.0])
    points = torch.stack((first, first + torch.tensor([2.0, 4.0])), 1).expand(len(rows), -1, -1, -1)
    found = GeneratedText(tokens, torch.arange(len(rows)) - 9.0)
    return Answers.of_texts(found, [len(rows)], tokenizer, points, **options)


def test_a_word_is_in_the_middle_of_its_pieces(words):
    answers = told(words, "a zebra is red.", "red")
    assert answers.texts == ["a zebra is red.", "red"]
    placed = [[(word.text, word.points) for word in row] for row in answers.words]
    assert len(words.encode("zebra")) == 2 + 5  # pieces 2 to 6 of the text
    middles = [("a", ((11, 3),)), ("zebra", ((41, 6),)), ("is", ((71, 9),)), ("red.", ((86, 10.5),))]
    assert placed == [middles, [("red", ((11, 3),))]]


def test_given_words_are_pieces_at_two_corners(words):
    (row,) = told(words, "zebra", by_piece=True).words
    assert [word.points for word in row] == [((10.0 * k, k), (10.0 * k + 2, k + 4)) for k in range(1, 6)]


def test_words_of_the_published_vocabulary(shared: Path):
    tokenizer = LanguageTokenizer.from_pretrained(shared / "data" / "tokenizers" / "bert-base-uncased", 40)
    text = "the dog's owner doesn't mind, i think"
    (row,) = told(tokenizer, text).words
    assert [word.text for word in row] == text.split()
    wanted = [(1, 1), (2, 4), (5, 5), (6, 8), (9, 10), (11, 11), (12, 12)]  # dog ' s, doesn ' t, mind ,
    assert [word.points[0][0] for word in row] == [5 * (first + last) + 1 for first, last in wanted]


def test_nothing_was_said(words):
    answers = told(words, "")
    assert (answers.texts, answers.words) == ([""], [[]])
    record, target = Record(1, 20, 40), replace(PromptTargets.blank(40), task="trace", size=(20, 40))
    answer_records(record, target, answers, canvas=(40, 40))
    assert [(n.caption, n.words, n.traces) for n in record.narratives] == [("", (), ())]


def test_answers_of_each_image():
    answers = Answers([2, 0, 1], ["a", "b", "c"], [1.0, 2.0, 3.0], boxes=torch.arange(12.0).view(3, 4))
    first, second, third = answers.split()
    assert (first.texts, second.texts, third.texts) == (["a", "b"], [], ["c"])
    assert (first.counts, second.counts, third.text_scores) == ([2], [0], [3.0])
    assert third.boxes.tolist() == [[8, 9, 10, 11]]
    assert first.masks is first.words is None


def test_places_go_back_to_the_original_image(words):
    """A picture of 40 x 80 that fills 16 x 32 of a canvas of 32 x 32."""
    target = replace(PromptTargets.blank(32), task="trace", size=(16, 32))
    record = Record(1, 40, 80)
    answer_records(record, target, told(words, "red star"), canvas=(32, 32))
    assert record.narratives[0].traces == (((27.5, 7.5, 0.5),), ((52.5, 10.0, 1.5),))
    record, target.task, target.region_ids = Record(1, 40, 80), "refer", [7, 9]
    logits = torch.full((2, 8, 8), -1.0)
    logits[0, :4, :4] = 1.0  # the upper rows are the picture
    boxes = torch.tensor([[1.0, 2, 16, 8], [-4, 3, 40, 30]])
    answers = Answers([2], boxes=boxes, masks=logits, scores=torch.tensor([0.5, 0.25]))
    answer_records(record, target, answers, canvas=(32, 32))
    one, other = record.regions
    assert (one.id, one.box_xyxy, one.score) == (7, (2.5, 5, 40, 20), 0.5)
    assert (other.id, other.box_xyxy, other.score) == (9, (0, 7.5, 80, 40), 0.25)  # cut at the picture
    mask = decode_mask(one.mask)
    assert mask.shape == (40, 80)
    assert mask[:, :40].all()
    assert not mask[:, 40:].any()
    assert (one.area, other.area, other.captions) == (1600, 0, ())
