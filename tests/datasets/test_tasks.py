"""What each task asks of a record."""

from __future__ import annotations

import numpy as np
import pytest

from locap.datasets.records import Narrative, Record, Region, TimedWord, Turn, encode_mask
from locap.datasets.shapes import Shapes
from locap.datasets.tasks import (
    EVAL_INSTRUCTIONS,
    INSTRUCTIONS,
    LONG_CAPTION,
    SHORT_CAPTION,
    TASKS,
    asked,
    mirror_words,
    offers,
    prompts_of,
)
from locap.utils.errors import UsageError


def record_of(**options):
    mask = np.zeros((8, 10), bool)
    mask[2:5, 1:4] = True
    regions = [
        Region(3, expressions=("left cup", "the cup"), captions=("a cup",), box_xyxy=(0, 0, 4, 4)),
        Region(4, expressions=("masked",), mask=encode_mask(mask)),
        Region(5, captions=("nowhere",)),
        Region(6, captions=("flat",), box_xyxy=(2, 2, 2, 5)),
        Region(7, captions=("many",), expressions=("many",), box_xyxy=(0, 0, 4, 4), is_crowd=True),
        Region(8, captions=(" ",), box_xyxy=(0, 0, 4, 4)),
    ]
    return Record(1, 8, 10, regions=regions, **options)


def test_referring_gives_a_row_per_expression():
    prompts = prompts_of(record_of(), "refer")
    assert [prompt.context for prompt in prompts] == ["where is left cup", "where is the cup", "where is masked"]
    assert [prompt.text for prompt in prompts] == ["left cup", "the cup", "masked"]
    assert prompts[2].box_xyxy == (1, 2, 4, 5)  # of the mask
    assert [prompt.learns for prompt in prompts] == [(False, True, False)] * 2 + [(False, True, True)]
    assert not any(prompt.located for prompt in prompts)


def test_regions_and_objects_are_what_has_a_box_and_a_text():
    for task in ("region", "detect"):
        prompts = prompts_of(record_of(), task)
        assert [(prompt.text, prompt.region.id) for prompt in prompts] == [("a cup", 3), ("masked", 4)]
        assert all(prompt.located and prompt.context == "an object of " for prompt in prompts)
        assert all(prompt.learns == (True, False, False) for prompt in prompts)


def test_every_turn_stands_alone():
    talk = tuple(Turn(role, text) for role, text in [("user", "q1"), ("assistant", "a1"), ("user", "q2")])
    more = (Turn("user", "q3"), Turn("assistant", "a3"), Turn("user", "q4"), Turn("assistant", " "))
    prompts = prompts_of(record_of(conversations=(talk, more)), "instruct")
    assert [(prompt.context, prompt.text) for prompt in prompts] == [
        ("Question: q1 Answer: ", "a1"),
        ("Question: q3 Answer: ", "a3"),
    ]


def test_a_narrative_needs_more_than_one_point():
    words = (TimedWord("a", 0, 1),)
    lost = Narrative("a", words, (((1.0, 1.0, 0.0),),))
    kept = Narrative("a", words, (((1.0, 1.0, 0.0),), ((1.0, 2.0, 1.0),)))
    assert not offers(record_of(narratives=(lost,)), "trace")
    prompts = prompts_of(record_of(narratives=(lost, kept)), "trace")
    assert [prompt.narrative for prompt in prompts] == [kept]
    assert prompts[0].learns == (True, True, False)


def test_captions_and_instructions_are_drawn():
    record = record_of(captions=("one", "two"))
    first = prompts_of(record, "caption", instructions=EVAL_INSTRUCTIONS)
    assert [(prompt.context, prompt.text) for prompt in first] == [("A photo of ", "one"), ("A photo of ", "two")]
    drawn = {prompts_of(record, "caption", np.random.default_rng(seed))[0].context for seed in range(200)}
    assert drawn == set(SHORT_CAPTION)
    assert (len(SHORT_CAPTION), len(LONG_CAPTION)) == (13, 11)


def test_an_expression_with_braces_is_copied_as_it_is():
    record = Record(1, 8, 8, regions=[Region(1, expressions=("the {} {0}",), box_xyxy=(0, 0, 2, 2))])
    assert prompts_of(record, "refer")[0].context == "where is the {} {0}"


def test_unknown_tasks_are_named():
    with pytest.raises(UsageError, match="did you mean refer"):
        prompts_of(record_of(), "reffer")
    assert tuple(INSTRUCTIONS) == TASKS


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the left man", "the right man"),
        ("Left of the right dog, LEFT", "Right of the left dog, RIGHT"),
        ("the leftmost cup on the right-hand side", "the rightmost cup on the left-hand side"),
        ("a bright cleft, alright, lefty", "a bright cleft, alright, lefty"),
        ("a dog right behind the left cup", "a dog right behind the right cup"),
        ("the one on the right in front of it", "the one on the left in front of it"),
    ],
)
def test_mirrored_words(text, mirrored):
    assert mirror_words(text) == mirrored
    assert mirror_words(mirrored) == text


def test_a_mirrored_prompt_agrees_with_itself():
    prompt = prompts_of(record_of(), "refer")[0].mirrored()
    assert (prompt.context, prompt.text) == ("where is right cup", "right cup")
    assert prompt.box_xyxy == (0, 0, 4, 4)
    spoken = Narrative("to the left", (TimedWord("left", 0, 1),), (((1.0, 1.0, 0.0), (1.0, 1.0, 1.0)),))
    told = prompts_of(record_of(narratives=(spoken,)), "trace")[0].mirrored()
    assert (told.text, told.narrative.caption, told.narrative.words[0].text) == ("to the right",) * 2 + ("right",)


def test_shapes_offer_every_task():
    record = Shapes(3, seed=1, image_size=64)[0]
    assert all(offers(record, task) for task in TASKS)
    for prompt in prompts_of(record, "refer", np.random.default_rng(0)):
        assert prompt.text in prompt.region.expressions
        assert prompt.learns == (False, True, True)


def test_only_what_is_asked_for_is_scored():
    told = Narrative("a cup", (TimedWord("cup", 0, 1),), (((1, 1, 0.2), (2, 2, 0.4)),))
    record = record_of(captions=("all of it",), narratives=(Narrative("no path"), told))
    assert asked(record, "trace").narratives == (told,)
    region = asked(record, "region")
    assert [r.id for r in region.regions] == [3, 4, 7], "with the crowd, which protocols leave out and count"
    assert region.captions == ()
    for task in ("caption", "refer", "detect"):
        assert asked(record, task) is record
