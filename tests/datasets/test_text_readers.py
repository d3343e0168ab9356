"""Readers of boxes with texts, narratives and conversations, on small files and on real ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locap.datasets.checks import read_checked_image
from locap.datasets.readers import TEXT_DATASETS, categories_of, open_dataset
from locap.datasets.readers.coco_captions import CocoCaptionsReader, KarpathyReader
from locap.datasets.readers.llava import LlavaReader
from locap.datasets.readers.localized_narratives import LocalizedNarrativesReader
from locap.datasets.readers.packed import ImageFinder, coco_names
from locap.datasets.readers.refcoco import MdetrReferReader, ReferReader, UninextReferReader
from locap.datasets.readers.visual_genome import GritReader, VisualGenomeReader
from locap.datasets.records import TimedWord, Turn, decode_mask
from locap.utils.errors import DataError

HEIGHT, WIDTH = 40, 60
SIZE = {"height": HEIGHT, "width": WIDTH}
SQUARE = [[10, 10, 30, 10, 30, 20, 10, 20]]


@pytest.fixture
def data(tmp_path):
    """A folder with image 7 under all of its names."""
    for name in (
        "train2014/COCO_train2014_000000000007.jpg",
        "val2014/COCO_val2014_000000000007.jpg",
        "val2017/000000000007.jpg",
        "VG_100K_2/7.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def write(path: Path, body) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))
    return path


def all_records(reader):
    records = [reader[i] for i in range(len(reader))]
    for record in records:
        read_checked_image(record)
    return records


# Visual Genome

BOX = {"x": 5, "y": 6, "width": 70, "height": 10}


def raw_files(folder, regions=None, **image):
    regions = [{"region_id": 11, "image_id": 7, "phrase": "Red car.", **BOX}] if regions is None else regions
    body = {"image_id": 7, "url": "https://host/images/VG_100K_2/7.jpg", "width": WIDTH, "height": HEIGHT} | image
    write(folder / "image_data.json", [body])
    write(folder / "splits.json", {"train": [7], "val": [8]})
    return write(folder / "region_descriptions.json", [{"id": 7, "regions": regions}]), folder / "image_data.json"


def test_raw_visual_genome(data):
    (record,) = all_records(VisualGenomeReader(*raw_files(data), data))
    (region,) = record.regions
    assert (record.image_id, record.height, record.width) == (7, HEIGHT, WIDTH)
    assert record.image == str(data / "VG_100K_2" / "7.jpg")
    assert (region.id, region.category_id, region.captions) == (11, 1, ("Red car.",))
    assert region.box_xyxy == (5, 6, 75, 16)  # over the border, as it is


def test_version_1_of_visual_genome_and_splits(data):
    files = raw_files(data, [{"id": 11, "image": 7, "phrase": "a", **BOX}])
    assert VisualGenomeReader(*files, data, splits=data / "splits.json", split="train")[0].regions[0].id == 11
    with pytest.raises(DataError, match="No image is left"):
        VisualGenomeReader(*files, data, splits=data / "splits.json", split="val")
    with pytest.raises(DataError, match=r"(?s)no such split.*splits\.json.*'test'.*train, val"):
        VisualGenomeReader(*files, data, splits=data / "splits.json", split="test")


@pytest.mark.fault("R6", "R10")
def test_unusable_regions_are_counted(data, caplog):
    regions = [
        {"region_id": 1, "phrase": "a", **BOX, "width": 0},
        {"region_id": 2, "phrase": " ", **BOX},
        {"region_id": 3, "phrase": "b", **BOX},
    ]
    reader = VisualGenomeReader(*raw_files(data, regions), data)
    assert [region.id for region in reader[0].regions] == [3]
    assert reader.skipped == [(7, 1, "its box has no area"), (7, 2, "its caption is blank")]
    assert "2 regions are left out (first: image 7, region 1, its box has no area)" in caplog.text


@pytest.mark.fault("R3", "R5")
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"regions": [{"region_id": 1, "phrase": 5, **BOX}]}, r'(?s)"phrase".*\[0\]: regions\[0\]'),
        ({"regions": [{"region_id": 1, "phrase": "a", "x": 1}]}, r'(?s)"y" is missing'),
        ({"image_id": 8}, r"(?s)size of an image is not known.*7"),
        ({"width": 0}, "has no size"),
        ({"url": "https://host/VG_100K/8.jpg"}, r"(?s)1 of 1 images.*VG_100K/8\.jpg"),
        ({"url": "../7.jpg"}, r"leaves its folder|are not there"),
    ],
)
def test_wrong_visual_genome_files_are_named(data, files, says):
    with pytest.raises(DataError, match=says):
        VisualGenomeReader(*raw_files(data, **files), data)


def grit(folder, image=None, **change):
    annotation = {"id": 5, "image_id": 7, "bbox": [1, 2, 10.5, 4], "caption": "a dog"} | change
    image = {"id": 7, "file_name": "7.jpg", **SIZE} | (image or {})
    return write(folder / "train.json", {"images": [image], "annotations": [annotation]})


def test_grit(data):
    (record,) = all_records(GritReader(grit(data), data))
    assert record.regions[0].box_xyxy == (1, 2, 11.5, 6)
    assert record.regions[0].captions == ("a dog",)
    assert record.image == str(data / "VG_100K_2" / "7.jpg")


@pytest.mark.fault("R3", "R5", "R6")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 8}, "belongs to no image"),
        ({"bbox": [1, 2, 3]}, r"(?s)not four finite numbers.*annotations\[0\]"),
        ({"caption": None}, '"caption" is missing'),
        ({"id": True}, '"id" is missing or of the wrong type'),
    ],
)
def test_wrong_grit_files_are_named(data, change, says):
    with pytest.raises(DataError, match=says):
        GritReader(grit(data, **change), data)


@pytest.mark.fault("R6")
@pytest.mark.parametrize(("corners", "warned"), [(2, False), (4, True)])
def test_corners_given_as_sizes_are_suspected(data, caplog, corners, warned):
    boxes = [[20, 20, 50, 39]] * corners + [[20, 20, 30, 19]] * (10 - corners)
    body = json.loads(grit(data).read_text())
    body["annotations"] = [body["annotations"][0] | {"id": i, "bbox": box} for i, box in enumerate(boxes)]
    reader = GritReader(write(data / "train.json", body), data)
    assert len(reader[0].regions) == 10
    assert ("4 of 10 boxes [x, y, width, height] leave their images" in caplog.text) == warned


@pytest.mark.fault("B4")
def test_nothing_is_written_beside_the_data(data):
    path = grit(data)
    before = {file: file.stat().st_mtime_ns for file in data.rglob("*")}
    all_records(GritReader(path, data))
    assert {file: file.stat().st_mtime_ns for file in data.rglob("*")} == before


# Localized Narratives


def narrative(**change):
    return {
        "dataset_id": "mscoco_val2017",
        "image_id": "7",
        "caption": "a dog",
        "timed_caption": [{"utterance": "a dog", "start_time": 0.0, "end_time": 1}],
        "traces": [[{"x": 0.5, "y": 0.25, "t": 0.5}, {"x": 1.1, "y": -0.1, "t": 0.6}]],
    } | change


def lines(path, *bodies):
    path.write_text("\n".join(map(json.dumps, bodies)) + "\n")
    return path


@pytest.mark.fault("R13")
def test_narratives_of_an_image_join_and_stay_off_the_image(data):
    one = lines(data / "a.jsonl", narrative(), narrative(image_id="8", traces=[]))
    two = lines(data / "b.jsonl", narrative(caption="again"))
    reader = LocalizedNarrativesReader([one, two], data)
    (record,) = all_records(reader)
    assert [n.caption for n in record.narratives] == ["a dog", "again"]
    assert record.narratives[0].words == (TimedWord("a dog", 0.0, 1.0),)
    assert record.narratives[0].traces == (((30.0, 10.0, 0.5), (66.0, -4.0, 0.6)),)
    assert reader.skipped == [(8, "the trace has fewer than two points")]


@pytest.mark.fault("R13")
def test_points_of_the_same_time_are_guarded(data):
    points = [{"x": x, "y": 0, "t": t} for x, t in ((0.1, 0.5), (0.2, 0.5), (0.3, 0.7))]
    reader = LocalizedNarrativesReader(lines(data / "a.jsonl", narrative(traces=[points, points[:1]])), data)
    assert reader[0].narratives[0].traces == (((6.0, 0.0, 0.5), (18.0, 0.0, 0.7)),)
    with pytest.raises(DataError, match="No image is left"):
        LocalizedNarrativesReader(lines(data / "b.jsonl", narrative(traces=[points[:2]])), data)


@pytest.mark.fault("R13")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"caption": "  "}, "blank"),
        ({"timed_caption": []}, "no utterance"),
        ({"timed_caption": [{"utterance": "a", "start_time": 2, "end_time": 1}]}, "ends before it starts"),
    ],
)
def test_unusable_narratives_are_counted(data, caplog, change, why):
    reader = LocalizedNarrativesReader(lines(data / "a.jsonl", narrative(), narrative(**change)), data)
    assert len(reader[0].narratives) == 1
    assert why in reader.skipped[0][1]
    assert "1 narratives are left out" in caplog.text


@pytest.mark.fault("R13")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"(?s)Malformed JSON.*a\.jsonl: line 2"),
        (json.dumps(narrative(traces=[[{"x": 1, "t": 0}]])), r'(?s)"y" is missing.*line 2: traces\[0\]'),
        (json.dumps(narrative(image_id=None)), r'(?s)"image_id".*line 2'),
        (json.dumps(narrative(image_id="9")), r"(?s)1 of 2 images.*000000000009"),
        (json.dumps(narrative(image_id="../7")), "leaves its folder|are not there"),
        (json.dumps(narrative(caption=7)).replace("7}", "NaN}"), "Malformed|caption"),
    ],
)
def test_wrong_lines_are_named(data, text, says):
    path = lines(data / "a.jsonl", narrative())
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(DataError, match=says):
        LocalizedNarrativesReader(path, data)


# referring expressions


def refer_files(folder, ref=None, annotation=None):
    sentences = [{"sent_id": 3, "sent": "left dog", "raw": "Left dog"}, {"sent_id": 4, "sent": " ", "raw": ""}]
    refs = [
        {"ref_id": 1, "ann_id": 50, "image_id": 7, "split": "train", "sentences": sentences},
        {"ref_id": 2, "ann_id": 50, "image_id": 7, "split": "train", "sentences": [{"sent_id": 9, "sent": "dog"}]},
    ]
    refs[0] |= ref or {}
    instances = {
        "images": [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg", **SIZE}],
        "annotations": [{"id": 50, "image_id": 7, "bbox": [10, 10, 20, 10], "segmentation": SQUARE}],
    }
    instances["annotations"][0] |= annotation or {}
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    return folder / "refs(unc).p", write(folder / "instances.json", instances)


def test_refer(data, caplog):
    reader = ReferReader(*refer_files(data), data, split="train")
    (record,) = all_records(reader)
    (region,) = record.regions
    assert (region.id, region.expressions, region.box_xyxy) == (50, ("left dog", "dog"), (10, 10, 30, 20))
    assert decode_mask(region.mask).sum() == 200
    assert record.image == str(data / "val2014" / "COCO_val2014_000000000007.jpg")
    assert reader.blank == 1
    assert "1 blank expressions" in caplog.text
    record = ReferReader(*refer_files(data), data, per_expression=True)[0]
    assert [(r.id, r.expressions, r.box_xyxy) for r in record.regions] == [
        (3, ("left dog",), (10, 10, 30, 20)),
        (9, ("dog",), (10, 10, 30, 20)),
    ]


@pytest.mark.fault("R3", "R5", "R6", "R7", "R8")
@pytest.mark.parametrize(
    ("ref", "annotation", "says"),
    [
        ({"ann_id": 51}, {}, r"(?s)reference is to no annotation.*\[0\].*ann_id 51"),
        ({"sentences": [{"sent": "a"}]}, {}, r'(?s)"sent_id" is missing.*sentences\[0\]'),
        ({"split": None}, {}, '"split" is missing'),
        ({}, {"image_id": 8}, "belongs to no image"),
        ({}, {"bbox": "x"}, r"(?s)not four finite numbers.*annotations\[0\]"),
        ({}, {"segmentation": 5}, "neither polygons nor run lengths"),
        ({}, {"segmentation": {"size": [3, 3], "counts": [9]}}, r"(?s)not as large as its image.*\[40, 60\]"),
        ({}, {"segmentation": [[1, 2]]}, r"(?s)polygon is malformed.*annotations\[0\]"),
        ({}, {"segmentation": {"size": [40, 60], "counts": [9]}}, r"(?s)do not fill.*annotations\[0\]"),
    ],
)
def test_wrong_refer_files_are_named(data, ref, annotation, says):
    files = refer_files(data, ref, annotation)
    with pytest.raises(DataError, match=says):
        ReferReader(*files, data)[0]


def test_an_unknown_split_of_refer(data):
    with pytest.raises(DataError, match=r"(?s)no such split.*'testC'.*train"):
        ReferReader(*refer_files(data), data, split="testC")


@pytest.mark.parametrize("name", ["original_id", "original_img_id"])
def test_mdetr_groups_expressions_by_object(data, name):
    image = {"file_name": "COCO_val2014_000000000007.jpg", **SIZE, name: 7}
    images = [{"id": i, "caption": text, **image} for i, text in enumerate(("dog", "left dog", "cat"))]
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    boxes = [{"id": 90 + i, "image_id": i, "bbox": [1, 2, 3, 4], "segmentation": runs} for i in range(3)]
    boxes[0]["original_id"] = boxes[1]["original_id"] = 50
    path = write(data / "a.json", {"images": images, "annotations": boxes})
    (record,) = all_records(MdetrReferReader(path, data))
    assert [(r.id, r.expressions) for r in record.regions] == [(50, ("dog", "left dog")), (92, ("cat",))]
    assert decode_mask(record.regions[0].mask).sum() == 5
    apart = MdetrReferReader(path, data, per_expression=True)[0]
    assert [r.id for r in apart.regions] == [90, 91, 92]


def test_uninext(data):
    common = {"bbox": [1, 2, 3, 4], **SIZE}
    body = {
        "train": [
            {"image_id": 7, "data_source": "vg", "expressions": ["dog"], **common},
            {"image_id": 7, "data_source": "coco", "expressions": ["a", "", "b"], "category_id": 3, **common},
            {"image_id": 7, "data_source": "coco", "expressions": ["c"], "mask": SQUARE, **common},
        ]
    }
    path = write(data / "instances.json", body)
    (record,) = all_records(UninextReferReader(path, data, source="coco", per_expression=True))
    assert [(r.id, r.expressions) for r in record.regions] == [(0, ("a",)), (2, ("b",)), (3, ("c",))]
    assert record.image == str(data / "train2014" / "COCO_train2014_000000000007.jpg")
    assert [r.mask is None for r in record.regions] == [True, True, False]
    (record,) = all_records(UninextReferReader(path, data, source="vg"))
    assert record.image == str(data / "VG_100K_2" / "7.jpg")
    assert len(UninextReferReader(path, data)) == 2


# conversations and captions


def llava(folder, *turns, **change):
    turns = turns or (("human", "<image>\nWhat is it?"), ("gpt", "A dog."))
    body = {"id": "a", "image": "val2017/000000000007.jpg"} | change
    body["conversations"] = [{"from": role, "value": text} for role, text in turns]
    return write(folder / "llava.json", [body, {"id": "b", "conversations": []}])


def test_llava(data):
    for text in ("<image>\nWhat is it?", "What is it?\n<image>", "<image>What is it?"):
        reader = LlavaReader(llava(data, ("human", text), ("gpt", "A dog.")), data)
        (record,) = all_records(reader)
        assert record.conversations == ((Turn("user", "What is it?"), Turn("assistant", "A dog.")),)
        assert (record.image_id, record.height, reader.without_image) == ("a", HEIGHT, 1)


@pytest.mark.fault("R12")
@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([("gpt", "a"), ("human", "b")], r"(?s)wrong side.*\[0\]: conversations\[0\].*gpt"),
        ([("human", "a")], "does not end with an answer"),
        ([("human", None), ("gpt", "b")], '"value" is missing'),
    ],
)
def test_wrong_conversations_are_named(data, turns, says):
    with pytest.raises(DataError, match=says):
        LlavaReader(llava(data, *turns), data)


def test_coco_captions(data):
    body = {
        "images": [{"id": i, "file_name": "000000000007.jpg", **SIZE} for i in (7, 8)],
        "annotations": [{"image_id": 7, "caption": text} for text in ("a dog", " ", "dog\nrun")],
    }
    reader = CocoCaptionsReader(write(data / "captions.json", body), data)
    (record,) = all_records(reader)
    assert record.captions == ("a dog", "dog\nrun")
    assert (reader.blank, reader.without_caption) == (1, [8])
    body["annotations"][0]["image_id"] = 9
    with pytest.raises(DataError, match=r"(?s)belongs to no image.*annotations\[0\]"):
        CocoCaptionsReader(write(data / "captions.json", body), data)


def test_karpathy(data):
    image = {"filepath": "val2014", "filename": "COCO_val2014_000000000007.jpg"}
    images = [
        {"cocoid": i, "split": split, "sentences": [{"raw": split}], **image}
        for i, split in enumerate(("train", "restval", "val", "test"))
    ]
    path = write(data / "dataset_coco.json", {"images": images})
    assert [record.image_id for record in all_records(KarpathyReader(path, data))] == [0, 1]
    assert KarpathyReader(path, data, splits=("val",))[0].captions == ("val",)
    images[2]["split"] = "dev"
    with pytest.raises(DataError, match=r"(?s)Unknown split.*images\[2\].*'dev'"):
        KarpathyReader(write(path, {"images": images}), data)


# images and layouts


def test_images_have_several_names(data):
    assert coco_names("COCO_val2014_000000000007_3.jpg")[1] == "val2014/COCO_val2014_000000000007.jpg"
    finder = ImageFinder([data / "nowhere", data], "a.json")
    old = finder.find(coco_names("COCO_val2014_000000000007_3.jpg"))
    assert finder.path(old) == str(data / "val2014" / "COCO_val2014_000000000007.jpg")
    new = finder.find(coco_names("000000000007.jpg"))
    assert finder.path(new) == str(data / "val2017" / "000000000007.jpg")
    finder.require_found()
    with pytest.raises(DataError, match="folder of the images does not exist"):
        ImageFinder(data / "nowhere", "a.json")


@pytest.mark.parametrize("name", ["../7.jpg", "/etc/passwd", "a/../../7.jpg"])
def test_names_do_not_leave_the_folder(data, name):
    with pytest.raises(DataError, match="leaves its folder"):
        GritReader(grit(data, image={"file_name": name}), data / "val2017")


def test_named_sets_say_which_file_to_put_where(data):
    with pytest.raises(DataError) as caught:
        open_dataset("ln_coco_val", data)
    message = str(caught.value)
    assert str(data / "localized_narratives" / "coco_val_localized_narratives.jsonl") in message
    assert "annotations/coco_val_localized_narratives.jsonl" in message
    lines(data / "coco_train_localized_narratives-00000-of-00004.jsonl", narrative())
    with pytest.raises(DataError, match="00001-of-00004") as caught:
        open_dataset("ln_coco_train", data)
    assert "00000-of" not in str(caught.value).split("fix:")[0]


def test_every_named_set_of_texts_has_an_openable_layout(tmp_path):
    for name in TEXT_DATASETS:
        with pytest.raises(DataError, match=f"The annotations of {name} are not there"):
            open_dataset(name, tmp_path)
        assert [category.name for category in categories_of([name])] == ["object"]


@pytest.mark.parametrize(
    ("name", "images", "what", "count"),
    [
        ("vg_densecap_train", 8, "regions", 111),
        ("vg_densecap_test", 3, "regions", 43),
        ("visual_genome_train", 8, "regions", 111),
        ("visual_genome_val", 2, "regions", 22),
        ("visual_genome_test", 3, "regions", 43),
        ("ln_coco_val", 13, "narratives", 17),
        ("refcoco_unc_train", 6, "expressions", 43),
        ("refcoco_unc_validation", 3, "expressions", 21),
        ("refcoco_unc_testA", 2, "expressions", 9),
        ("refcoco_unc_testB", 2, "expressions", 20),
        ("coco_captions_train", 9, "captions", 45),
        ("coco_captions_val", 2, "captions", 10),
        ("llava_instruct", 13, "turns", 66),
    ],
)
def test_real_files(coco_mini, name, images, what, count):
    records = all_records(open_dataset(name, coco_mini))
    found = {
        "regions": [region for record in records for region in record.regions],
        "narratives": [narrative for record in records for narrative in record.narratives],
        "captions": [caption for record in records for caption in record.captions],
        "turns": [turn for record in records for talk in record.conversations for turn in talk],
    }
    found["expressions"] = [text for region in found["regions"] for text in region.expressions]
    assert (len(records), len(found[what])) == (images, count)


@pytest.mark.parametrize("split", ["train", "validation", "testA", "testB"])
@pytest.mark.parametrize("per_expression", [False, True])
def test_refer_and_mdetr_agree(coco_mini, split, per_expression):
    by_image = []
    for name in (f"refcoco_unc_{split}", f"refer_refcoco_unc_{split}"):
        reader = open_dataset(name, coco_mini, per_expression=per_expression)
        records = {record.image_id: record for record in all_records(reader)}
        by_image.append({i: sorted(record.regions, key=lambda r: r.id) for i, record in records.items()})
    assert by_image[0] == by_image[1]


def test_raw_and_grit_files_agree(coco_mini):
    for split in ("train", "test"):
        raw, converted = (open_dataset(f"{name}_{split}", coco_mini) for name in ("visual_genome", "vg_densecap"))
        for one, other in zip(all_records(raw), all_records(converted), strict=True):
            assert one == other
