"""Which records and prompts the configuration's data sets become."""

from __future__ import annotations

from itertools import chain

import pytest

from locap.datasets.expressions import PerExpression
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.prepare.shards import write_shards
from locap.datasets.readers import categories_of
from locap.datasets.shapes import Shapes
from locap.trainer.data import eval_loader, open_eval_sets, open_training, train_loader
from locap.trainer.distributed import World
from locap.utils.errors import UsageError
from locap.utils.tokenizers import LanguageTokenizer

ALL = "[trace:shapes_train, caption:shapes_train, region:shapes_train, refer:shapes_train, detect:shapes_train]"


@pytest.fixture(scope="module")
def words() -> LanguageTokenizer:
    return LanguageTokenizer.from_pretrained(FOLDER, max_tokens=64)


def keys_of(cfg, words, rank=0, size=1, epoch=0):
    """Return (pass, index) of each global batch's samples on one rank."""
    loader = train_loader(open_training(cfg), words, cfg, World(rank=rank, size=size))
    return [[tuple(key) for key in batch] for batch in loader.sampler.keys(epoch)]


def test_a_data_set_of_several_tasks_is_opened_once(configure):
    reader = open_training(configure("DATASETS.TRAIN", ALL))
    assert len({id(each) for each in reader.readers}) == 1
    assert len(reader) == 25


def test_every_task_brings_its_own_prompts(configure, words):
    cfg = configure("DATASETS.TRAIN", ALL, "COCO.TRAIN.BATCH_SIZE_TOTAL", "25", "MODEL.PROMPTS.MAX_PROMPTS", "3")
    batch = next(train_loader(open_training(cfg), words, cfg, World()).batches(0))
    tasks = [targets.task for targets in batch.targets]
    assert {task: tasks.count(task) for task in tasks} == dict.fromkeys(tasks, 5)
    assert len(set(tasks)) == 5
    assert {tuple(image.shape) for image in batch.images} == {(3, 64, 64)}
    for targets in batch.targets:
        assert len(targets) <= 3 or targets.task == "detect"
        assert (targets.masks is not None) == (targets.task == "refer")


def test_masks_instructions_and_scales_are_the_configured_ones(configure, words):
    prompts = {"INSTRUCTIONS": '["find {} now"]', "MIN_SCALE": "0.5", "MAX_SCALE": "0.5"}
    changes = [word for name, value in prompts.items() for word in (f"MODEL.PROMPTS.REFER.{name}", value)]
    cfg = configure("MODEL.MASKS", "false", *changes)
    batch = next(train_loader(open_training(cfg), words, cfg, World()).batches(0))
    for targets in batch.targets:
        assert targets.masks is None
        assert targets.size == (32, 32)
        assert targets.contexts == [f"find {text} now" for text in targets.texts]
    batch = next(iter(eval_loader(open_eval_sets(cfg)[0], words, cfg, World())))
    assert batch.targets[0].contexts == [f"find {text} now" for text in batch.targets[0].texts]
    assert batch.targets[0].size == (64, 64)


def test_without_weights_every_record_comes_once_an_epoch(configure, words):
    cfg = configure("DATASETS.TRAIN", "[refer:shapes_train, trace:shapes_val]")
    for epoch in range(2):
        indices = [index for batch in keys_of(cfg, words, epoch=epoch) for _, index in batch]
        assert sorted(indices) == list(range(8))


@pytest.mark.parametrize("samples", [0, 12])
def test_weights_draw_more_of_one_data_set(configure, words, samples):
    cfg = configure(
        *("DATASETS.TRAIN", "[refer:shapes_train, trace:shapes_val]", "DATASETS.WEIGHTS", "{refer:shapes_train: 3}"),
        *("DATASETS.SAMPLES_PER_EPOCH", str(samples)),
    )
    indices = [index for batch in keys_of(cfg, words) for _, index in batch]
    counts = [sum(index < 5 for index in indices), sum(index >= 5 for index in indices)]
    assert counts == [9, 3]


def test_systems_without_prompts_are_weighted_too(pix2cap, words):
    names = ("DATASETS.TRAIN", "[shapes_train, shapes_val]")
    plain = [index for batch in keys_of(pix2cap(*names), words) for _, index in batch]
    assert sorted(plain) == list(range(8))
    weighted = keys_of(pix2cap(*names, "DATASETS.WEIGHTS", "{shapes_train: 3}"), words)
    assert sum(index < 5 for batch in weighted for _, index in batch) == 9


def test_two_ranks_share_the_batches_of_one(configure, words):
    cfg = configure("DATASETS.TRAIN", ALL, "DATASETS.WEIGHTS", "{detect:shapes_train: 1.5}")
    alone, (first, second) = keys_of(cfg, words), [keys_of(cfg, words, rank, 2) for rank in range(2)]
    assert len(first) == len(second) == len(alone)
    assert alone == [[*a, *b] for a, b in zip(first, second, strict=True)]


def test_expressions_are_evaluated_one_by_one(configure, words):
    cfg = configure("DATASETS.TEST", "[refer:shapes_val, detect:shapes_val, trace:shapes_val]")
    refer, detect, trace = open_eval_sets(cfg)
    assert [s.name for s in (refer, detect)] == ["refer:shapes_val", "detect:shapes_val"]
    assert [s.folder for s in (refer, detect)] == ["refer_shapes_val", "detect_shapes_val"]
    assert isinstance(refer.reader[0].regions[0].mask, dict)
    record, scene = refer.reader[0], detect.reader[0]
    assert [r.id for r in record.regions] == list(range(1, len(record.regions) + 1))
    assert [text for r in record.regions for text in r.expressions] == [t for r in scene.regions for t in r.expressions]
    targets = next(iter(eval_loader(refer, words, cfg, World()))).targets[0]
    assert targets.region_ids == [r.id for r in record.regions]
    assert detect.reader.readers[0] is trace.reader.readers[0]
    assert isinstance(refer.reader.readers[0], PerExpression)


@pytest.mark.parametrize(("key", "opened"), [("TRAIN", open_training), ("TEST", open_eval_sets)])
def test_a_task_that_a_data_set_has_nothing_for_is_refused(configure, coco_mini, key, opened):
    cfg = configure(f"DATASETS.{key}", "[refer:ln_coco_val]", "DATASETS.ROOT", str(coco_mini))
    with pytest.raises(UsageError, match="nothing for the task refer") as caught:
        opened(cfg)
    assert caught.value.where == f"DATASETS.{key}"
    assert caught.value.allowed == "trace:ln_coco_val"


@pytest.fixture
def shards(tmp_path):
    return write_shards(Shapes(9, image_size=64), tmp_path / "scenes", samples_per_shard=2)


def test_shards_are_named_with_a_task_by_their_path(configure, words, shards):
    pattern = f"{shards}/scenes-{{000000..000001}}.tar"
    names = f"['region:{shards}', 'trace:{pattern}', 'refer:shapes_train']"
    cfg = configure("DATASETS.TRAIN", names, "DATASETS.TEST", names, "DATASETS.WEIGHTS", f"{{'region:{shards}': 2}}")
    reader = open_training(cfg)
    assert reader.lengths == [9, 4, 5]
    assert reader.blocks_of == [[2, 2, 2, 2, 1], [2, 2], None]
    alone = keys_of(cfg, words)
    for batch, *parts in zip(alone, keys_of(cfg, words, 0, 2), keys_of(cfg, words, 1, 2), strict=True):
        assert sorted(chain(*parts)) == sorted(batch)
    eval_sets = open_eval_sets(cfg)
    assert [len(eval_set.reader) for eval_set in eval_sets] == [9, 4, 5]
    assert all("/" not in eval_set.folder for eval_set in eval_sets)
    assert len({eval_set.folder for eval_set in eval_sets}) == 3
    assert eval_sets[2].folder == "refer_shapes_train"


def test_systems_with_classes_need_the_categories_of_shards(pix2cap, configure, shards):
    assert len(open_training(pix2cap("DATASETS.TRAIN", f"[shapes_train, '{shards}']"))) == 9 + len(
        open_training(pix2cap("DATASETS.TRAIN", "[shapes_train]"))
    )
    (shards / "shards.json").unlink()
    name = f"{shards}/*.tar"
    for names in (f"['{name}']", f"[shapes_train, '{name}']"):
        with pytest.raises(UsageError, match="without categories"):
            open_training(pix2cap("DATASETS.TRAIN", names))
    assert len(open_training(configure("DATASETS.TRAIN", f"['region:{name}']"))) == 9
    assert [category.name for category in categories_of([name])] == ["object"]


def test_streams_are_refused_with_and_without_a_task(pix2cap, configure):
    for cfg in (
        configure("DATASETS.TRAIN", "['region:s3://bucket/x.tar']"),
        pix2cap("DATASETS.TRAIN", "['s3://bucket/x.tar']"),
        pix2cap("DATASETS.TRAIN", "['pipe:cat x.tar']"),
    ):
        with pytest.raises(UsageError, match="copy the shards first"):
            open_training(cfg)
    with pytest.raises(UsageError, match="named with its task"):
        open_training(configure("DATASETS.TRAIN", "['s3://bucket/x.tar']"))
