from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from locap.datasets.records import Record, Region, write_records
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.progress import track
from locap.evaluation.report import (
    EvaluationReport,
    describe_source,
    exit_code,
    print_results,
    write_regions_csv,
    write_report,
)
from locap.evaluation.results import ProtocolResult, Table
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError, UsageError

from .conftest import CATEGORIES


def write_panoptic(path, records, with_categories=False, **changes):
    """Write COCO panoptic results with their PNGs in the folder beside."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    annotations = []
    for record in records:
        ids = record.id_map
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(
            folder / f"{record.image_id}.png"
        )
        segments = [
            {"id": r.id, "category_id": r.category_id, "iscrowd": int(r.is_crowd), "caption": " ".join(r.captions[:1])}
            | ({} if r.score is None else {"score": r.score})
            for r in record.regions
        ]
        annotations.append(
            {"image_id": record.image_id, "file_name": f"{record.image_id}.png", "segments_info": segments} | changes
        )
    body = {"annotations": annotations}
    if with_categories:
        body["categories"] = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in CATEGORIES]
    path.write_text(json.dumps(body))
    return path


@pytest.fixture
def images(make_images):
    return make_images(3)


@pytest.fixture
def truth(images):
    return [pair[0] for pair in images]


def test_files_give_the_figures_of_memory(tmp_path, images, truth):
    predicted = [pair[1] for pair in images]
    expected = evaluate_stored(truth, predicted, ["panoptic"], CATEGORIES)
    panoptic = load_predictions(write_panoptic(tmp_path / "p.json", predicted), truth)
    records = load_predictions(write_records(tmp_path / "r.json", predicted, CATEGORIES), truth)
    stored_truth, categories = load_ground_truth(write_panoptic(tmp_path / "t.json", truth, with_categories=True))
    assert evaluate_stored(truth, panoptic[::-1], ["panoptic"], CATEGORIES) == expected
    assert evaluate_stored(truth, records, ["panoptic"], CATEGORIES) == expected
    assert evaluate_stored(stored_truth, panoptic, ["panoptic"], categories) == expected
    for stored in (panoptic, records):
        assert [r.score for r in stored[0].regions] == [r.score for r in predicted[0].regions]
        assert [r.captions for r in stored[0].regions] == [r.captions for r in predicted[0].regions]


@pytest.mark.fault("R11")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda records: [*records, Record(99, 24, 24), Record(98, 24, 24)],
            r"2 image\(s\) are not in the(.|\n)*98, 99",
        ),
        (lambda records: [*records, records[1]], r"1 image\(s\) are predicted twice(.|\n)*image ids 1"),
        (lambda records: records[1:], r"1 image\(s\) have no prediction(.|\n)*image ids 0"),
    ],
)
def test_predictions_must_cover_the_images(tmp_path, images, truth, change, message):
    path = write_records(tmp_path / "r.json", change([pair[1] for pair in images]))
    with pytest.raises(DataError, match=message):
        load_predictions(path, truth)


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"image_id": 1, "segments_info": []}, r'"file_name" is missing(.|\n)*annotations\[0\]'),
        ({"image_id": 1, "file_name": "../1.png", "segments_info": []}, "leaves its folder"),
        ({"image_id": 1, "file_name": "1.png", "segments_info": {}}, '"segments_info" is missing or of the wrong type'),
        (
            {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": True}]},
            '"id" is missing or of the wrong type',
        ),
        (
            {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 1, "category_id": 1, "score": "high"}]},
            '"score" is missing or of the wrong type',
        ),
        (
            {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 1, "category_id": 1, "caption": ["a"]}]},
            '"caption" is missing or of the wrong type',
        ),
    ],
)
def test_malformed_annotations_name_their_place(tmp_path, truth, body, message):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"annotations": [body]}))
    with pytest.raises(DataError, match=message):
        load_predictions(path, truth)


def test_folder_of_the_pngs_is_found(tmp_path, truth):
    path = write_panoptic(tmp_path / "pix2cap_gt.json", truth)
    (tmp_path / "panoptic_pred").mkdir()  # another's
    for name in ("pix2cap_gt", "panoptic_gt"):
        (tmp_path / "pix2cap_gt").rename(tmp_path / name)
        assert {Path(record.id_map).parent.name for record in load_predictions(path, truth)} == {name}
        (tmp_path / name).rename(tmp_path / "pix2cap_gt")
    (tmp_path / "pix2cap_gt").rename(tmp_path / "elsewhere")
    assert load_predictions(path, truth, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"folder of the PNGs is not found(.|\n)*--predictions-folder"):
        load_predictions(path, truth)


def test_what_panoptic_files_may_leave_open(tmp_path, truth):
    """Images without a size, whole numbers as floats, a list of no captions."""
    path = write_panoptic(tmp_path / "t.json", truth, with_categories=True)
    body = json.loads(path.read_text())
    body["images"] = [{"id": record.image_id, "file_name": "a.jpg"} for record in truth]
    for image in body["annotations"]:
        image["image_id"] = float(image["image_id"])
        image["segments_info"] = [
            s | {"id": float(s["id"]), "category_id": float(s["category_id"]), "caption": []}
            for s in image["segments_info"]
        ]
    path.write_text(json.dumps(body))
    records, _ = load_ground_truth(path)
    assert [(r.image_id, r.height, r.width) for r in records] == [(r.image_id, r.height, r.width) for r in truth]
    expected = [[(s.id, s.category_id, ()) for s in r.regions] for r in truth]
    assert [[(s.id, s.category_id, s.captions) for s in r.regions] for r in records] == expected
    assert all(isinstance(region.id, int) for record in records for region in record.regions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"annotations": [{"image_id": NaN}]}', "NaN"),
        (b"[{}]", r"no known form of predictions(.|\n)*coco_panoptic"),
        (b'{"annotations": "\xff"}', "(?i)utf-8"),
    ],
)
def test_files_that_are_no_results(tmp_path, truth, content, message):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_predictions(path, truth)


def test_unknown_protocol_names_the_nearest(truth, images):
    with pytest.raises(UsageError, match=r"no such protocol(.|\n)*use panoptic"):
        evaluate_stored(truth, [pair[1] for pair in images], ["panoptc"], CATEGORIES)


def test_result_file_table_and_csv(tmp_path, truth):
    result = ProtocolResult("panoptic", "standard", {"pq": 0.5, "cider": 2.0}, counts={"images": 3})
    result.regions = Table(("image_id", "prediction"), [(1, 'a "dog", sitting'), (2, None), (3, "\ud83d")])
    source = describe_source("truth", truth)
    report = EvaluationReport([result], source, source, seconds=1.5, decoding={"beam_size": 1}, seed=3)
    body = json.loads(write_report(tmp_path / "result.json", report).read_text())
    assert body["results"][0]["figures"] == {"pq": 0.5, "cider": 2.0}
    assert body["ground_truth"]["images"] == 3
    assert len(body["ground_truth"]["sha256"]) == 64
    assert {"locap", "numpy", "python"} <= set(body["versions"])
    assert "regions" not in body["results"][0]
    text = write_regions_csv(tmp_path / "regions.csv", result).read_text()
    assert text == 'image_id,prediction\n1,"a ""dog"", sitting"\n2,\n3,?\n'
    console = Console(record=True, width=100)
    result.unavailable["meteor"] = "METEOR not computed: Java is missing"
    print_results([result], console, tables=True)
    shown = console.export_text()
    assert "50.00" in shown
    assert "meteor: METEOR not computed: Java is missing" in shown
    assert (exit_code([result]), exit_code([])) == (5, 0)


def test_csv_is_no_program_and_keeps_every_language(tmp_path):
    texts = ["=1+1", "+x", "-lrb-", "@SUM(A1)", "\tx", "a = b", "naïve 日本語 😀", "two\nlines", "half \ud800", ""]
    result = ProtocolResult(
        "p", "standard", regions=Table(("id", "value", "text"), [(i, -0.5, t) for i, t in enumerate(texts)])
    )
    with open(write_regions_csv(tmp_path / "r.csv", result), encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert {row[1] for row in rows} == {"-0.5"}
    assert [row[2] for row in rows] == [
        "'=1+1", "'+x", "'-lrb-", "'@SUM(A1)", "'\tx", "a = b", "naïve 日本語 😀", "two\nlines", "half ?", "",
    ]  # fmt: skip


def test_hash_of_the_ground_truth_sees_every_caption(truth):
    before = describe_source("t", truth).sha256
    truth[2].regions[0].captions = ("another",)
    assert describe_source("t", truth).sha256 != before
    for change in ({"captions": ("a",)}, {"regions": [replace(truth[2].regions[0], expressions=("a",))]}):
        assert describe_source("t", [replace(truth[2], **change)]).sha256 != describe_source("t", truth[2:]).sha256


def test_progress_keeps_the_items(monkeypatch):
    monkeypatch.setattr("locap.evaluation.progress.SHOW_AFTER", -1.0)
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]


def test_region_scores_of_memory_are_checked(truth, images):
    predicted = [pair[1] for pair in images]
    predicted[0].regions[0] = Region(predicted[0].regions[0].id, 1, score=float("inf"))
    with pytest.raises(DataError, match="not a finite number"):
        evaluate_stored(truth, predicted, ["panoptic"], CATEGORIES)
