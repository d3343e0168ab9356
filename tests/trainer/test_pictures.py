"""Pictures of an evaluation."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from locap.datasets.expressions import PerExpression
from locap.datasets.records import Record, Region, encode_mask
from locap.datasets.shapes import Shapes
from locap.trainer.pictures import MOST_REGIONS, NOT_FOUND, comparable, draw_predictions, numbered_alike

SENTENCE = " ".join(["thirty words of a caption"] * 6)


@pytest.fixture(scope="module")
def scenes() -> Shapes:
    return Shapes(5, seed=0, split="val", image_size=48)


def predicted(truth: Record) -> Record:
    """Return the true regions but the first, the last one first."""
    ids = truth.read_id_map()
    regions = [
        replace(region, id=90 + region.id, mask=encode_mask(ids == region.id), score=0.5, captions=(SENTENCE,))
        for region in reversed(truth.regions[1:])
    ]
    return Record(truth.image_id, truth.height, truth.width, regions=regions)


def test_a_picture_for_each_image_and_one_of_all(tmp_path, scenes):
    predictions = [predicted(scenes[index]) for index in range(5)]
    drawn = draw_predictions(predictions, scenes, tmp_path / "pictures", 4)
    assert list(drawn) == ["all", "0", "1", "2", "3"]
    assert sorted(tmp_path.glob("pictures/*")) == sorted(drawn.values())
    with Image.open(drawn["0"]) as picture, Image.open(drawn["all"]) as sheet:
        assert picture.width == 1280
        assert sheet.height > 2 * 240, "two rows of three pairs"
        pixels = np.asarray(picture).astype(int)
        assert (pixels[picture.height * 2 // 3 :] < 128).any(), "the captions stand below"
    assert draw_predictions(predictions, scenes, tmp_path, 0) == {}


def test_numbers_mean_the_same_on_both_sides(scenes):
    truth = scenes[0]
    stray = Region(500, mask=encode_mask(np.eye(48, dtype=bool)), score=0.1)
    prediction = predicted(truth)
    prediction.regions.append(stray)
    regions = numbered_alike(truth, prediction).regions
    assert regions[0].captions == (NOT_FOUND,)
    assert [region.id - 90 for region in regions[1:-1]] == [region.id for region in truth.regions[1:]]
    assert regions[-1] is stray


def test_answers_stand_where_their_prompts_do(scenes):
    truth = PerExpression(scenes)[0]
    answers = [Region(region.id, box_xyxy=(1, 2, 9, 9)) for region in reversed(truth.regions[1:])]
    asked, answered = comparable(truth, Record(0, 48, 48, regions=answers), "refer")
    assert [region.captions for region in asked.regions] == [region.expressions for region in truth.regions]
    assert answered.regions[0].captions == (NOT_FOUND,)
    assert [r.captions for r in answered.regions[1:]] == [r.expressions for r in truth.regions[1:]]
    assert all(region.mask is None and region.box_xyxy for region in asked.regions), "boxes are set beside boxes"


@pytest.mark.parametrize("task", ["", "detect", "region", "refer", "caption", "trace"])
def test_every_task_is_drawn(tmp_path, scenes, task):
    reader = PerExpression(scenes) if task == "refer" else scenes
    answers = {
        "caption": {"captions": (SENTENCE,)},
        "trace": {"narratives": scenes[1].narratives},
        "region": {"regions": [Region(1, captions=(SENTENCE,))]},
    }
    boxes = {"regions": [Region(k, box_xyxy=(k, 1, k + 9, 9), score=k / 99, captions=("x",)) for k in range(60)]}
    prediction = Record(reader[0].image_id, 48, 48, **answers.get(task, boxes))
    assert list(draw_predictions([prediction], reader, tmp_path, 8, task=task)) == ["all", "0"]
    if task == "detect":
        shown = comparable(reader[0], prediction, task)[1].regions
        assert sum(region.box_xyxy is not None for region in shown) == MOST_REGIONS


def test_nothing_predicted_is_a_picture_too(tmp_path, scenes):
    assert len(draw_predictions([Record(0, 48, 48)], scenes, tmp_path, 8)) == 2


def test_what_cannot_be_drawn_is_left_out(tmp_path, scenes, caplog):
    class Reader:
        categories = scenes.categories

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Record:
            return replace(scenes[index], image=str(tmp_path / "gone.png")) if index == 0 else scenes[index]

    predictions = [predicted(scenes[index]) for index in range(2)]
    with caplog.at_level(logging.WARNING):
        assert list(draw_predictions(predictions, Reader(), tmp_path / "drawn", 8)) == ["all", "1"]
        (tmp_path / "file").touch()
        assert draw_predictions(predictions, scenes, tmp_path / "file", 8) == {}
    assert "is not drawn" in caplog.text
