"""COCO panoptic and Pix2Cap-COCO: records, layouts, and a clear word about files that are wrong."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from locap.datasets.categories import COCO_PANOPTIC, contiguous_indices
from locap.datasets.checks import read_checked_id_map, read_checked_image
from locap.datasets.readers import DATASETS, READERS, open_dataset
from locap.datasets.readers.coco_panoptic import CocoPanopticReader
from locap.datasets.records import decode_mask, record_from_json, record_to_json
from locap.utils.errors import DataError, UsageError
from locap.utils.id_maps import measure_segments


def test_coco_categories_have_detectron2_indices():
    index = contiguous_indices(COCO_PANOPTIC)
    assert len(index) == 133
    assert (index[1], index[90], index[92], index[200]) == (0, 79, 80, 132)
    assert [category.is_thing for category in COCO_PANOPTIC] == [True] * 80 + [False] * 53
    assert [COCO_PANOPTIC[k].name for k in (0, 79, 80, 119, 132)] == [
        "person",
        "toothbrush",
        "banner",
        "sky-other-merged",
        "rug-merged",
    ]


def test_records(panoptic_set):
    reader = panoptic_set.open()
    assert len(reader) == 2
    assert [category.id for category in reader.categories] == [1, 18, 184]  # things first
    record = reader[0]
    assert (record.image_id, record.height, record.width) == (139, 48, 64)
    assert [region.id for region in record.regions] == [1, 256, 65_543, 300]
    assert record.regions[1].captions == ("the second man ' s blue | dog\n",)
    assert record.regions[1].box_xyxy == (20.0, 0.0, 40.0, 24.0)
    assert [region.is_crowd for region in record.regions] == [False, False, False, True]
    assert reader[-1].image_id == 7
    with pytest.raises(IndexError):
        reader[2]
    assert read_checked_image(record).shape == (48, 64, 3)
    segments = measure_segments(read_checked_id_map(record))
    areas = dict(zip(segments.ids.tolist(), segments.areas.tolist(), strict=True))
    assert all(areas[region.id] == region.area for region in record.regions)


def test_a_record_survives_json(panoptic_set):
    record = panoptic_set.open()[0]
    again = record_from_json(record_to_json(record))
    assert again == record
    record.id_map = record.read_id_map()
    masks = [decode_mask(region.mask) for region in record_from_json(record_to_json(record)).regions]
    assert [int(mask.sum()) for mask in masks] == [region.area for region in record.regions]


def test_plain_panoptic_has_no_captions(panoptic_set):
    record = panoptic_set.open(CocoPanopticReader)[0]
    assert all(region.captions == () for region in record.regions)
    for segment in panoptic_set.segments(0) + panoptic_set.segments(1):
        del segment["description"]
    with pytest.raises(DataError, match=r"No segment has a description(.|\n)*pix2cap_coco_train"):
        panoptic_set.open()


def test_short_descriptions_drop_the_image_in_training_only(panoptic_set, caplog):
    with caplog.at_level(logging.INFO, logger="locap"):
        reader = panoptic_set.open(min_description=3)
    assert [reader[i].image_id for i in range(len(reader))] == [139]
    assert reader.dropped_images == [7]
    assert "1 of 2 images left out, a description is shorter than 3 characters (first: image 7)" in caplog.text
    assert len(panoptic_set.open()) == 2


@pytest.mark.fault("R10")
@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_captions_are_counted_and_never_an_empty_sentence(panoptic_set, caplog, text):
    panoptic_set.segments(0)[1]["description"] = text
    with caplog.at_level(logging.WARNING, logger="locap"):
        reader = panoptic_set.open()
    assert reader.empty_captions == [(139, 256)]
    assert "1 segments have an empty description and take no part in captioning (first: image 139, segment 256)" in (
        caplog.text
    )
    assert reader[0].regions[1].captions == ()
    assert len(reader[0].regions) == 4
    assert panoptic_set.open(min_description=1)[0].image_id == 7


@pytest.mark.fault("R10")
def test_several_descriptions_and_odd_characters(panoptic_set):
    panoptic_set.segments(0)[0]["description"] = ["a man", "the man in red", " "]
    panoptic_set.segments(0)[1]["description"] = "a \ud800 man"
    record = panoptic_set.open()[0]
    assert record.regions[0].captions == ("a man", "the man in red")
    assert record.regions[1].captions == ("a ? man",)


def spoil(key, value):
    def change(made):
        made.segments(0)[1][key] = value

    return change


def remove(key):
    return lambda made: made.segments(0)[1].pop(key)


@pytest.mark.fault("R3", "R4", "R5")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil("area", 0), r"zero area(.|\n)*segments_info\[1\] \(image 139\)(.|\n)*segment 256, area 0"),
        (spoil("category_id", 12), r"unknown category(.|\n)*12"),
        (spoil("category_id", None), "'category_id' has the wrong type"),
        (spoil("id", 1), "Two segments of one image have the same id"),
        (spoil("id", 0), "impossible id"),
        (spoil("id", 256**3 - 1), "impossible id"),
        (spoil("id", "256"), "'id' has the wrong type"),
        (spoil("id", True), "'id' has the wrong type"),
        (remove("id"), "'id' is missing"),
        (spoil("description", 5), r"description is not text(.|\n)*segment 256"),
        (lambda made: made.document["annotations"][1].update(image_id=139), "Two annotations have the same image"),
        (lambda made: made.document["annotations"][1].update(image_id=8), "belongs to no image"),
        (lambda made: made.document["images"][1].update(id=139), "Two images have the same id"),
        (lambda made: made.document["images"][0].pop("height"), "'height' is missing"),
        (lambda made: made.document["images"][0].update(width=0), "has no size"),
        (lambda made: made.document["images"][0].update(file_name="../x.jpg"), "leaves its folder"),
        (lambda made: made.document.pop("annotations"), "Not a COCO panoptic file"),
        (lambda made: made.document.update(annotations=[]), "No segment has a description"),
        (lambda made: made.document.update(categories=[]), "needs categories"),
        (lambda made: made.document["annotations"][0].pop("segments_info"), "'segments_info' is missing"),
        (lambda made: made.document["annotations"].__setitem__(0, 5), "not an object"),
    ],
)
def test_wrong_annotations_are_named(panoptic_set, change, says):
    change(panoptic_set)
    with pytest.raises(DataError, match=says) as caught:
        panoptic_set.open()
    assert caught.value.exit_code == 3


@pytest.mark.fault("R1")
def test_json_that_names_an_absent_image(panoptic_set):
    (panoptic_set.root / "images" / "000000000007.jpg").unlink()
    with pytest.raises(DataError) as caught:
        panoptic_set.open()
    message = str(caught.value)
    assert "1 of 2 images named by the JSON are not there." in message
    assert str(panoptic_set.root / "images") in message
    assert "000000000007.jpg" in message
    assert "DETECTRON2_DATASETS" in message


@pytest.mark.fault("E10")
def test_an_image_that_vanishes_later(panoptic_set):
    reader = panoptic_set.open()
    os.unlink(panoptic_set.root / "images" / "000000000139.jpg")
    with pytest.raises(DataError, match=r"The image does not exist(.|\n)*000000000139\.jpg"):
        reader[0].read_image()


@pytest.mark.fault("R1")
def test_a_missing_folder_is_named(panoptic_set):
    (panoptic_set.root / "panoptic").rename(panoptic_set.root / "elsewhere")
    with pytest.raises(DataError, match="The folder of the panoptic segmentations does not exist"):
        panoptic_set.open()


@pytest.mark.fault("E11")
def test_png_and_json_that_disagree_are_counted_both_ways(panoptic_set):
    ids = np.zeros((48, 64), np.int32)
    ids[:24] = 1
    ids[24:] = 77
    panoptic_set.write_ids(0, ids)
    with pytest.raises(DataError) as caught:
        read_checked_id_map(panoptic_set.open()[0])
    message = str(caught.value)
    assert "The panoptic PNG and its JSON disagree." in message
    assert "1 ids in the PNG but not in the JSON: 77" in message
    assert "3 segments in the JSON without a pixel in the PNG: 256, 300, 65543" in message
    assert "image 139" in message
    assert "000000000139.png" in message


@pytest.mark.fault("E5", "E11")
def test_sizes_that_disagree_are_shown(panoptic_set):
    panoptic_set.document["images"][0].update(width=32)
    record = panoptic_set.open()[0]
    with pytest.raises(DataError, match=r"does not have the size(.|\n)*64 x 48(.|\n)*32 x 48"):
        read_checked_image(record)
    with pytest.raises(DataError, match=r"panoptic segmentation does not have the size"):
        read_checked_id_map(record)


def lay_out(made, base):
    for source, target in (("images", "val2017"), ("panoptic", "panoptic_val2017")):
        (base / target).symlink_to(made.root / source)
    (base / "annotations").mkdir()
    made.save().rename(base / "annotations" / "pix2cap_coco_val.json")


@pytest.mark.parametrize("folder", ["coco", "."])
@pytest.mark.parametrize("variable", ["DETECTRON2_DATASETS", "DATASETS", None])
def test_named_data_sets_accept_both_layouts(panoptic_set, tmp_path, monkeypatch, folder, variable):
    root = tmp_path / "data"
    (root / folder).mkdir(parents=True)
    lay_out(panoptic_set, root / folder)
    for name in ("DETECTRON2_DATASETS", "DATASETS"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(root))
    reader = open_dataset("pix2cap_coco_val_with_sem_seg", None if variable else root)
    assert reader.categories == COCO_PANOPTIC
    assert [reader[i].image_id for i in range(len(reader))] == [139, 7]
    assert reader[0].read_image().shape == (48, 64, 3)


@pytest.mark.fault("R1")
def test_missing_data_sets_say_what_to_set(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean pix2cap_coco_val_with_sem_seg"):
        open_dataset("pix2cap_coco_val_with_semseg")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.delenv("DATASETS", raising=False)
    with pytest.raises(DataError, match="export DETECTRON2_DATASETS="):
        open_dataset("pix2cap_coco_val_with_sem_seg")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as caught:
        open_dataset("pix2cap_coco_train_with_sem_seg")
    assert str(tmp_path / "nowhere" / "coco" / "annotations" / "pix2cap_coco_train.json") in str(caught.value)
    assert "does not exist" in str(caught.value)


def test_every_named_data_set_has_a_reader():
    assert {source.reader for source in DATASETS.values()} <= READERS.keys()
    assert DATASETS["pix2cap_coco_train_with_sem_seg"].min_description == 3
    assert DATASETS["pix2cap_coco_val_with_sem_seg"].min_description == 0


def test_real_images(coco_mini):
    reader = open_dataset("pix2cap_coco_val_with_sem_seg", coco_mini)
    assert len(reader) == 13
    assert sum(len(reader[i].regions) for i in range(13)) == 94
    assert reader.empty_captions == []
    for i in range(13):
        record = reader[i]
        assert read_checked_image(record).shape == (record.height, record.width, 3)
        segments = measure_segments(read_checked_id_map(record))
        areas = dict(zip(segments.ids.tolist(), segments.areas.tolist(), strict=True))
        assert all(areas[region.id] == region.area for region in record.regions)
    assert len(open_dataset("coco_2017_val_panoptic", coco_mini)) == 13
