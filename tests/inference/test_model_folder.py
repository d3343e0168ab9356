"""Model folders: what is saved comes back to the bit, wherever it is taken; a stranger's configuration stays inside."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import locap
from locap import entry
from locap.datasets.records import Category
from locap.datasets.shapes import CATEGORIES
from locap.evaluation.report import EvaluationReport, Source, write_report
from locap.evaluation.results import ProtocolResult
from locap.inference.asks import Ask
from locap.inference.captioner import Captioner
from locap.inference.model_card import _cell
from locap.inference.model_folder import VOCABULARIES, find_model, read_folder, stored_categories
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import SYSTEMS
from locap.utils.config import load_config, save_config
from locap.utils.errors import CheckpointError, MissingDependencyError, UsageError
from locap.utils.files import write_tensors
from locap.utils.hub import EMBEDDED

PHOTO = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def runs(tiny_pix2cap, tiny_pixelllm, tmp_path_factory) -> dict[str, Path]:
    """A tiny run of every system, with vocabularies in folders of this machine."""
    words = tmp_path_factory.mktemp("words") / "vocabulary"
    shutil.copytree(EMBEDDED / "shapes", words)
    fitting = [str(word) for pair in tiny_pix2cap.FITTING.items() for word in pair]
    pix2cap_files = [tiny_pix2cap.PUBLISHED, tiny_pix2cap.HERE / "modeling" / "tiny.yaml"]
    thresholds = ["MODEL.DECODER.TEST.OBJECT_MASK_THRESHOLD", "0", "MODEL.DECODER.TEST.OVERLAP_THRESHOLD", "0"]
    size = ["COCO.INPUT.MIN_SIZE_TEST", "64", "COCO.INPUT.MAX_SIZE_TEST", "64"]
    names = ["MODEL.TEXT_DECODER.TOKENIZER", str(words), "MODEL.TEXT.PRETRAINED_TOKENIZER", str(words)]
    known = {
        "pix2cap_model": (tiny_pix2cap, pix2cap_files, [*fitting, *thresholds, *size, *names]),
        "pixelllm_model": (tiny_pixelllm, [tiny_pixelllm.SHIPPED], [*tiny_pixelllm.TINY, *names[:2]]),
    }
    assert set(known) == set(SYSTEMS)
    runs = {}
    for system, (module, files, overrides) in known.items():
        folder = tmp_path_factory.mktemp(system)
        (folder / "checkpoints").mkdir()
        test = "[shapes_val]" if system == "pix2cap_model" else "[region:shapes_val, detect:shapes_val]"
        cfg = load_config(files, [*overrides, "DATASETS.TEST", test], model_schemas=MODEL_SCHEMAS)
        save_config(cfg, folder / "config.yaml")
        if system == "pix2cap_model":
            model = module.build(*thresholds, *size, *names, seed=1)
        else:
            model = module.build(*names[:2], seed=1)
        write_tensors(folder / "model.safetensors", model.state_dict())
        runs[system] = folder
    return runs


@pytest.fixture
def saved(runs, tmp_path) -> dict[str, str]:
    """The texts of a folder that was saved, so that a stranger's can be made of them."""
    return locap.load(runs["pix2cap_model"], device="cpu").save(tmp_path / "saved")


def answer(captioner: Captioner) -> str:
    asks = [Ask("box", (3.0, 4.0, 40.0, 30.0))] if "box" in captioner.takes else []
    return repr([captioner.ask(captioner.see(PHOTO), asks).to_json() for asks in {(): (), tuple(asks): 0}])


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_system_answers_the_same_to_the_bit_without_what_it_was_made_from(runs, system, tmp_path, monkeypatch):
    captioner = locap.load(runs[system], device="cpu")
    folder = captioner.save(tmp_path / "saved")
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    assert not {"RESUME_FROM", "SAVE_DIR", "PARALLEL", "DEVICE"} & set(cfg)
    assert "ROOT" not in cfg["DATASETS"]
    assert str(runs[system].parents[1]) not in (folder / "config.yaml").read_text() + (folder / "README.md").read_text()
    assert cfg["MODEL"]["TEXT_DECODER"]["TOKENIZER"] == "./tokenizer"
    moved = shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for place in (moved, "elsewhere"):
        again = locap.load(place, device="cpu")
        assert answer(again) == answer(captioner)
        assert again.categories == captioner.categories
    before, after = captioner.engine.model.state_dict(), again.engine.model.state_dict()
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []
    again.save(moved)  # over itself, its own vocabulary included
    assert answer(locap.load(moved, device="cpu")) == answer(captioner)
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"], "something was left behind"


@pytest.mark.slow
def test_the_card_is_valid_its_code_runs_and_its_figures_are_those_of_the_last_evaluation(runs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(runs["pixelllm_model"], run)
    for step, value in ((9, 0.25), (10, 0.5)):
        result = ProtocolResult("region_captioning", "standard", figures={"cider": value}, counts={})
        source = Source("shapes_val", 20, 80, "")
        write_report(
            run / f"evaluations/step_{step:08d}/set/results.json", EvaluationReport([result], source, source, 1.0)
        )
    folder = locap.load(run, device="cpu").save(tmp_path / "mine", license="apache-2.0")
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "apache-2.0"
    assert facts["library_name"] == "locap"
    assert {"pixelllm", "locap"} <= set(facts["tags"])
    assert facts["pipeline_tag"] == "image-to-text"
    assert "| shapes_val | 20 | region_captioning (standard) | cider | 0.5000 |" in text
    assert "step 10" in text
    assert "0.2500" not in text
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.tile(PHOTO, (2, 2, 1))).save("photo.jpg")
    code = text.split("```python\n")[1].split("```")[0]
    assert "captioner.locate(" in code
    exec(textwrap.dedent(code), {})


def test_classes_of_ones_own_are_in_the_folder(runs, tmp_path):
    captioner = locap.load(runs["pixelllm_model"], device="cpu")
    own = (Category(7, "câble"), Category(9, "floor", False, (1, 2, 3)))
    captioner.engine.categories = own
    assert stored_categories(captioner.save(tmp_path / "own")) == own
    assert stored_categories(runs["pixelllm_model"]) is None
    assert locap.load(tmp_path / "own", device="cpu").categories == own


@pytest.mark.parametrize("text", ["{", "[[1]]", '[["x", "a", true, null]]', "7"])
def test_malformed_classes_are_told(tmp_path, text):
    write_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, {"categories": text})
    with pytest.raises(CheckpointError, match="classes"):
        stored_categories(tmp_path)


# What is in the way of a folder


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints", "photo.jpg"])
def test_a_folder_with_anything_else_is_left_alone(saved, runs, name):
    (saved / name).write_text("mine")
    with pytest.raises(UsageError, match="nothing is written over it"):
        locap.load(saved, device="cpu").save(saved)
    assert (saved / name).read_text() == "mine"


def test_a_failed_save_leaves_the_earlier_folder_whole(saved, monkeypatch):
    captioner = locap.load(saved, device="cpu")
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("locap.inference.model_folder.write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        captioner.save(saved)
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before
    assert list(saved.parent.iterdir()) == [saved]


# Where a model is looked for


def test_a_misspelt_path_is_told_its_nearest_neighbour(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    with pytest.raises(UsageError) as caught:
        find_model("./savde")
    assert "There is no such model folder" in str(caught.value)
    assert "did you mean saved?" in str(caught.value)
    (saved.parent / "output").mkdir()
    (saved / "config.yaml").parent.rename(saved.parent / "output" / "run_1")
    with pytest.raises(UsageError, match="did you mean output/run_1"):
        find_model("output/run_2")
    with pytest.raises(UsageError, match=r"did you mean .*output/run_1"):
        find_model(saved.parent / "output")
    with pytest.raises(UsageError, match="file, not a model folder"):
        find_model("output/run_1/model.safetensors")


def test_a_hub_name_without_network_says_which_files_go_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError) as caught:
        locap.load("owner/some-model@v2")
    message = str(caught.value)
    assert "The model 'owner/some-model' is not on this machine" in message
    assert "config.yaml, model.safetensors" in message
    assert "hf download owner/some-model --revision v2 --local-dir some-model" in message


# Strangers


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("MODEL.TEXT_DECODER.TOKENIZER: ../../x", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: ./../x", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: ./absent", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: /etc", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: ~", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: secrets", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: ./link", "TOKENIZER"),
        ("MODEL.TEXT_DECODER.TOKENIZER: ./linked_file", "TOKENIZER"),
        ("MODEL.TEXT.PRETRAINED_TOKENIZER: file:///etc", "PRETRAINED_TOKENIZER"),
        ("DATASETS.TEST: [/home/me/shards]", "DATASETS.TEST"),
        ("DATASETS.TEST: ['pipe:cat /etc/passwd']", "DATASETS.TEST"),
        ("MODEL.BACKBONE.NAME: timm:local-dir:/etc", "BACKBONE.NAME"),
        ("_base_: ../secret.yaml", "_base_"),
    ],
)
def test_a_strangers_configuration_cannot_name_what_is_outside(saved, line, key, monkeypatch):
    monkeypatch.chdir(saved.parent)
    (saved.parent / "secrets").mkdir()
    (saved.parent / "secrets" / "vocab.txt").write_text("password")
    (saved.parent / "secret.yaml").write_text("SEED: 1")
    (saved / "link").symlink_to(saved.parent / "secrets")
    (saved / "linked_file").mkdir()
    (saved / "linked_file" / "vocab.txt").symlink_to(saved.parent / "secrets" / "vocab.txt")
    name, value = line.split(": ", 1)
    value = "'~'" if value == "~" else value
    body = yaml.safe_load((saved / "config.yaml").read_text())
    *sections, last = name.split(".") if name != "_base_" else [name]
    section = body
    for part in sections:
        section = section[part]
    section[last] = yaml.safe_load(value)
    (saved / "config.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(UsageError, match="leads out of the folder") as caught:
        locap.load(saved, device="cpu")
    assert key in str(caught.value)
    assert "password" not in str(caught.value)


def test_what_a_stranger_says_of_weights_and_data_roots_counts_nothing(saved, tmp_path):
    with (saved / "config.yaml").open("a") as file:
        file.write("\nRESUME_FROM: /etc/passwd\nRESUME: true\n")
    body = (saved / "config.yaml").read_text().replace("DATASETS:", "DATASETS:\n  ROOT: /etc", 1)
    (saved / "config.yaml").write_text(body)
    cfg = read_folder(saved)
    assert Path(cfg.RESUME_FROM) == saved
    assert not cfg.RESUME
    assert cfg.DATASETS.ROOT == ""


def test_the_caller_may_name_what_the_folder_may_not(saved, tmp_path):
    shutil.copytree(EMBEDDED / "shapes", tmp_path / "words")
    body = (saved / "config.yaml").read_text().replace("./tokenizer", str(tmp_path / "words"))
    (saved / "config.yaml").write_text(body)
    with pytest.raises(UsageError, match=r"--overrides MODEL\.TEXT_DECODER\.TOKENIZER"):
        read_folder(saved)
    words = [word for key in VOCABULARIES for word in (key, str(tmp_path / "words"))][:4]
    cfg = read_folder(saved, words)
    assert Path(cfg.MODEL.TEXT_DECODER.TOKENIZER) == tmp_path / "words"


def test_pickles_and_code_in_a_folder_are_not_read(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (saved / "modeling_locap.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(CheckpointError, match="The folder holds no weights"):
        locap.load(saved, device="cpu")


def test_every_class_is_kept(saved):
    assert stored_categories(saved) == CATEGORIES


# The command


@pytest.mark.slow
def test_the_command_writes_folders_and_says_what_it_cannot_do(runs, tmp_path, capfd, monkeypatch):
    def export(*words: object) -> tuple[int, str]:
        code = entry.main(["export", "--model", str(runs["pixelllm_model"]), *map(str, words)])
        return code, capfd.readouterr().err

    code, message = export("--to", "folder", "--output", tmp_path / "out", "--license", "mit")
    assert (code, f"written: {tmp_path / 'out'}" in message) == (0, True), message
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    assert answer(locap.load(tmp_path / "out")) == answer(locap.load(runs["pixelllm_model"]))
    code, message = export("--to", "original", "--output", tmp_path / "x.pt")
    assert (code, "not written in this layout" in message) == (2, True), message
    code, message = export("--to", "torch.export", "--output", tmp_path / "x.onnx")
    assert (code, "torch.export writes .pt2 files" in message) == (2, True), message
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, message = export("--to", "hub", "--output", "owner/name")
    assert (code, "The model is not uploaded" in message) == (5, True), message
    assert "Traceback" not in message


def test_names_of_others_begin_no_cell_and_no_html_in_a_card():
    assert _cell("a|b\n<img src=x> & c") == "a&#124;b &lt;img src=x&gt; &amp; c"
