"""Records go into a file and come out the same; what is no record is refused with its place."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import (
    FORMAT,
    Category,
    Narrative,
    Question,
    Record,
    Region,
    TimedWord,
    Turn,
    box_of_mask,
    decode_mask,
    encode_mask,
    read_logits,
    read_records,
    record_from_json,
    record_to_json,
    write_records,
)
from locap.utils.errors import DataError

MASK = np.zeros((4, 5), bool)
MASK[1:3, 2:4] = True
CATEGORIES = [Category(0, "tree-merged", is_thing=False, color=(1, 2, 3)), Category(7, "cat")]
REGION = Region(
    id=3,
    category_id=7,
    mask=encode_mask(MASK),
    ignore=encode_mask(~MASK),
    logits={"file": "logits/b.png", "index": 1, "count": 2},
    box_xyxy=(2.0, 1.0, 4.0, 3.0),
    box_size=(2.0, 2.0000000000000004),
    points=((1.5, 2.0),),
    keypoints=((1.0, 2.0, 2), (0.0, 0.0, 0)),
    captions=("a cat [sic]", "une chaise à côté", ""),
    phrases=("cat",),
    expressions=("the left cat",),
    attributes={"colour": "red"},
    questions=(Question("Is it a cat?", (("yes", 1.0), ("no", -1.0)), "positive"), Question("Is it?", ())),
    is_crowd=True,
    area=4,
    score=0.0,
    caption_score=-1.25,
)
RECORD = Record(
    image_id="a/b.jpg",
    height=4,
    width=5,
    image="a/b.jpg",
    regions=[REGION, Region(id=0, category_id=0)],
    id_map="b.png",
    instances=[REGION],
    semantic=[Region(id=1, category_id=7, mask=encode_mask(MASK))],
    captions=("two things",),
    narratives=(
        Narrative("a cat", (TimedWord("a", 0.0, 0.5), TimedWord("", 0.5, 1.0)), (((1.0, 2.0, 0.0), (2.0, 2.0, 0.1)),)),
        Narrative(""),
    ),
    conversations=((Turn("user", "What is <this>?", (3, 0)), Turn("assistant", "")),),
)


def test_every_field_survives_the_file(tmp_path):
    path = write_records(tmp_path / "r.json", [RECORD, Record(5, 1, 1)], CATEGORIES, {"data": "x"})
    records, categories, meta = read_records(path)
    assert records == [RECORD, Record(5, 1, 1)]
    assert categories == CATEGORIES
    assert meta == {"data": "x"}
    assert isinstance(records[0].image_id, str)
    assert isinstance(records[1].image_id, int)


def test_every_field_is_tried_above():
    """A field added later must be added to REGION or RECORD as well."""
    for example, empty in ((REGION, Region()), (RECORD, Record("", 0, 0)), (CATEGORIES[0], Category(1, ""))):
        assert [n for n in example.__dataclass_fields__ if getattr(example, n) == getattr(empty, n)] == []


def test_what_is_empty_is_not_written():
    assert record_to_json(Record(5, 1, 2, regions=[Region(id=1)])) == {
        "image_id": 5, "height": 1, "width": 2, "image": None, "regions": [{"id": 1}]
    }  # fmt: skip


def test_an_id_map_in_memory_becomes_masks_and_pixels_become_nothing(tmp_path):
    ids = np.where(MASK, 3, 1).astype(np.int32)
    record = Record(1, 4, 5, np.zeros((4, 5, 3), np.uint8), [Region(id=3), Region(id=1)], id_map=ids)
    (read,), _, _ = read_records(write_records(tmp_path / "r.json", [record]))
    assert read.image is None
    assert np.array_equal(read.read_id_map(), ids)
    assert np.array_equal(read.read_mask(read.regions[0]), MASK)


def test_the_name_beside_a_category_is_for_people(tmp_path):
    path = write_records(tmp_path / "r.json", [RECORD], CATEGORIES)
    body = json.loads(path.read_text())
    assert [region["category_name"] for region in body["records"][0]["regions"]] == ["cat", "tree-merged"]
    body["records"][0]["regions"][0]["category_name"] = "dog"
    path.write_text(json.dumps(body))
    assert read_records(path)[0] == [RECORD]


def test_masks_and_boxes():
    assert np.array_equal(decode_mask(encode_mask(MASK)), MASK)
    assert box_of_mask(MASK) == (2.0, 1.0, 4.0, 3.0)
    assert box_of_mask(np.zeros((3, 3), bool)) == (0.0, 0.0, 0.0, 0.0)


def test_soft_masks_are_slices_of_their_file(tmp_path):
    values = np.arange(256, dtype=np.uint8)[:40].reshape(8, 5) * 6
    Image.fromarray(values).save(tmp_path / "a.png")
    stack = [Region(i, logits={"file": str(tmp_path / "a.png"), "index": i, "count": 2}) for i in (1, 0)]
    lower, upper = read_logits(stack, 4, 5)
    np.testing.assert_array_equal(np.concatenate([upper, lower]), (values.astype(np.float32) - 128) / 8)
    with pytest.raises(DataError, match="do not fill their file"):
        read_logits(stack, 3, 5)


@pytest.mark.parametrize("change", [{"index": 2}, {"index": -1}, {"index": "0"}, {"count": None}, {"file": 3}])
def test_malformed_references_to_soft_masks_are_refused(change):
    with pytest.raises(DataError, match="Not a soft mask"):
        read_logits([Region(logits={"file": "a.png", "index": 0, "count": 2} | change)], 4, 5)


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": None}, "image_id must be int or str, got None"),
        ({"height": "4"}, "height must be int, got '4'"),
        ({"height": True}, "height must be int, got True"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
        ({"image": 5}, "image must be str, got 5"),
        ({"captions": "two things"}, "captions must be a list of texts, got 'two things'"),
        ({"regions": [{"caption": "x"}]}, "unexpected keyword argument 'caption'"),
        ({"regions": [{"captions": "a cat"}]}, "captions must be a list of texts, got 'a cat'"),
        ({"regions": [{"captions": [None]}]}, "captions must be a list of texts"),
        ({"regions": [{"box_xyxy": [1, 2, 3]}]}, "box_xyxy must be four finite numbers"),
        ({"regions": [{"box_xyxy": ["a", 2, 3, 4]}]}, "Not a record"),
        ({"regions": [{"box_size": [1, None]}]}, "Not a record"),
        ({"regions": [{"box_size": [1]}]}, "box_size must be two finite numbers"),
        ({"regions": [{"category_id": "cat"}]}, "category_id must be int, got 'cat'"),
        ({"regions": [{"score": "high"}]}, "score must be int or float, got 'high'"),
        ({"regions": [{"mask": "abc"}]}, "mask must be dict, got 'abc'"),
        ({"regions": [{"points": [[1, 2, 3]]}]}, "points must be lists of 2 finite numbers"),
        ({"regions": [{"keypoints": [[1, 2]]}]}, "keypoints must be lists of 3 finite numbers"),
        ({"regions": [{"questions": [{"text": "Is it?"}]}]}, "'choices' is missing"),
        ({"regions": [{"questions": [{"text": 1, "choices": []}]}]}, "the texts of a question must be a list of texts"),
        ({"regions": [{"questions": [{"text": "", "choices": [["a", "1"]]}]}]}, "[text, finite number]"),
        ({"regions": [{"questions": [{"text": "", "choices": [["a"]]}]}]}, "Not a record"),
        ({"regions": ["cat"]}, "Not a record"),
        ({"regions": 5}, "Not a record"),
        ({"narratives": [{}]}, "'caption' is missing"),
        ({"narratives": [{"caption": "x", "words": [{"text": "a"}]}]}, "missing 2 required positional arguments"),
        ({"narratives": [{"caption": 3}]}, "caption must be a list of texts"),
        (
            {"narratives": [{"caption": "x", "words": [{"text": "a", "start": "0", "end": 1}]}]},
            "start and end of a word must be finite numbers, got ('0', 1)",
        ),
        ({"narratives": [{"caption": "x", "words": [{"text": 1, "start": 0, "end": 1}]}]}, "text must be a list"),
        ({"conversations": [[{"text": "x"}]]}, "missing 1 required positional argument: 'role'"),
    ],
)
def test_a_malformed_record_is_refused_with_its_place(change, message):
    body = {"image_id": 1, "height": 4, "width": 5} | change
    with pytest.raises(DataError) as caught:
        record_from_json(body, where="file.json: records[7]")
    assert message in str(caught.value)
    assert "where:   file.json: records[7]" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "Not a record file"),
        ({"records": []}, f'with "format": "{FORMAT}"'),
        ({"format": FORMAT, "records": {}}, '"records" of the record file is not a list'),
        ({"format": FORMAT, "meta": []}, '"meta" of the record file is not a dict'),
        (
            {"format": FORMAT, "records": [{"height": 4, "width": 5}]},
            "missing 1 required positional argument: 'image_id'",
        ),
        ({"format": FORMAT, "categories": [{"name": "cat"}]}, "Not a category"),
        ({"format": FORMAT, "categories": [{"id": "1", "name": "cat"}]}, "id must be int, got '1'"),
        ({"format": FORMAT, "categories": [3]}, "categories[0]"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, document, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = write_records(tmp_path / "r.json", [RECORD])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(path, [Record(1, 1, 1, regions=[Region(score=float("nan"))])])
    assert read_records(path)[0] == [RECORD]
