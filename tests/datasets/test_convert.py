"""Annotations from one format to another: what a format holds comes back, and what it cannot hold is counted."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from locap.datasets.forms import FORMS
from locap.datasets.prepare import convert, semantic_maps
from locap.datasets.readers import open_dataset
from locap.datasets.readers.own_files import guess_form, open_file
from locap.datasets.records import Category, Narrative, Record, Region, decode_mask, encode_mask
from locap.datasets.writers import WRITERS, Naming, kept
from locap.utils.errors import DataError, UsageError
from locap.utils.untrusted import read_grey, read_id_map

HEIGHT, WIDTH = 12, 16
CATEGORIES = (Category(3, "mug", True, (1, 2, 3)), Category(40, "cup"), Category(7, "sky", False))
texts = st.lists(st.text("ab é", min_size=1, max_size=8).filter(str.strip), max_size=2).map(tuple)


@st.composite
def boxes(draw) -> tuple[float, ...]:
    x0, y0 = draw(st.integers(0, WIDTH - 2)) / 2, draw(st.integers(0, HEIGHT - 2)) / 2
    return x0, y0, x0 + draw(st.integers(1, 8)) / 2, y0 + draw(st.integers(1, 8)) / 2


@st.composite
def masks(draw) -> dict:
    x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + draw(st.integers(0, 6)), x : x + draw(st.integers(1, 6))] = True
    mask[0, 0] ^= draw(st.booleans())
    return encode_mask(mask)


regions = st.builds(
    Region,
    id=st.integers(1, 4),
    category_id=st.sampled_from([None, 3, 7, 40]),
    mask=st.none() | masks(),
    box_xyxy=st.none() | boxes(),
    points=st.just(()) | st.just(((1.0, 2.5), (3.0, 4.0))),
    keypoints=st.just(()) | st.just(((1, 2, 2), (0, 0, 0))),
    captions=texts,
    phrases=texts,
    expressions=texts,
    attributes=st.sampled_from([{}, {"colour": "red"}]),
    is_crowd=st.booleans(),
    area=st.none() | st.integers(1, 50).map(float),
    score=st.none() | st.just(0.5),
)
records = st.lists(
    st.builds(
        lambda found, captions, told: Record(0, HEIGHT, WIDTH, None, found, captions=captions, narratives=told),
        st.lists(regions, max_size=4),
        texts,
        st.just(()) | st.just((Narrative("hello"),)),
    ),
    min_size=1,
    max_size=3,
)


def image(folder: Path, name: str) -> str:
    path = folder / "images" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return str(path)


def compared(record: Record, form: str, categories) -> dict:
    """What of a record a format does not make anew: ids are, and areas where there were none."""
    names = {category.id: category.name for category in categories}
    if record.id_map is not None:
        ids = record.read_id_map()
        record.regions = [replace(region, mask=encode_mask(ids == region.id)) for region in record.regions]
    found = []
    for region in record.regions:
        mask = None if region.mask is None else decode_mask(region.mask).tobytes()
        named = names.get(region.category_id, "object") if form == "labelme" else region.category_id
        named = None if form == "vg" else named
        body = replace(region, id=0, category_id=None, mask=None, area=None, box_size=None)
        found.append((named, mask, body))
    return {"size": (record.height, record.width), "captions": record.captions, "regions": found} | {
        "narratives": record.narratives
    }


@pytest.mark.parametrize("form", sorted(FORMS))
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(made=records, text_ids=st.booleans())
def test_what_a_format_holds_comes_back(form, made, text_ids):
    writer, left_out = WRITERS[form], Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, record in enumerate(made):
            record.image_id = f"p{number}" if text_ids else number + 5
            record.image = image(folder, str(number))
        held = [kept(record, writer.holds, left_out) for record in made]
        naming = Naming([folder], numbers=writer.numbers)
        path = writer.write(folder / f"out{writer.suffix}", held, CATEGORIES, naming)
        assert guess_form(path) in (form, *(("panoptic",) if form == "pix2cap" else ()))
        if form == "pix2cap" and not any(record.regions for record in held):
            with pytest.raises(DataError, match="No segment has a description"):
                open_file(path, images=folder, form=form)
            return
        reader = open_file(path, images=folder, form=form)
        assert [compared(reader[k], form, reader.categories) for k in range(len(reader))] == [
            compared(record, form, CATEGORIES) for record in held
        ]
        regions = sum(len(record.regions) for record in held)
        lost = sum(n for what, n in left_out.items() if what.startswith("regions "))
        assert regions + lost >= sum(len(record.regions) for record in made)


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def same_masks(first: Record, second: Record) -> bool:
    return len(first.regions) == len(second.regions) and all(
        (first.read_mask(a) == second.read_mask(b)).all() for a, b in zip(first.regions, second.regions, strict=True)
    )


class TestRealFiles:
    def back_and_forth(self, tmp_path, source: Path, form: str, through: str = "jsonl"):
        """Convert a file to records and back; returns readers of the first and the last."""
        middle = tmp_path / f"middle{WRITERS[through].suffix}"
        last = tmp_path / "last" / f"last{WRITERS[form].suffix}"
        convert.run(parse(source, "--to", through, "--output", middle, "--copy-images"))
        convert.run(parse(middle, "--to", form, "--output", last, "--images", tmp_path / "images"))
        return open_file(source), open_file(last, images=tmp_path / "images")

    def test_pix2cap(self, coco_mini, tmp_path):
        source = coco_mini / "annotations" / "pix2cap_coco_val.json"
        first, last = self.back_and_forth(tmp_path, source, "pix2cap")
        assert [category.id for category in first.categories] == [category.id for category in last.categories]
        for k in range(len(first)):
            assert first[k].regions == last[k].regions
            assert (first[k].read_id_map() == last[k].read_id_map()).all()

    def test_instances(self, coco_mini, tmp_path, capsys):
        source = coco_mini / "annotations" / "instances.json"
        first, last = self.back_and_forth(tmp_path, source, "coco")
        assert sum(len(first[k].regions) for k in range(13)) == 119
        for k in range(len(first)):
            assert first[k].regions == last[k].regions
        assert "not in" not in capsys.readouterr().out

    def test_visual_genome(self, coco_mini, tmp_path):
        source = coco_mini / "visual_genome" / "region_descriptions.json"
        first, last = self.back_and_forth(tmp_path, source, "vg", "records")
        assert [first[k].regions for k in range(13)] == [last[k].regions for k in range(13)]
        assert sum(len(last[k].regions) for k in range(13)) == 176

    def test_labelme(self, coco_mini, tmp_path):
        source = coco_mini / "annotations" / "instances.json"
        convert.run(parse(source, "--to", "labelme", "--output", tmp_path / "labels", "--copy-images", "--count", 3))
        first, last = open_file(source), open_file(tmp_path / "labels")
        for k in range(3):
            record = next(first[n] for n in range(3) if str(first[n].image_id) == last[k].image_id)
            crowdless = replace(record, regions=[region for region in record.regions if not region.is_crowd])
            assert same_masks(crowdless, last[k])

    def test_a_data_set_by_its_name(self, coco_mini, tmp_path):
        output = tmp_path / "out.jsonl"
        name = "pix2cap_coco_val_with_sem_seg"
        assert convert.run(parse(name, "--root", coco_mini, "--to", "jsonl", "--output", output)) == 0
        reader = open_dataset(str(output), coco_mini / "val2017")
        assert len(reader) == 13
        assert len(reader.categories) == 133
        assert sum(len(reader[k].regions) for k in range(13)) == 94

    def test_semantic_pngs(self, coco_mini, tmp_path):
        (tmp_path / "annotations").symlink_to(coco_mini / "annotations")
        (tmp_path / "panoptic_val2017").symlink_to(coco_mini / "panoptic_val2017")
        assert semantic_maps.prepare(tmp_path, "val2017", workers=2) == 13
        assert semantic_maps.prepare(tmp_path, "val2017") == 0  # they are there
        record = open_dataset("coco_2017_val_panoptic", coco_mini)[0]
        index = [category.id for category in open_dataset("coco_2017_val_panoptic", coco_mini).categories].index
        png = read_grey(tmp_path / "panoptic_semseg_val2017" / Path(record.id_map).name)
        ids, expected = read_id_map(record.id_map), np.full(png.shape, 255)
        for region in record.regions:
            expected[ids == region.id] = index(region.category_id)
        assert (png == expected).all()


def test_semantic_map_of_nothing_known():
    ids = np.array([[0, 5], [9, 300]])
    assert semantic_maps.semantic_map(ids, {9: 4, 5: 132}).tolist() == [[255, 132], [4, 255]]
    assert (semantic_maps.semantic_map(ids, {}) == 255).all()


def test_drawn_scenes_get_images(tmp_path, capsys):
    """Pixels in memory are written, and what COCO cannot hold is told."""
    assert (
        convert.run(parse("shapes_val", "--to", "coco", "--output", tmp_path / "x.json", "--count", 2, "--copy-images"))
        == 0
    )
    said = capsys.readouterr().out
    assert "2 images are in" in said
    assert "  not in coco: 2 narratives\n" in said
    record = open_dataset(str(tmp_path / "x.json"))[0]
    assert record.read_image().shape[:2] == (record.height, record.width)
    assert record.regions[0].captions
    with pytest.raises(DataError, match="not a file of its own") as caught:
        convert.run(parse("shapes_val", "--to", "coco", "--output", tmp_path / "y.json", "--count", 2))
    assert "--copy-images" in str(caught.value)
    assert not (tmp_path / "y.json").exists()


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("--to", "coco", "--output", "a.jsonl"), ("The output has the wrong name.", "FILE.json", "--output a.json")),
        (("--to", "jsonl", "--output", "there.jsonl"), ("not overwritten", "there.jsonl", "another --output")),
        (("--to", "vg", "--output", "new.json"), ("not overwritten", "image_data.json")),
        (("--to", "coco", "--output", "new2.json", "--count", "0"), ("nothing to convert", "--count")),
    ],
)
def test_outputs_that_are_refused(tmp_path, monkeypatch, words, texts):
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").write_text("")
    Path("image_data.json").write_text("")
    with pytest.raises(UsageError) as caught:
        convert.run(parse("shapes_val", *words))
    for text in texts:
        assert text in str(caught.value)


def test_sources_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        convert.run(parse(tmp_path / "no.json", "--to", "coco", "--output", tmp_path / "x.json"))
    with pytest.raises(UsageError, match="Unknown data set"):
        convert.run(parse("no_such_set", "--to", "coco", "--output", tmp_path / "x.json"))
    (tmp_path / "else.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="not known to be a data set"):
        convert.run(parse(tmp_path / "else.json", "--to", "coco", "--output", tmp_path / "x.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["else.json"]


def _pictures(folder: Path, names: list[str]) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (100 + shade, 0, 0)).save(folder / name, "PNG")


def test_images_of_one_name_in_two_folders_are_not_mixed_up(tmp_path):
    _pictures(tmp_path, ["a.png", "images/a.png"])
    naming = Naming([tmp_path / "images", tmp_path])
    one, other = (Record(k, HEIGHT, WIDTH, str(tmp_path / name)) for k, name in enumerate(("a.png", "images/a.png")))
    assert naming.image(one) == naming.image(one) == "a.png"
    with pytest.raises(DataError, match="Two images would have the same name"):
        naming.image(other)


def test_an_image_that_is_there_already_is_the_same_or_told(tmp_path):
    _pictures(tmp_path, ["a.png", "there/a.png"])
    assert (tmp_path / "a.png").stat().st_size == (tmp_path / "there/a.png").stat().st_size
    record = Record(1, HEIGHT, WIDTH, str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="Another image is there already"):
        convert.copy_image(record, tmp_path / "there" / "a.png")
    convert.copy_image(record, tmp_path / "new" / "a.png")
    convert.copy_image(record, tmp_path / "new" / "a.png")


def test_segments_of_a_jpg_and_a_png_of_one_name_stay_apart(tmp_path):
    _pictures(tmp_path, ["a.jpg", "a.png"])
    records = []
    for number, name in enumerate(("a.jpg", "a.png"), 1):
        ids = np.zeros((HEIGHT, WIDTH), np.int32)
        ids[:number] = 5
        region = Region(5, category_id=3, box_xyxy=(0.0, 0.0, float(WIDTH), float(number)), area=number * WIDTH)
        records.append(Record(number, HEIGHT, WIDTH, str(tmp_path / name), [region], ids))
    WRITERS["panoptic"].write(tmp_path / "out" / "p.json", iter(records), CATEGORIES, Naming([tmp_path], numbers=True))
    document = json.loads((tmp_path / "out" / "p.json").read_text())
    drawn = [read_id_map(tmp_path / "out" / "p" / body["file_name"]) for body in document["annotations"]]
    assert [int((ids == 5).sum()) for ids in drawn] == [WIDTH, 2 * WIDTH]
