"""Files of one's own: records, COCO-style JSON and LabelMe are told by content, read, and refused with a place."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locap.datasets.flattening import Flattened, flatten
from locap.datasets.prepare.toy import write_toy
from locap.datasets.readers import categories_of, open_dataset, open_expressions
from locap.datasets.readers.own_files import names_file
from locap.datasets.readers.record_file import lines_of
from locap.datasets.records import Category, Record, Region, decode_mask, encode_mask, write_records
from locap.utils.errors import DataError, UsageError

NAMES = ("mine.json", "no/such.jsonl", "shapes_val", "pipe:cat mine.json", "a/b.tar")
SQUARE = [2.0, 3.0, 10.0, 3.0, 10.0, 9.0, 2.0, 9.0]  # 8 wide, 6 high, at (2, 3)


@pytest.fixture
def own(tmp_path) -> SimpleNamespace:
    """A COCO-style document of two 32 x 24 images, and how to save it."""
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        Image.fromarray(np.full((24, 32, 3), 60 * number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png", "height": 24, "width": 32} for number in (1, 2)]
    annotations = [
        {"id": 7, "image_id": 1, "bbox": [2, 3, 8, 6], "segmentation": [SQUARE], "caption": "a red mug"},
        {"id": 8, "image_id": 1, "bbox": [20.5, 3, 5, 6], "caption": ["one", "two"], "expression": "the left one"},
    ]
    document = {"images": images, "annotations": annotations}

    def save(name: str = "mine.json") -> str:
        (tmp_path / name).write_text(json.dumps(document), encoding="utf-8")
        return str(tmp_path / name)

    return SimpleNamespace(document=document, images=images, annotations=annotations, save=save, folder=tmp_path)


def refused(path: str, *texts: str, kind: type[Exception] = DataError) -> None:
    with pytest.raises(kind) as caught:
        open_dataset(path)
    for text in texts:
        assert text in str(caught.value)


class TestCoco:
    def test_the_smallest_file(self, own):
        reader = open_dataset(own.save())
        record = reader[0]
        assert (len(reader), record.image_id, record.height, record.width) == (2, 1, 24, 32)
        assert [category.name for category in reader.categories] == ["object"]
        mug, other = record.regions
        assert (mug.id, mug.captions, mug.category_id) == (7, ("a red mug",), 1)
        assert mug.box_xyxy == (2.0, 3.0, 10.0, 9.0)
        assert decode_mask(mug.mask)[3:9, 2:10].all()
        assert decode_mask(mug.mask).sum() == 48
        assert other.captions == ("one", "two")
        assert other.expressions == ("the left one",)
        assert reader[1].regions == []
        assert record.read_image().shape == (24, 32, 3)
        assert reader.unmasked == [(1, 8)]

    @pytest.mark.parametrize("text", [True, False], ids=["text", "numbers"])
    def test_run_lengths_of_either_kind(self, own, text):
        mask = np.zeros((24, 32), bool)
        mask[4:7, 5:9] = True
        runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0, append=1)), prepend=0).tolist()
        own.annotations[0]["segmentation"] = encode_mask(mask) if text else {"size": [24, 32], "counts": runs}
        assert (decode_mask(open_dataset(own.save())[0].regions[0].mask) == mask).all()

    def test_categories_are_those_of_the_file(self, own):
        own.document["categories"] = [{"id": 5, "name": "sky", "isthing": 0}, {"id": 3, "name": "mug"}]
        own.annotations[0]["category_id"] = 3
        path = own.save()
        assert [category.name for category in categories_of([path])] == ["mug", "sky"]  # things first
        assert open_dataset(path)[0].regions[0].category_id == 3
        own.annotations[0]["category_id"] = 4
        refused(own.save(), "unknown category", "annotations[0] (id 7)", "value:   4", "3, 5")

    def test_zero_is_an_id_and_a_score(self, own):
        own.document["categories"] = [{"id": 0, "name": "mug"}]
        own.annotations[0].update(id=0, category_id=0, score=0)
        region = open_dataset(own.save())[0].regions[0]
        assert (region.id, region.category_id, region.score) == (0, 0, 0)

    def test_captions_of_the_whole_image(self, own):
        own.images[0]["captions"] = ["first"]
        own.annotations.append({"id": 9, "image_id": 1, "caption": "second"})
        record = open_dataset(own.save())[0]
        assert record.captions == ("first", "second")
        assert len(record.regions) == 2

    @pytest.mark.parametrize(
        ("change", "texts"),
        [
            ({"bbox": [1, 2, 3]}, ("A box is not four finite numbers.", "(id 7)")),
            ({"bbox": [1, 2, 0, 3], "segmentation": None}, ("A box has no area.", "(id 7)")),
            ({"segmentation": [[1, 2, 3, 4]]}, ("A polygon is malformed.", "annotations[0] (id 7)")),
            ({"segmentation": {"size": [4, 4], "counts": [16]}}, ("another size than its image", "[24, 32]")),
            ({"caption": 5}, ('"caption" is of the wrong type.', "a text or a list of texts")),
            ({"image_id": 9}, ("belongs to no image", "value:   9")),
            ({"id": 8}, ("Two annotations have the same id.", "annotations[1] (id 8)")),
            ({"id": "x"}, ('"id" is missing or of the wrong type.', "annotations[0]")),
            ({"bbox": None, "segmentation": [], "caption": " "}, ("neither place nor caption", "(id 7)")),
            ({"keypoints": [1, 2]}, ("Keypoints are not numbers.",)),
        ],
    )
    def test_what_is_wrong_is_told_with_its_place(self, own, change, texts):
        own.annotations[0].update(change)
        refused(own.save(), "mine.json", *texts)

    def test_missing_images_are_told_with_the_folders_tried(self, own):
        own.images[1]["file_name"] = "gone.png"
        refused(own.save(), "1 of 2 images named by the file are not there.", "gone.png", "/images or", "DATASETS.ROOT")
        own.images[1]["file_name"] = "../../etc/passwd"
        refused(own.save(), "leaves its folder", "images[1]", "../../etc/passwd")

    def test_other_files_are_not_taken_for_data(self, own):
        (own.folder / "else.json").write_text('{"a": 1}')
        refused(str(own.folder / "else.json"), "not known to be a data set", "'a'", '"images" and "annotations"')
        refused(str(own.folder / "min.json"), "does not exist")


class TestRecords:
    def records(self) -> list[Record]:
        mask = np.zeros((24, 32), bool)
        mask[2:5, 3:9] = True
        said = Region(1, 3, encode_mask(mask), captions=("a mug",))
        return [Record(1, 24, 32, "1.png", [said]), Record("b", 24, 32, "images/2.png", [Region(2)])]

    @pytest.mark.parametrize("lines", [True, False])
    def test_they_are_read(self, own, lines):
        records, categories = self.records(), [Category(3, "mug")]
        path = own.folder / ("r.jsonl" if lines else "r.json")
        if lines:
            write_lines(path, records, categories)
        else:
            write_records(path, records, categories)
        reader = open_dataset(str(path))
        assert (len(reader), [c.name for c in reader.categories]) == (2, ["mug"])
        assert reader[0].regions == records[0].regions
        assert reader[-1].image == str(own.folder / "images" / "2.png")
        assert reader.unmasked == [("b", 2)]
        with pytest.raises(IndexError):
            reader[2]

    @pytest.mark.parametrize(
        ("body", "texts"),
        [
            ({"image_id": 2, "height": 24, "width": 32, "image": "1.png", "colour": 1}, ("line 3", "colour")),
            ({"image_id": 2, "height": 24, "width": 32}, ("line 3 (image_id 2)", "The record has no image.")),
            ({"image_id": 1, "height": 24, "width": 32, "image": "1.png"}, ("Two records have the same image_id.",)),
            ({"format": "locap-records/1"}, ("Only the first line may describe the file.", "line 3")),
            ([1], ("A line is not a record.", "line 3")),
            (
                {"image_id": 2, "height": 9, "width": 9, "image": "1.png", "regions": [{"id": 4, "category_id": 8}]},
                ("unknown category", "region 4", "list it in the categories of the file"),
            ),
        ],
    )
    def test_a_wrong_line_is_told_by_its_number(self, own, body, texts):
        path = own.folder / "r.jsonl"
        write_lines(path, self.records()[:1], [Category(3, "mug")])
        with path.open("a") as file:
            file.write(json.dumps(body) + "\n")
        refused(str(path), *texts)


def write_lines(path: Path, records: list[Record], categories: list[Category]) -> None:
    path.write_text("".join(json.dumps(body) + "\n" for body in lines_of(records, categories)))


class TestLabelMe:
    def save(self, own, shapes: list[dict[str, Any]], **changes: Any) -> str:
        folder = own.folder / "labels"
        folder.mkdir(exist_ok=True)
        body = {"imagePath": "../images/1.png", "imageHeight": 24, "imageWidth": 32, "shapes": shapes} | changes
        (folder / "one.json").write_text(json.dumps(body))
        return str(folder)

    def test_shapes_become_regions(self, own):
        buffer = io.BytesIO()
        Image.fromarray(np.array([[1, 0], [1, 1]], np.uint8)).save(buffer, "PNG")
        png = base64.b64encode(buffer.getvalue()).decode()
        square = [[2, 3], [10, 3], [10, 9], [2, 9]]
        shapes = [
            {"label": "mug", "points": square, "shape_type": "polygon", "description": "a red mug"},
            {"label": "cup", "points": [[9, 8], [4, 5]], "shape_type": "rectangle"},
            {"label": "cup", "points": [[3, 4]], "shape_type": "point"},
            {"label": "cup", "points": [[16, 12], [16, 15]], "shape_type": "circle"},
            {"label": "mug", "points": [[5, 6], [6, 7]], "shape_type": "mask", "mask": png, "group_id": 1},
            {"label": "mug", "points": square, "shape_type": "polygon", "group_id": 1},
            {"label": "mug", "points": [[0, 0], [1, 1]], "shape_type": "line"},
        ]
        reader = open_dataset(self.save(own, shapes, imagePath="1.png"), own.folder / "images")
        regions = reader[0].regions
        assert [category.name for category in reader.categories] == ["cup", "mug"]
        assert [(r.id, r.category_id) for r in regions] == [(1, 2), (2, 1), (3, 1), (4, 1), (5, 2)]
        assert regions[0].captions == ("a red mug",)
        assert decode_mask(regions[0].mask).sum() == 48
        assert regions[1].box_xyxy == (4.0, 5.0, 9.0, 8.0)
        assert regions[2].points == ((3, 4),)
        assert decode_mask(regions[3].mask).sum() == pytest.approx(np.pi * 9, abs=4)
        assert decode_mask(regions[4].mask).sum() == 48  # of the mask all lies in the polygon
        assert reader.skipped == {"line": 1}

    @pytest.mark.parametrize(
        ("shape", "texts"),
        [
            ({"label": "a", "points": [[1, 2]], "shape_type": "rectangle"}, ("another number of points", "allowed: 2")),
            ({"label": "a", "points": [[1, 2]], "shape_type": "star"}, ("Unknown kind of shape.", "rectangle, circle")),
            ({"points": [[1, 2]], "shape_type": "point"}, ('"label" is missing', "shapes[0]")),
            ({"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "??"}, ("no base64 PNG",)),
            ({"label": "a", "points": [[1, "x"]], "shape_type": "point"}, ("not pairs of numbers", "one.json")),
        ],
    )
    def test_what_is_wrong_is_told_with_its_place(self, own, shape, texts):
        folder = self.save(own, [shape], imagePath="1.png")
        with pytest.raises(DataError) as caught:
            open_dataset(folder, own.folder / "images")
        for text in texts:
            assert text in str(caught.value)

    def test_images_in_a_folder_beside(self, own):
        assert open_dataset(self.save(own, []))[0].image == str(own.folder / "images" / "1.png")
        refused(self.save(own, [], imagePath="..\\images\\9.png"), "1 of 1 images named by the file are not there.")
        refused(self.save(own, [], imagePath="/etc/passwd"), "leaves its folder", "one.json", "/etc/passwd")


def test_names(own, tmp_path, monkeypatch):
    own.save()
    monkeypatch.chdir(tmp_path / "images")
    assert [name for name in NAMES if names_file(name)] == ["mine.json", "no/such.jsonl"]
    assert len(open_dataset("mine.json", tmp_path)) == 2  # below the folder of the data sets
    refused("mine", "Unknown data set.", ".json or .jsonl file", kind=UsageError)


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_of_the_same_names_belong_to_their_own_split(tmp_path, split):
    toy = write_toy(tmp_path)
    assert (toy / "images" / "train" / "000000000001.png").is_file()
    assert (toy / "images" / "val" / "000000000001.png").is_file()
    reader = open_dataset(f"toy/annotations/pix2cap_{split}.json", tmp_path)
    record = reader[0]
    assert Path(record.image) == toy / "images" / split / "000000000001.png"
    ids, counts = np.unique(record.read_id_map(), return_counts=True)
    assert dict(zip(ids, counts, strict=True)) == {region.id: region.area for region in record.regions}


def test_expressions_are_taken_one_by_one(own):
    own.annotations[0]["expression"] = ["the mug", "the red thing"]
    regions = open_expressions(own.save())[0].regions
    assert [(region.id, region.expressions) for region in regions] == [
        (1, ("the mug",)),
        (2, ("the red thing",)),
        (3, ("the left one",)),
    ]


class TestFlattening:
    def test_the_smallest_lies_on_top(self):
        large, small = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
        large[:6], small[4:8, :2] = True, True
        regions = [
            Region(9, 1, encode_mask(small)),
            Region(4, 1, encode_mask(large)),
            Region(5, 1, box_xyxy=(0, 0, 1, 1)),
        ]
        record, changed = flatten(Record(1, 8, 8, None, regions))
        assert changed == 2  # the large one is covered in part, the box is no mask
        assert [(region.id, region.area, region.box_xyxy) for region in record.regions] == [
            (9, 8, (0.0, 4.0, 2.0, 8.0)),
            (4, 44, (0.0, 0.0, 8.0, 6.0)),
        ]
        assert (record.id_map[small] == 9).all()

    @pytest.mark.parametrize("ids", [(3, 3), (0, 1), (2**31 + 5, 7)])
    def test_ids_that_do_not_fit_are_counted_anew(self, ids):
        halves = np.zeros((2, 4, 4), bool)
        halves[0, :2], halves[1, 2:] = True, True
        regions = [Region(i, 1, encode_mask(half)) for i, half in zip(ids, halves, strict=True)]
        record, _ = flatten(Record(1, 4, 4, None, regions))
        assert [region.id for region in record.regions] == [1, 2]
        assert sorted(np.unique(record.id_map).tolist()) == [1, 2]

    def test_regions_without_masks_are_refused(self, own):
        with pytest.raises(DataError, match="learns masks, and 1 regions of the file have none") as caught:
            Flattened(open_dataset(own.save()))
        assert "image 1, region 8" in str(caught.value)
        assert "pixelllm_model" in str(caught.value)
