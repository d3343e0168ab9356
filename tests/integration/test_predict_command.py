"""Many images on the command line: what is meant, what is written, and what a broken one costs."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import Record, Region, encode_mask, write_records
from locap.inference.asks import make_asks
from locap.inference.image_list import find_images
from locap.inference.prediction_run import Outputs, Question, Writer
from locap.utils.errors import DataError, UsageError

from .conftest import ROOT


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three images, one in a folder of its own, and a text."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, shade in (("a.png", 10), ("b.JPG", 120), ("more/c.webp", 200)):
        Image.new("RGB", (40, 30), (shade, 90, 40)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def names(paths) -> list[str]:
    return [Path(path).name for path in paths]


def test_files_folders_patterns_and_lists(photos, monkeypatch):
    assert names(find_images([str(photos / "a.png")])) == ["a.png"]
    assert names(find_images([str(photos)])) == ["a.png", "b.JPG"]
    assert names(find_images([str(photos / "**" / "*")])) == ["a.png", "b.JPG", "c.webp"]
    assert find_images(["-"], ["x.png\n", "\n", "y z.png\r\n"]) == ["x.png", "y z.png"]
    assert names(find_images([str(photos / "more"), str(photos / "a.png")])) == ["c.webp", "a.png"]


def test_a_name_with_magic_letters_is_a_file_first(photos):
    (photos / "a.png").rename(photos / "a[1].png")
    (photos / "._b.JPG").write_bytes(b"what a Mac leaves beside a file")
    assert names(find_images([str(photos)])) == ["a[1].png", "b.JPG"]
    assert names(find_images([str(photos / "a[1].png")])) == ["a[1].png"]


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("a.pgn", DataError, "The image does not exist"),
        ("empty", DataError, "The folder has no images."),
        ("*.bmp", DataError, "No image fits the pattern."),
    ],
)
def test_what_is_not_there_is_told(photos, given, error, told):
    (photos / "empty").mkdir()
    with pytest.raises(error, match=told):
        find_images([str(photos / given)])


def test_addresses_are_refused_with_the_way_out():
    with pytest.raises(UsageError, match="download it first"):
        find_images(["https://example.org/a.jpg"])


def test_masks_from_images_and_run_lengths(tmp_path):
    inside = np.zeros((30, 40), bool)
    inside[5:9, 3:20] = True
    Image.fromarray(inside.astype(np.uint8) * 255).save(tmp_path / "m.png")
    (tmp_path / "m.json").write_text(json.dumps(encode_mask(inside)))
    one, other = make_asks([("mask", str(tmp_path / "m.png")), ("mask", str(tmp_path / "m.json"))])
    assert one == other
    assert one.value == encode_mask(inside)
    Image.new("L", (40, 30)).save(tmp_path / "black.png")
    with pytest.raises(UsageError, match=r"The mask is empty\."):
        make_asks([("mask", str(tmp_path / "black.png"))])


def test_a_prompt_needs_a_region():
    with pytest.raises(UsageError, match=r"A prompt is about a region\."):
        make_asks([("text", "a tree")], prompt="how old is it?")
    assert make_asks([("point", (1, 2))], prompt="how old is it?")[0].prompt == "how old is it?"


def lines(folder: Path, name: str = "predictions") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.fault("E1")
def test_a_broken_image_costs_itself(trained, start, python, photos, tmp_path):
    (photos / "b.JPG").write_bytes(b"not a picture")
    out = tmp_path / "out"
    words = ("predict", photos, photos / "more", "--model", trained.folder, "--output", out, "--html")
    done = start(python, ROOT / "entry.py", *words)
    assert done.code == 3
    assert "left out: " in done.err
    assert "1 of 3 images could not be read" in done.err
    header, *records = lines(out)
    assert header["format"] == "locap-records/1"
    assert [Path(record["image"]).name for record in records] == ["a.png", "c.webp"]
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png", "index.html", "predictions.jsonl"]
    assert (out / "index.html").read_text(encoding="utf-8").count("<figure") == 2


def test_a_missing_line_of_a_list_costs_itself(trained, locap, photos, tmp_path, monkeypatch):
    listed = f"{photos / 'a.png'}\n{photos / 'gone.png'}\n{photos / 'more' / 'c.webp'}\n".splitlines(keepends=True)
    monkeypatch.setattr("sys.stdin", listed)
    done = locap("predict", "-", "--model", trained.folder, "--output", tmp_path, "--no-pictures", "--batch-size", 1)
    assert done.code == 3
    assert len(lines(tmp_path)) == 3
    assert not list(tmp_path.glob("*.png"))


def test_shares_of_the_image_and_regions_of_a_file(trained, locap, photos, tmp_path):
    common = ("--model", trained.folder, "--no-pictures")
    done = locap(
        "predict", photos / "a.png", "--box", 0, 0, 0.5, 1, "--normalized", *common, "--output", tmp_path / "1"
    )
    assert done.code == 0, done.err
    box = (0.0, 0.0, 20.0, 30.0)
    assert tuple(lines(tmp_path / "1")[1]["regions"][0]["box_xyxy"]) == box
    asked = [Record("a", 30, 40, "a.png", [Region(1, box_xyxy=box), Region(2, points=((3.0, 4.0),))])]
    write_records(photos / "asked.json", asked)
    done = locap("predict", "--regions", photos / "asked.json", *common, "--output", tmp_path / "2")
    assert done.code == 0, done.err
    first, second = lines(tmp_path / "2")[1]["regions"]
    assert first == lines(tmp_path / "1")[1]["regions"][0]
    assert second["points"] == [[3.0, 4.0]]


def test_answers_keep_the_ids_of_what_was_asked(trained, locap, photos, tmp_path):
    """So they can be evaluated against the file; images of one name in two folders stay apart."""
    boxes = [(-1.0, 0.0, 40.02, 30.01), (1.0, 2.0, 9.0, 9.0)]  # the first leaves the image a little, as in COCO
    asked = [Record(7, 30, 40, "a.png", [Region(5 + k, box_xyxy=box) for k, box in enumerate(boxes)])]
    write_records(photos / "asked.json", asked)
    common = ("predict", "--model", trained.folder, "--no-pictures", "--output")
    done = locap(*common, tmp_path / "1", "--regions", photos / "asked.json")
    assert done.code == 0, done.err
    (record,) = lines(tmp_path / "1")[1:]
    assert record["image_id"] == 7
    assert [region["id"] for region in record["regions"]] == [5, 6]
    assert record["regions"][0]["box_xyxy"] == [0, 0, 40, 30]
    (photos / "more" / "a.png").write_bytes((photos / "a.png").read_bytes())
    done = locap(*common, tmp_path / "2", photos / "a.png", photos / "more" / "a.png", photos / "a.png")
    assert done.code == 0, done.err
    assert len({record["image_id"] for record in lines(tmp_path / "2")[1:]}) == 3


def test_what_is_read_is_not_written_over(trained, locap, photos):
    asked = photos / "predictions.jsonl"
    asked.write_text(json.dumps({"image_id": 1, "height": 30, "width": 40, "image": "a.png"}) + "\n")
    before = asked.read_bytes()
    done = locap("predict", "--model", trained.folder, "--regions", asked, "--output", photos)
    assert done.code == 2
    assert "A file that is read would be written over." in done.err
    assert asked.read_bytes() == before
    Image.new("L", (40, 30), 255).save(photos / "b.png")
    mask = (photos / "b.png").read_bytes()
    done = locap("predict", photos / "b.JPG", "--mask", photos / "b.png", "--model", trained.folder, "--output", photos)
    assert (photos / "b.png").read_bytes() == mask
    assert (photos / "b_2.png").exists() or done.code == 2  # where the system takes no masks


def test_images_that_are_left_out_cost_no_memory(tmp_path):
    """An error remembers where it was raised, and that the pixels of its batch."""
    alive = []

    def read() -> None:
        pixels = np.zeros(10)
        alive.append(weakref.ref(pixels))
        raise DataError(f"The image of {len(pixels)} pixels is broken.")

    with Writer(Outputs(tmp_path), (), 2) as writer:
        for number in range(2):
            (item,) = writer.handed_out([Question(f"{number}.png")])
            try:
                read()
            except DataError as err:
                writer.skip(item, err)
    assert [reference() for reference in alive] == [None, None]
    assert writer.exit_code == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--regions", "any.json"], "A file of regions says which images"),
        (["--all", "--box", 1, 1, 5, 5], "Ask for everything, or for something."),
        (["--batch-size", -1], "There is no such batch."),
        (["--box", 1, 1, 500, 5], "The box lies outside the image."),
        (["--box", 9, 9, 1, 1], "--box 1 1 9 9"),
        (["--prompt", "what is it?"], "A prompt is about a region."),
        (["--point", 1, 1, "--prompt", "what is it?"], "This system takes no prompt."),
        (["--dtype", "fp16"], "fp16 needs a GPU."),
        (["--device", "cuda"], "No GPU can be used here."),
    ],
)
def test_mistakes_are_told(trained, locap, photos, tmp_path, words, told):
    if "cuda" in words and os.environ.get("CUDA_VISIBLE_DEVICES", "") != "":
        pytest.skip("this machine may have a GPU")
    done = locap("predict", photos / "a.png", "--model", trained.folder, "--output", tmp_path, *words)
    assert done.code in (2, 5)
    assert told in done.err
    assert "Traceback" not in done.err
