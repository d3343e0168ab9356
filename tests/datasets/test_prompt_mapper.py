"""Records to canvases with prompts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.loader import EvalLoader, TrainLoader
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.records import Narrative, Record, Region, TimedWord, encode_mask
from locap.datasets.shapes import Shapes
from locap.datasets.tasks import TASKS, Prompt
from locap.datasets.transforms.canvas import fit_canvas
from locap.datasets.transforms.prompt_mapper import PromptEvalMapper, PromptMapper, PromptWriter
from locap.utils.errors import UsageError
from locap.utils.tokenizers import LanguageTokenizer


@pytest.fixture(scope="module")
def words() -> LanguageTokenizer:
    return LanguageTokenizer.from_pretrained(FOLDER, max_tokens=64)


@pytest.fixture(scope="module")
def scenes() -> Shapes:
    return Shapes(6, seed=2, image_size=(48, 64))


def mapper_of(words, tasks, **options):
    tasks = tasks if isinstance(tasks, dict) else {tasks: 1.0}
    return PromptMapper(tasks, words, **{"image_size": 64, "seed": 3} | options)


def grid(count=6):
    """A picture of count x count cells, a region each, named by its place."""
    regions, pixels = [], np.zeros((60, 60, 3), np.uint8)
    side = 60 // count
    for k in range(count * count):
        y, x = k // count * side, k % count * side
        pixels[y : y + side, x : x + side] = (k + 1, 100 - k, 7)
        mask = np.zeros((60, 60), bool)
        mask[y : y + side, x : x + side] = True
        name = f"cell {k}"
        box = (x, y, x + side, y + side)
        regions.append(Region(k + 1, mask=encode_mask(mask), box_xyxy=box, expressions=(name,), captions=(name,)))
    return Record(5, 60, 60, pixels, regions)


@pytest.mark.fault("R9")
@settings(deadline=None, max_examples=40)
@given(epoch=st.integers(0, 10**6), task=st.sampled_from(["refer", "region", "detect"]), flip=st.booleans())
def test_a_prompt_keeps_its_box_context_text_and_mask_through_any_crop(words, epoch, task, flip):
    record = grid()
    mapper = mapper_of(
        words, task, image_size=40, min_scale=0.5, max_scale=3.0, flip=float(flip), max_prompts=9, box_rate=0.5
    )
    sample = mapper(record, epoch, 0)
    targets = sample.targets
    height, width = targets.size
    boxes = targets.boxes_xyxy
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    masks = targets.unpacked_masks(40) if targets.masks is not None else None
    assert (masks is not None) == (task == "refer")
    for k, box in enumerate(boxes):
        text, region_id = targets.texts[k], targets.region_ids[k]
        assert text == f"cell {region_id - 1}"
        assert targets.contexts[k] == (f"where is {text}" if task == "refer" else "an object of ")
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        if (box[2:] - box[:2]).min() > 3:  # else only blurred pixels are seen
            assert abs(int(sample.image[0, y, x]) - region_id) <= 1
            assert masks is None or masks[k, y, x]
        points, labels = targets.prompt_points[k], targets.prompt_labels[k].tolist()
        if task == "refer":
            assert (labels, points.flatten().tolist()) == ([2, 3], [0, 0, width, height])
        elif labels == [1, -1]:
            assert (points[0] >= box[:2]).all()
            assert (points[0] <= box[2:]).all()
        else:
            assert labels == [2, 3]
            torch.testing.assert_close(points.flatten(), box)
    assert len(boxes) <= 9 or task == "detect"
    assert int(targets.learns.any(1).sum()) <= 9
    assert targets.detects == (task == "detect")


def test_context_tokens_are_the_instruction_with_its_end(words, scenes):
    targets = mapper_of(words, "refer", image_size=32, max_scale=2.0)(scenes[0], 0, 0).targets
    assert len(targets) > 1
    for row, expression, text in zip(targets.context, targets.texts, targets.text, strict=True):
        assert row[row != words.pad_id].tolist() == words.encode(f"where is {expression}")[1:]
        assert text[text != words.pad_id].tolist() == words.encode(expression)


def test_a_long_context_keeps_its_end(words, scenes):
    targets = mapper_of(words, "refer", max_context=4)(scenes[0], 0, 0).targets
    assert targets.context.shape[1] == 4
    assert (targets.context[:, -1] == words.end_id).all()


def test_what_each_task_teaches(words, scenes):
    expected = {
        "trace": [True, True, False],
        "caption": [True, False, False],
        "region": [True, False, False],
        "refer": [False, True, True],
        "detect": [True, False, False],
        "instruct": [True, False, False],
    }
    for task in TASKS:
        targets = mapper_of(words, task)(scenes[0], 0, 0).targets
        assert targets.task == task
        assert targets.learns.tolist() == [expected[task]] * len(targets)
        assert targets.boxes_xyxy.any() == (task in ("region", "refer", "detect"))
        assert targets.word_boxes.any() == (task == "trace")
        assert targets.detects == (task == "detect")
        assert len(targets) > 0
    without = mapper_of(words, "refer", with_masks=False)(scenes[0], 0, 0).targets
    assert without.masks is None
    assert not without.learns[:, 2].any()


@pytest.mark.parametrize("alignment", ["aligned", "proportional"])
def test_words_are_placed_and_follow_the_flip(words, scenes, alignment):
    plain = mapper_of(words, "trace", alignment=alignment, published=True)(scenes[0], 0, 0).targets
    flipped = mapper_of(words, "trace", alignment=alignment, published=True, flip=1.0)(scenes[0], 0, 0).targets
    count = int((plain.text[0] != words.pad_id).sum())
    assert plain.word_boxes.shape == (*plain.text.shape, 4)
    assert plain.word_boxes[0, 1 : count - 1].any(-1).all()
    assert not plain.word_boxes[0, 0].any()
    assert not plain.word_boxes[0, count - 1 :].any()
    x0, y0, x1, y1 = plain.word_boxes[0, 1 : count - 1].unbind(-1)
    mirrored = torch.stack([64 - x1, y0, 64 - x0, y1], -1)
    torch.testing.assert_close(flipped.word_boxes[0, 1 : count - 1], mirrored)


def test_words_outside_the_crop_are_nowhere(words):
    points = (((50.0, 5.0, 0.0), (50.0, 5.0, 1.0)), ((5.0, 5.0, 1.001), (5.0, 5.0, 2.0)))
    narrative = Narrative("red blue", (TimedWord("red", 0, 1), TimedWord("blue", 1.001, 2)), points)
    record = Record(1, 60, 60, np.zeros((60, 60, 3), np.uint8), narratives=(narrative,))
    mapper = mapper_of(words, "trace", image_size=30, min_scale=2.0, max_scale=2.0)
    for epoch in range(20):
        red, blue = mapper(record, epoch, 0).targets.word_boxes[0, 1:3]
        assert not (red.any() and blue.any())  # they are 45 pixels apart
        assert red.max() <= 30
        assert blue.max() <= 30


def test_left_and_right_change_places_with_the_image_unless_as_published(words):
    pixels = np.zeros((20, 40, 3), np.uint8)
    record = Record(1, 20, 40, pixels, [Region(1, box_xyxy=(0, 0, 10, 20), expressions=("the left star",))])
    flipped = mapper_of(words, "refer", image_size=40, flip=1.0)(record, 0, 0).targets
    assert flipped.boxes_xyxy.tolist() == [[30, 0, 40, 20]]
    assert (flipped.texts, flipped.contexts) == (["the right star"], ["where is the right star"])
    published = mapper_of(words, "refer", image_size=40, flip=1.0, published=True)(record, 0, 0).targets
    assert published.texts == ["the left star"]


def test_detection_keeps_every_box_while_some_teach_words(words):
    targets = mapper_of(words, "detect", max_prompts=5)(grid(), 0, 0).targets
    assert len(targets) == 36
    assert targets.learns[:, 0].sum() == 5
    assert not targets.learns[:, 1:].any()
    referring = mapper_of(words, "refer", max_prompts=5)
    drawn = [referring(grid(), epoch, 0).targets.texts for epoch in range(3)]
    assert [len(texts) for texts in drawn] == [5, 5, 5]
    assert drawn[0] != drawn[1]


def test_points_lie_on_the_region(words, scenes):
    mapper = mapper_of(words, "region", box_rate=0.0)
    for index in range(3):
        targets, record = mapper(scenes[index], 0, index).targets, scenes[index]
        assert (targets.prompt_labels == torch.tensor([1, -1])).all()
        for (x, y), region_id in zip(targets.prompt_points[:, 0].tolist(), targets.region_ids, strict=True):
            assert record.id_map[int(y), int(x)] == region_id


def test_tasks_are_drawn_by_weight_among_those_a_record_offers(words, scenes):
    mapper = mapper_of(words, {"refer": 3.0, "caption": 1.0})
    drawn = [mapper(scenes[0], epoch, 0).targets.task for epoch in range(120)]
    assert 70 < drawn.count("refer") < 110
    silent = Record(1, 8, 8, np.zeros((8, 8, 3), np.uint8), captions=("a star",))
    assert {mapper(silent, epoch, 0).targets.task for epoch in range(10)} == {"caption"}
    silent.captions = ()
    nothing = mapper(silent, 0, 0).targets
    assert (nothing.task, len(nothing)) == ("", 0)
    assert nothing.word_boxes.shape == (0, 2, 4)
    assert nothing.boxes_xyxy.shape == (0, 4)


def test_bad_options(words):
    with pytest.raises(UsageError, match="did you mean refer"):
        mapper_of(words, "refered")
    with pytest.raises(UsageError, match="more than 0"):
        mapper_of(words, {})
    with pytest.raises(UsageError, match="more than 0"):
        mapper_of(words, {"refer": 0.0})
    with pytest.raises(UsageError, match="0 < min <= max"):
        mapper_of(words, "refer", min_scale=2.0)
    with pytest.raises(UsageError, match="aligned, proportional"):
        mapper_of(words, "trace", alignment="none")


def test_evaluation_keeps_the_way_back(words):
    record = Shapes(1, seed=4, image_size=(48, 80))[0]
    sample = PromptEvalMapper("refer", words, image_size=40, with_masks=True)(record)
    targets = sample.targets
    assert sample.image.shape == (3, 40, 40)
    assert sample.output_size == (48, 80)
    assert targets.size == (24, 40)
    expressions = [(region.id, text) for region in record.regions for text in region.expressions]
    assert list(zip(targets.region_ids, targets.texts, strict=True)) == expressions
    back = fit_canvas(48, 80, side=40).undo_boxes(targets.boxes_xyxy.numpy())
    boxes = {region.id: region.box_xyxy for region in record.regions}
    np.testing.assert_allclose(back, [boxes[k] for k, _ in expressions], atol=1e-4)
    assert PromptEvalMapper("trace", words)(record).targets.contexts == ["A long image caption: "]


def test_prompts_of_a_user(words):
    """What has no record: a box, a point without a box, a point beside the picture, a phrase."""
    writer = PromptWriter(words, max_context=16, alignment="aligned")
    prompts = [
        Prompt("region", "an object of ", "", (10, 10, 30, 20), located=True),
        Prompt("region", "an object of ", "", located=True),
        Prompt("region", "an object of ", "", located=True),
        Prompt("refer", "where is the star", "the star"),
    ]
    targets = writer(prompts, fit_canvas(40, 80, side=40), {}, {1: (60.0, 20.0), 2: (90.0, -5.0)})
    assert targets.prompt_points.tolist() == [
        [[5, 5], [15, 10]], [[30, 10], [0, 0]], [[40, 0], [0, 0]], [[0, 0], [40, 20]]
    ]  # fmt: skip
    assert targets.prompt_labels.tolist() == [[2, 3], [1, -1], [1, -1], [2, 3]]
    assert targets.boxes_xyxy.tolist() == [[5, 5, 15, 10]] + [[0, 0, 0, 0]] * 3
    assert targets.text[0].tolist()[:3] == [words.start_id, words.end_id, words.pad_id]
    assert targets.region_ids == [-1] * 4


def digest(batch):
    rows = []
    for image, target in zip(batch.images, batch.targets, strict=True):
        fields = (target.text, target.context, target.prompt_points, target.boxes_xyxy, target.word_boxes)
        masks = None if target.masks is None else target.masks.numpy().tobytes()
        tensors = [tensor.numpy().tobytes() for tensor in (image, *fields, target.prompt_labels, target.learns)]
        rows.append((tensors, masks, target.size, target.task, target.seed, target.texts))
    return batch.image_ids, batch.output_sizes, rows


def test_all_tasks_on_shapes_through_the_loader_whatever_the_workers(words, scenes):
    mapper = mapper_of(words, dict.fromkeys(TASKS, 1.0), min_scale=0.5, max_scale=2.0, flip=0.5, box_rate=0.5)
    loaders = [TrainLoader(scenes, mapper, batch_size_total=4, seed=1, num_workers=n) for n in (0, 2)]
    epochs = [[[digest(batch) for batch in loader.batches(epoch)] for epoch in range(3)] for loader in loaders]
    assert epochs[0] == epochs[1]
    assert [digest(batch) for batch in loaders[0].batches(2, start_batch=1)] == epochs[0][2][1:]
    assert epochs[0][0] != epochs[0][1]
    tasks = {row[3] for epoch in epochs[0] for batch in epoch for row in batch[2]}
    assert len(tasks) > 3
    together = {row[3] for row in epochs[0][0][0][2]}
    assert len(together) > 1  # different tasks in one batch
    batch = next(iter(EvalLoader(scenes, PromptEvalMapper("region", words, image_size=64), batch_size=2)))
    assert [len(target) for target in batch.targets] == [len(scenes[k].regions) for k in (0, 1)]


def test_draws_are_a_function_of_seed_epoch_and_index(words, scenes):
    mapper = mapper_of(words, dict.fromkeys(TASKS, 1.0), min_scale=0.5, max_scale=2.0)
    again = pickle.loads(pickle.dumps(mapper))
    np.random.default_rng(0).random(3)
    seeds = [again(scenes[1], 1, 4).targets.seed, mapper(scenes[1], 1, 4).targets.seed]
    assert seeds[0] == seeds[1]
    others = {mapper(scenes[1], *key).targets.seed for key in ((1, 4), (2, 4), (1, 5))}
    assert len(others) == 3


def test_detection_is_asked_once_of_the_whole_image(words):
    for record in (grid(), Record(1, 60, 60, np.zeros((60, 60, 3), np.uint8))):
        targets = PromptEvalMapper("detect", words, image_size=40)(record).targets
        assert targets.region_ids == [-1]
        assert targets.contexts == ["an object of "]
        assert targets.prompt_points[0].tolist() == [[0, 0], [40, 40]]
        assert not targets.boxes_xyxy.any()
        assert not targets.learns.any()
        assert not targets.detects
        assert targets.task == "detect"


def test_prompts_made_by_hand(words):
    record = Record("mine", 60, 30, np.zeros((60, 30, 3), np.uint8))
    outside = Prompt("region", "an object of ", "", (40, 0, 50, 9), located=True)
    shown = Prompt("region", "an object of ", "", (3, 6, 9, 12), located=True)
    anywhere = Prompt("region", "an object of ", "")
    mapper = PromptEvalMapper("region", words, image_size=120)
    targets = mapper.sample(record, [outside, shown, anywhere], {2: (10.0, 20.0)}).targets
    assert targets.prompt_points.tolist() == [[[6, 12], [18, 24]], [[20, 40], [0, 0]]]
    assert targets.prompt_labels.tolist() == [[2, 3], [1, -1]]
    assert targets.task == "region"


def test_an_instruction_may_be_longer_than_a_text():
    short = LanguageTokenizer.from_pretrained(FOLDER, max_tokens=5)
    instructions = {"region": ("the red circle is to the left of the large square",)}
    mapper = PromptEvalMapper("region", short, image_size=64, max_context=32, instructions=instructions)
    targets = mapper(Shapes(1, image_size=64)[0]).targets
    assert targets.text.shape[1] == 5
    assert int((targets.context[0] != short.pad_id).sum()) == 12
