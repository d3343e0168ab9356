"""The commands as users type them: what they write, what they print, and what a mistake is told."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from locap.datasets.records import read_records, record_from_json, records_from_json
from locap.datasets.shapes import CATEGORIES
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def refused(result, code: int, *messages: str) -> None:
    """Check a user error: its exit code and texts, in a few lines, without a traceback."""
    assert result.code == code, result.err
    for message in messages:
        assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 12


# Mistakes on the command line


@pytest.mark.fault("G1", "G2")
def test_a_wrong_configuration_is_told_before_torch_is_loaded(start, python, tmp_path):
    """One process for all: what counts is that none of them loads torch."""
    key, q = "MODEL.DECODER.DETECTION", str(QUICKSTART)
    lines = [
        ["train", "--conf_files", q, "--overrides", "SOLVER.BASE_LRR", "1"],
        ["train", "--conf_files", q, "--overrides", key, "Fasle"],
        ["evaluate", "--conf_files", str(tmp_path / "quickstrat.yaml")],
        ["predict", "--image", "a.jpg"],
        ["predict", "--model", str(tmp_path / "nowhere")],
        ["train", "--conf_files", q, "--overrides", "SOLVER.STEPS", "[-0.5]", "SOLVER.WARMUP_ITERS", "-1"],
    ]
    script = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("locap_entry", {str(ROOT / "entry.py")!r})
entry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entry)
for line in {lines!r}:
    print(entry.main(line), "torch" in sys.modules)
    sys.stderr.write("---\\n")
"""
    done = start(python, "-c", script, folder=tmp_path)
    assert done.out.splitlines() == ["2 False"] * len(lines), done.err
    unknown, fasle, no_file, no_config, no_run, negative, _ = done.err.split("---\n")
    assert 'There is no configuration key "SOLVER.BASE_LRR".' in unknown
    assert "did you mean SOLVER.BASE_LR?" in unknown
    assert f"{key}: 'Fasle' is neither true nor false." in fasle
    assert "allowed: true, false, yes, no, 1 or 0" in fasle
    assert f"did you mean {key} false?" in fasle
    assert "There is no such configuration file." in no_file
    assert str(tmp_path / "quickstrat.yaml") in no_file
    assert "give --conf_files FILE.yaml, or --model RUN_FOLDER" in no_config
    assert "There is no such model folder." in no_run
    assert str(tmp_path / "nowhere") in no_run
    assert "-0.5" in negative
    assert "-1" in negative


def test_overrides_take_the_rest_of_the_line_and_negative_numbers(tiny, locap, tmp_path):
    overrides = tiny("INPUT.PIXEL_MEAN", "[-1.5, 0, 2e1]", "SOLVER.MAX_STEPS", "1", SAVE_DIR=tmp_path, BASENAME="-x")
    assert locap("train", "--conf_files", QUICKSTART, "--overrides", *overrides).code == 0
    cfg = load_config([tmp_path / "-x" / "run_1" / "config.yaml"], model_schemas=MODEL_SCHEMAS)
    assert list(cfg.INPUT.PIXEL_MEAN) == [-1.5, 0.0, 20.0]
    assert cfg.BASENAME == "-x"


@pytest.mark.fault("H6", "R1")
def test_missing_weights_and_files_have_their_own_codes(tiny, locap, tmp_path):
    def run(command: str, *options: object, **values: object):
        return locap(command, "--conf_files", QUICKSTART, *options, "--overrides", *tiny(**values))

    gone = tmp_path / "gone.safetensors"
    for command in ("evaluate", "predict"):
        refused(run(command), 2, "No weights are given.", "--overrides RESUME_FROM <run folder>")
    for command, values in (("evaluate", {}), ("predict", {}), ("train", {"WEIGHT": True})):
        refused(run(command, RESUME_FROM=gone, **values), 4, "There are no weights.", str(gone))
    refused(run("train", RESUME=True, RESUME_FROM=gone), 4, "There is no run to go on with.", str(gone))
    refused(run("evaluate", "--predictions", tmp_path / "p.json"), 3, "does not exist", str(tmp_path / "p.json"))
    refused(run("predict", "--image", tmp_path / "a.jpg", RESUME_FROM=gone), 3, "The image does not exist", "a.jpg")
    assert run("frobnicate").code == 2


@pytest.mark.fault("H1", "D3")
def test_weights_that_do_not_fit_are_reported_by_part(trained, locap, tmp_path):
    tensors = load_file(trained.folder / "model.safetensors")
    missing = {name: tensor for name, tensor in tensors.items() if "captioner" not in name}
    wide = tensors | {"region_proj.weight": torch.zeros(3, 5)}
    for name, changed, message in (
        ("missing", missing, "missing: captioner."),
        ("wide", wide, "region_proj.weight (3, 5) -> (32,"),
        ("more", tensors | {"who.knows": torch.zeros(1)}, "1 unexpected: who.knows"),
        ("nan", tensors | {"region_proj.bias": torch.full((32,), torch.nan)}, "The weights hold NaN or infinity"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(changed, path)
        result = locap("evaluate", "--conf_files", trained.folder / "config.yaml", "--overrides", "RESUME_FROM", path)
        refused(result, 4, message, str(path))


class Evil:
    """What a malicious checkpoint holds."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


@pytest.mark.fault("H4")
@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle.dump", "torch.save"])
def test_a_pickle_that_would_run_something_is_refused(trained, locap, tmp_path, write):
    path, sentinel = tmp_path / "weights.pt", tmp_path / "executed"
    with path.open("wb") as file:
        write({"model": Evil(sentinel)}, file)
    result = locap("predict", "--conf_files", trained.folder / "config.yaml", "--overrides", "RESUME_FROM", path)
    refused(result, 4, "The weights file was refused", "Nothing was executed", str(path))
    assert not sentinel.exists()
    with contextlib.suppress(RuntimeError):  # pickle.dump's has no magic number
        torch.load(path, weights_only=False)
    assert sentinel.exists(), "the pickle is a real one"


def test_training_that_diverges_stops_with_its_own_code(tiny, locap, tmp_path):
    overrides = tiny("SOLVER.BASE_LR", "1.0e+30", "SOLVER.CLIP_GRADIENTS.ENABLED", "false", SAVE_DIR=tmp_path)
    result = locap("train", "--conf_files", QUICKSTART, "--overrides", *overrides)
    refused(result, 6, "Training has diverged at step 2.", "images [", "the last checkpoint is intact")


def test_a_defect_is_told_apart_from_a_mistake(tiny, locap, monkeypatch, tmp_path):
    monkeypatch.setattr("locap.inference.prediction_run.predict_images", lambda *_, **__: 1 / 0)
    result = locap("predict", "--conf_files", QUICKSTART, "--overrides", *tiny())
    assert result.code == 70
    assert "ZeroDivisionError" in result.err
    assert "a defect of locap, not of your input" in result.err


# From training to a picture


def figures(folder: Path, name: str = "results.json") -> dict:
    results = json.loads((folder / name).read_text())["results"]
    return {(result["protocol"], name): value for result in results for name, value in result["figures"].items()}


def test_training_evaluation_and_stored_predictions_agree(trained, locap, tmp_path):
    config = ["--conf_files", trained.folder / "config.yaml"]
    result = locap("evaluate", "--model", trained.folder, "--overrides", "SAVE_DIR", tmp_path)
    assert result.code == 0, result.err
    assert "panoptic (standard)" in result.out
    evaluated = tmp_path / "quickstart" / "evaluation"
    assert (evaluated / "predictions.json").read_bytes() == (trained.evaluation / "predictions.json").read_bytes()
    assert figures(evaluated) == figures(trained.evaluation)
    assert figures(evaluated)["panoptic", "pq"] > 0, "equal zeros would say nothing"

    stored = shutil.copy(trained.evaluation / "predictions.json", tmp_path / "mine.json")
    result = locap("evaluate", *config, "--predictions", stored)
    assert result.code == 0, result.err
    assert figures(tmp_path, "mine_results.json") == figures(evaluated)

    records, _, _ = read_records(stored)
    Path(stored).write_text(json.dumps(json.loads(Path(stored).read_text()) | {"records": []}))
    refused(locap("evaluate", *config, "--predictions", stored), 3, f"{len(records)} image(s) have no prediction")


def test_caption_figures_come_with_java(trained, locap, tmp_path):
    stored = shutil.copy(trained.evaluation / "predictions.json", tmp_path / "mine.json")
    config = ["--conf_files", trained.folder / "config.yaml"]
    result = locap("evaluate", *config, "--predictions", stored, "--overrides", "PROTOCOLS", "[panoptic_captioning]")
    found = figures(tmp_path, "mine_results.json")
    if result.code == 5:
        pytest.skip("no Java here: METEOR was not checked")
    assert result.code == 0, result.err
    for name in ("meteor", "cider", "map"):
        assert ("panoptic_captioning", name) in found


def test_a_saved_configuration_given_back_is_the_same(trained, locap, tmp_path):
    saved = trained.folder / "config.yaml"
    given = locap("train", "--conf_files", saved, "--overrides", "SOLVER.MAX_STEPS", "1", "SAVE_DIR", tmp_path)
    assert given.code == 0, given.err
    again = tmp_path / "quickstart" / "run_1" / "config.yaml"
    changed = saved.read_text().replace("MAX_STEPS: 60", "MAX_STEPS: 1").replace(str(saved.parents[2]), str(tmp_path))
    assert again.read_text() == changed
    assert load_config([again], model_schemas=MODEL_SCHEMAS).BASENAME == "quickstart"


def read_lines(path: Path):
    """Return the records of a run of predictions by the stem of their picture, and the categories."""
    header, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    _, categories, _ = records_from_json({**header, "records": []}, where=path.name)
    records = [record_from_json(line) for line in lines]
    return {Path(record.image or "densemask").stem: record for record in records}, categories


def checked_prediction(folder: Path, name: str, size: tuple[int, int]):
    """Return the record that was written, after a look at the picture beside it."""
    records, categories = read_lines(next(folder.glob("*.jsonl")))
    record = records[name]
    assert (record.width, record.height) == size
    assert [category.name for category in categories] == [category.name for category in CATEGORIES]
    ids = record.read_id_map()
    assert sorted(np.unique(ids[ids > 0]).tolist()) == sorted(region.id for region in record.regions)
    for region in record.regions:
        x0, y0, x1, y1 = region.box_xyxy
        rows, columns = np.nonzero(record.read_mask(region))
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert 0 <= region.score <= 1
        assert len(region.captions) <= 1
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.mode == "RGB"
        assert len(picture.getcolors(1 << 24)) > 100
    return record


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A drawn scene, wider than high."""
    from locap.datasets.shapes import Shapes

    return Image.fromarray(Shapes(1, seed=3, split="test", image_size=96)[0].read_image()[:72])


def save_variants(photo: Image.Image, folder: Path) -> dict[str, tuple[int, int]]:
    """Write one image in every form that must simply work; returns name -> (width, height) as it is seen."""
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    grey = np.asarray(photo.convert("L"))
    photo.convert("L").save(folder / "grey.png")
    photo.convert("LA").save(folder / "grey_alpha.png")
    photo.save(folder / "rgb.png")
    photo.convert("RGBA").save(folder / "rgba.png")
    photo.convert("P").save(folder / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "turned.jpg", exif=exif)
    photo.save(folder / "plain.jpg")
    return {path.stem: photo.size[::-1] if path.stem == "turned" else photo.size for path in folder.iterdir()}


@pytest.mark.fault("E3", "E4")
def test_any_kind_of_image_is_segmented_and_described(trained, locap, photo, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    sizes = save_variants(photo, images)
    result = locap("predict", "--model", trained.folder, "--image", *sorted(images.iterdir()), "--output", out)
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == sorted(["predictions.jsonl", *(f"{n}.png" for n in sizes)])
    records = {name: checked_prediction(out, name, size) for name, size in sizes.items()}
    assert sum(len(record.regions) for record in records.values()) >= len(records)
    assert any(region.captions and region.captions[0] for region in records["plain"].regions)
    assert result.out.count("regions") == len(records), "a table each"
    for one, other in (("rgb", "rgba"), ("grey", "sixteen"), ("grey", "grey_alpha")):
        assert records[one].regions == records[other].regions, "the same pixels"


@pytest.mark.fault("E6")
def test_the_thinnest_images_are_described(trained, locap, photo, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    sizes = {"dot": (1, 1), "line": (5000, 1), "pole": (1, 5000)}
    for name, size in sizes.items():
        photo.resize(size).save(images / f"{name}.png")
    result = locap("predict", "--model", trained.folder, "--image", *sorted(images.iterdir()), "--output", out)
    assert result.code == 0, result.err
    records, _ = read_lines(out / "predictions.jsonl")
    for name, size in sizes.items():
        record = records[name]
        assert (record.width, record.height) == size
        assert record.read_id_map().shape == size[::-1]


def test_files_of_one_name_do_not_replace_each_other(trained, locap, photo, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        photo.save(tmp_path / folder / "x.png")
    images = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    assert locap("predict", "--model", trained.folder, "--image", *images, "--output", tmp_path / "out").code == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["x.png", "x_2.png"]
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 1 + len(images)


@pytest.mark.fault("E1")
def test_a_truncated_photograph_is_named(trained, locap, photo, tmp_path):
    path = tmp_path / "half.jpg"
    photo.resize((400, 300)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    result = locap("predict", "--model", trained.folder, "--image", path, "--output", tmp_path / "out")
    refused(result, 3, str(path), "truncated")
    assert not (tmp_path / "out").exists()


def test_the_original_single_image_script(trained, start, python, tmp_path):
    """Without --image it takes the first test image, and the word "evaluate" is part of its command line."""
    script = ROOT / "inference" / "infer_densecaptioning.py"
    config = ("--conf_files", trained.folder / "config.yaml", "--overrides", "RESUME_FROM", trained.folder)
    done = start(python, script, "evaluate", *config, folder=tmp_path)
    assert done.code == 0, done.err
    record = checked_prediction(tmp_path / "output", "densemask", (64, 64))
    assert f"{len(record.regions)} regions" in done.out
    assert "densemask.jsonl" in done.err
