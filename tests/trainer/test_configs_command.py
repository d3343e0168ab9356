"""`configs list | show | explain | diff | schema`: the texts a user reads, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from locap.entry import main
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config, trace_config
from locap.utils.config_keys import render_value
from locap.utils.explain_config import json_schema, settings

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SHAPES = ROOT / "configs" / "pixelllm" / "shapes"


def said(capsys, *arguments: str, code: int = 0) -> str:
    assert main(["configs", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def rows(text: str) -> dict[str, str]:
    """The lines of a plain table by their first cell."""
    return {line.split()[0]: line for line in text.splitlines()[1:]}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    Path("parts/base.yaml").write_text("MODEL: {NAME: pix2cap_model}\nSOLVER:\n  BASE_LR: 1e-3\n")
    Path("mine.yaml").write_text("# Mine.\n_base_: parts/../parts/base.yaml\n\nDATASETS: {WEIGHTS: {a: 2, b: 3}}\n")
    return tmp_path


def test_list_names_every_shipped_file_with_what_it_is_about(capsys):
    text = said(capsys, "list")
    lines = {path: next(line for line in text.splitlines() if str(path) in line) for path in _shipped()}
    quickstart = lines[Path("configs/quickstart.yaml")]
    assert "pix2cap_model" in quickstart
    assert "shapes_train, shapes_val" in quickstart
    assert "A tiny Pix2Cap on the embedded data set" in quickstart
    assert "(part of others)" in lines[Path("configs/pixelllm/public_weights.yaml")]
    inherited = lines[Path("configs/pixelllm/bert/pixel_llm_bert_trace.yaml")]  # has no comment of its own
    assert "narratives with a place for every word" in inherited


def _shipped() -> list[Path]:
    return [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")]


def test_list_of_another_folder(capsys, files):
    Path("broken.yaml").write_text("MODEL: {NAME: pix2cap_modell}\n")
    text = said(capsys, "list", ".")
    assert "mine.yaml" in text
    assert "Mine." in text
    assert "(MODEL.NAME names no known model.)" in text
    assert "There is no configuration file here." in said(capsys, "list", "nowhere", code=2)


def test_show_says_which_line_set_every_value(capsys, files):
    text = said(capsys, "show", "--conf_files", "mine.yaml", "--overrides", "SEED", "7", "DATASETS.WEIGHTS.c", "1")
    found = rows(text)
    specs = trace_config(["mine.yaml"], model_schemas=MODEL_SCHEMAS).index.specs
    assert list(found) == list(specs)
    assert found["SOLVER.BASE_LR"].split() == ["SOLVER.BASE_LR", "0.001", "parts/base.yaml:3"]
    assert found["SEED"].split()[1:] == ["7", "command", "line"]
    assert found["DATASETS.WEIGHTS"].split("  ", 1)[1].strip().split("  ")[0] == "{a: 2.0, b: 3.0, c: 1.0}"
    assert found["DATASETS.WEIGHTS"].endswith("  mine.yaml:4, command line")
    assert found["COMPILE"].split()[-1] == "default"


def test_show_changed_shows_what_is_not_the_default(capsys, files):
    overrides = ["--overrides", "SEED", "7", "COMPILE", "false"]  # the second is the default, though it was given
    assert list(rows(said(capsys, "show", "--changed", "--conf_files", "mine.yaml", *overrides))) == [
        "SEED",
        "MODEL.NAME",
        "DATASETS.WEIGHTS",
        "SOLVER.BASE_LR",
    ]


def test_values_shown_are_those_that_training_uses():
    for path in (QUICKSTART, SHAPES / "mixed.yaml"):
        cfg = load_config([path], model_schemas=MODEL_SCHEMAS)
        shown = {item.name: item.value for item in settings(trace_config([path], model_schemas=MODEL_SCHEMAS))}
        assert shown["SOLVER.BASE_LR"] == render_value(cfg.SOLVER.BASE_LR)
        assert shown["DATASETS.TRAIN"] == render_value(list(cfg.DATASETS.TRAIN))


def test_nothing_is_cut_in_plain_text(capsys, files):
    long = "x" * 400
    assert long in said(capsys, "show", "--conf_files", "mine.yaml", "--overrides", "SAVE_DIR", long)


def test_a_run_folder_is_a_configuration(capsys, files):
    Path("run").mkdir()
    Path("run/config.yaml").write_text("MODEL: {NAME: pix2cap_model}\nSEED: 3\n")
    assert "run/config.yaml:2" in rows(said(capsys, "show", "--conf_files", "run"))["SEED"]
    diff = rows(said(capsys, "diff", "run", "mine.yaml"))
    assert list(diff) == ["SEED", "DATASETS.WEIGHTS", "SOLVER.BASE_LR"]


def test_explain_a_key(capsys):
    assert said(capsys, "explain", "COCO.INPUT.RANDOM_FLIP") == (
        "COCO.INPUT.RANDOM_FLIP: training flip, probability 0.5\n"
        "  type:     str\n"
        "  allowed:  horizontal, vertical, none (default: horizontal)\n\n"
    )
    text = said(capsys, "explain", "DATASETS.WEIGHTS.some_set")
    assert text.startswith("DATASETS.WEIGHTS: ")
    assert "dict[str, float]" in text
    assert "not in the original Pix2Cap configuration" in text
    assert "allowed:  pix2cap_model, pixelllm_model" in said(capsys, "explain", "MODEL.NAME")
    assert "systems:  pixelllm_model" in said(capsys, "explain", "MODEL.PROMPTS.MAX_PROMPTS")


def test_explain_with_files_says_who_set_it(capsys, files):
    text = said(
        capsys, "explain", "SOLVER.BASE_LR", "--conf_files", "mine.yaml", "--overrides", "SOLVER.BASE_LR", "2e-3"
    )
    assert "value:    0.002" in text
    first, last = (line for line in text.splitlines() if "set by" in line)
    assert "parts/base.yaml:3: SOLVER.BASE_LR = 1e-3" in first
    assert "command line: SOLVER.BASE_LR = 2e-3" in last
    assert "nothing: this is the default" in said(capsys, "explain", "SEED", "--conf_files", "mine.yaml")


def test_explain_a_section(capsys):
    text = said(capsys, "explain", "SHAPES")
    names = [line.split(":")[0] for line in text.splitlines() if line.startswith("SHAPES.")]
    assert "SHAPES.NUM_TRAIN" in names
    assert "SHAPES.IMAGE_SIZE" in names


def test_unknown_keys_get_the_message_of_training(capsys):
    assert main(["train", "--conf_files", QUICKSTART, "--overrides", "SOLVER.BASE_LRR", "1"]) == 2
    of_training = capsys.readouterr().err
    assert "did you mean SOLVER.BASE_LR? It takes a finite number at least 0" in of_training
    assert said(capsys, "explain", "SOLVER.BASE_LRR", code=2) == of_training
    assert "did you mean" in said(capsys, "show", "--conf_files", QUICKSTART, "--overrides", "SEEED", "1", code=2)
    assert "There is no such configuration file." in said(capsys, "diff", QUICKSTART, "nowhere.yaml", code=2)


def test_diff_of_two_files_and_of_a_file_with_overrides(capsys):
    trace, refer = str(SHAPES / "trace.yaml"), str(SHAPES / "refer.yaml")
    text = said(capsys, "diff", trace, refer)
    assert text.splitlines()[0].split() == ["KEY", trace, refer]
    assert "[trace:shapes_train]" in rows(text)["DATASETS.TRAIN"]
    assert "[refer:shapes_train]" in rows(text)["DATASETS.TRAIN"]
    assert "SEED" not in rows(text)
    assert said(capsys, "diff", trace, trace) == "no key differs\n"
    assert list(rows(said(capsys, "diff", trace, "--overrides", "SEED", "9"))) == ["SEED"]


def test_diff_of_two_systems_says_which_keys_only_one_has(capsys):
    text = rows(said(capsys, "diff", QUICKSTART, str(SHAPES / "trace.yaml")))
    assert text["MODEL.PROMPTS.MAX_PROMPTS"].split()[1:4] == ["(no", "such", "key)"]


def test_the_schema_takes_shipped_files_and_refuses_wrong_keys(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    schema = json.loads(said(capsys, "schema"))
    assert schema == json.loads(json.dumps(json_schema(MODEL_SCHEMAS)))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in (QUICKSTART, ROOT / "configs" / "pix2cap_panoptic_segmentation_captioning.yaml"):
        validator.validate(yaml.safe_load(Path(path).read_text()))
    for wrong in ({"SOLVER": {"BASE_LRR": 1}}, {"SEED": "seven"}, {"MODEL": {"NAME": "no_model"}}):
        assert not validator.is_valid(wrong), wrong


def test_on_a_terminal_a_table_is_drawn(capsys, monkeypatch, files):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    text = said(capsys, "show", "--changed", "--conf_files", "mine.yaml")
    assert "─" in text
    assert "…" not in text
