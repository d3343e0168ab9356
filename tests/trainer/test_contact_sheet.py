"""``data show``: what is drawn is what the tensors of training say."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from locap.datasets.prepare import convert
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import find_system
from locap.trainer import contact_sheet
from locap.trainer.data import open_training, train_loader
from locap.trainer.distributed import World
from locap.utils.config import load_config
from locap.utils.errors import UsageError

SMALL = ("SHAPES.NUM_TRAIN", "6", "SHAPES.NUM_TEST", "4", "SHAPES.IMAGE_SIZE", "64", "COCO.INPUT.IMAGE_SIZE", "64")


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    contact_sheet.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def read(config: str, *overrides: str) -> SimpleNamespace:
    cfg = load_config([config], [*SMALL, *overrides], model_schemas=MODEL_SCHEMAS)
    return SimpleNamespace(cfg=cfg, tokenizer=find_system(cfg.MODEL.NAME).tokenizer(cfg))


def first_batches(given: SimpleNamespace):
    loader = train_loader(open_training(given.cfg), given.tokenizer, given.cfg, World())
    return [sample for batch in loader.batches(0) for sample in contact_sheet.samples_of(batch)]


def test_the_pictures_are_those_of_the_first_epoch():
    jitter = ("COCO.INPUT.MIN_SCALE", "0.5", "COCO.INPUT.MAX_SCALE", "2.0", "COCO.INPUT.RANDOM_FLIP", "horizontal")
    given = read("configs/quickstart.yaml", *jitter, "COCO.DATALOADER.NUM_WORKERS", "0")
    pictures, categories = contact_sheet.seen(given.cfg, parse("--count", 4))
    samples = first_batches(given)[:4]
    assert [title for title, _ in pictures] == [str(sample.image_id) for sample in samples]
    for (_, record), sample in zip(pictures, samples, strict=True):
        assert (record.image == sample.image.permute(1, 2, 0).numpy()).all()
        masks = sample.targets.masks().numpy()
        shown = {region.id: region for region in record.regions}
        for number, mask, caption, label in zip(
            sample.targets.segment_ids.tolist(), masks, sample.targets.captions, sample.targets.labels, strict=True
        ):
            assert mask.any() == (number in shown)
            if number in shown:
                assert (record.read_mask(shown[number]) == mask).all()
                assert shown[number].captions == (caption,)
                assert shown[number].category_id == categories[int(label)].id


@pytest.mark.parametrize("task", ["region", "refer", "detect", "trace"])
def test_prompts_are_drawn_where_they_are_asked(task):
    names = ("DATASETS.TRAIN", f"[{task}:shapes_train]", "COCO.DATALOADER.NUM_WORKERS", "0", "MODEL.MASKS", "true")
    given = read("configs/pixelllm/pixelllm_shapes.yaml", *names)
    pictures, _ = contact_sheet.seen(given.cfg, parse("--count", 3))
    for (title, record), sample in zip(pictures, first_batches(given), strict=False):
        assert title == f"{sample.image_id} · {task}"
        targets = sample.targets
        if task == "trace":
            said = [given.tokenizer.decode(row) for row in targets.text]
            assert [narrative.caption for narrative in record.narratives] == said
            assert sum(map(len, record.narratives[0].traces)) == int(targets.word_boxes[0].any(-1).sum())
            continue
        assert len(record.regions) == len(targets) > 0
        for region, text, box, labels in zip(
            record.regions, targets.texts, targets.boxes_xyxy, targets.prompt_labels, strict=True
        ):
            pointed = int(labels[0]) == 1
            assert region.box_xyxy == (None if pointed else tuple(box.tolist()))
            assert bool(region.points) == pointed
            assert (region.mask is not None) == (task == "refer")
            if task != "refer":
                assert region.captions[0].endswith(f"→ {text}")


def test_a_sheet_of_a_configuration(tmp_path, capsys):
    output = tmp_path / "sheet.png"
    words = ("--split", "test", "--count", 4, "--output", output, "--conf_files", "configs/quickstart.yaml")
    assert contact_sheet.run(parse(*words, "--overrides", *SMALL)) == 0
    assert "4 pictures are in" in capsys.readouterr().out
    with Image.open(output) as sheet:
        assert sheet.width == 3 * 520 + 8
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50


def test_a_sheet_of_files(tmp_path, capsys):
    """Of one's own, as they are stored, without a configuration."""
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    words = ["shapes_val", "--to", "coco", "--count", "2", "--copy-images", "--output", str(tmp_path / "own.json")]
    convert.run(parser.parse_args(words))
    assert contact_sheet.run(parse(tmp_path / "own.json", "--output", tmp_path / "sheet.png")) == 0
    assert "2 pictures are in" in capsys.readouterr().out
    first = json.loads((tmp_path / "own.json").read_text())["annotations"][0]
    pictures, categories = contact_sheet.stored(parse(tmp_path / "own.json"))
    assert pictures[0][1].regions[0].captions[0] in first["caption"]
    assert len(categories) == 12


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ((), ("Give either a data set or a configuration.", "data show NAME --root FOLDER")),
        (("shapes_val", "--conf_files", "configs/quickstart.yaml"), ("Give either a data set or a configuration.",)),
        (("shapes_val", "--count", "0"), ("nothing to show", "--count", "1 or more")),
        (("shapes_val", "--count", "1", "--output", "a.jpg"), ("The output is not a PNG.", "FILE.png")),
        (("shapes_vol",), ("Unknown data set.", "did you mean shapes_val?")),
    ],
)
def test_what_is_refused(words, texts):
    with pytest.raises(UsageError) as caught:
        contact_sheet.run(parse(*words))
    for text in texts:
        assert text in str(caught.value)
