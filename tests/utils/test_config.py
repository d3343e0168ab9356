"""Configuration: typing, merging, round trip, and what a mistake is told."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import ReadonlyConfigError

from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config, save_config
from locap.utils.config_keys import FAMILIAR, index_keys, render_value
from locap.utils.errors import UsageError
from locap.utils.schema import Config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "configs" / "pix2cap_panoptic_segmentation_captioning.yaml"
ORIGINAL = json.loads((Path(__file__).parent / "fixtures" / "original_pix2cap_config.json").read_text())


def load(*overrides: str, files=(SHIPPED,), **kwargs):
    return load_config(files, overrides, model_schemas=MODEL_SCHEMAS, **kwargs)


def error(*overrides: str, files=(SHIPPED,), **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        load(*overrides, files=files, **kwargs)
    assert caught.value.exit_code == 2
    return str(caught.value)


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def nested(flat: dict) -> dict:
    root: dict = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return root


def select(cfg, dotted: str):
    for name in dotted.split("."):
        cfg = cfg[name]
    return cfg


# Values


def test_every_familiar_name_stands_for_a_key():
    assert set(FAMILIAR.values()) <= set(index_keys(Config))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.BASE_LR", "5", 5.0),
        ("SEED", "+7", 7),
        *(("WANDB", text, True) for text in ("true", "True", "YES", "1")),
        *(("FP16", text, False) for text in ("false", "False", "no", "0")),
        ("SAVE_DIR", "False", "False"),  # a text stays a text
        ("SAVE_DIR", "010", "010"),
        ("PORT", "36872", "36872"),
        ("RESUME_FROM", "", ""),
        ("SOLVER.STEPS", "[0.5,0.9]", [0.5, 0.9]),
        ("DATASETS.TRAIN", "[a, 'b c', no]", ["a", "b c", "no"]),
        ("MODEL.BACKBONE.NAME", "timm:resnet18", "timm:resnet18"),
        ("SOLVER.LR_MULTIPLIER.lang_encoder", "0.5", 0.5),
        ("SOLVER.LR_MULTIPLIER", "{sem_seg_head.predictor: 2}", {"sem_seg_head.predictor": 2.0}),
        ("SOLVER.LR_MULTIPLIER", "{}", {}),
    ],
)
def test_override_is_read_as_the_type_of_its_key(name: str, text: str, value):
    result = select(load(name, text), name)
    assert result == value
    assert type(result) is type(value) or isinstance(value, list | dict)


def test_published_command_line():
    line = """FP16 True COCO.INPUT.IMAGE_SIZE 1024 SOLVER.MAX_NUM_EPOCHS 25 MODEL.DECODER.HIDDEN_DIM 512
        MODEL.DECODER.FROZEX True MODEL.DECODER.DENSECAPTION_WEIGHT 0.1 MODEL.MASK_HEAD_ENABLED True
        COCO.TRAIN.BATCH_SIZE_TOTAL 32 COCO.TRAIN.BATCH_SIZE_PER_GPU 4 SOLVER.LR_MULTIPLIER.lang_encoder 0.1
        WEIGHT True WANDB True RESUME_FROM xdecoder_focall_last_updated.pt"""
    cfg = load(*line.split())
    assert cfg.FP16 is True
    assert cfg.COCO.TRAIN.BATCH_SIZE_TOTAL == 32
    assert cfg.SOLVER.LR_MULTIPLIER == {"backbone": 0.1, "lang_encoder": 0.1}


@pytest.mark.fault("G9")
def test_original_file_loads_and_its_dead_keys_get_one_line(tmp_path: Path, caplog):
    path = write(tmp_path, yaml.safe_dump(nested(ORIGINAL)))
    with caplog.at_level(logging.WARNING):
        cfg = load(files=[path])
    assert len(caplog.records) == 1
    warning = caplog.records[0].getMessage()
    assert "\n" not in warning
    assert "MODEL.DECODER.{BACKBONER_WEIGHT, COSINE_WEIGHT, TOP_COSINE_LAYERS}" in warning
    known = index_keys(Config, replace={"MODEL": MODEL_SCHEMAS["pix2cap_model"]})
    live = [name for name in ORIGINAL if name in known or name.startswith("SOLVER.LR_MULTIPLIER.")]
    assert f"{len(ORIGINAL) - len(live)} keys" in warning
    assert {name: select(cfg, name) for name in live} == {name: ORIGINAL[name] for name in live}


def test_shipped_file_has_every_key_commented_and_warns_about_none(tmp_path: Path, caplog):
    cfg = load(files=[write(tmp_path, "MODEL: {NAME: pix2cap_model}")])
    written = save_config(cfg, tmp_path / "defaults.yaml").read_text()
    shipped = SHIPPED.read_text()
    assert shipped.endswith(written), f"a key or its help changed: replace the body of {SHIPPED.name} by\n{written}"
    with caplog.at_level(logging.WARNING):
        assert load() == cfg
    assert not caplog.records


# Merging


def test_files_merge_deeply_in_order(tmp_path: Path):
    first = write(tmp_path, "SOLVER: {BASE_LR: 1e-3, GAMMA: 0.5}\nMODEL.NAME: pix2cap_model\n", "a.yaml")
    second = write(tmp_path, "SOLVER:\n  BASE_LR: 2e-3\nSOLVER.LR_MULTIPLIER.backbone: null\nCOCO:\n", "b.yaml")
    cfg = load(files=[first, second])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (2e-3, 0.5)
    assert cfg.SOLVER.LR_MULTIPLIER == {"lang_encoder": 0.1}


def test_base_files_come_first_relative_to_the_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "MODEL.NAME: pix2cap_model\nSEED: 1\nLOG_EVERY: 5\n", "base.yaml")
    path = write(tmp_path / "sub", "SEED: 2\n_base_: ../base.yaml\n")
    cfg = load("LOG_FIRST", "3", files=[path], config_overrides=['{"LOG_FIRST":', '2, "SOLVER": {"GAMMA": 0.3}}'])
    assert (cfg.SEED, cfg.LOG_EVERY, cfg.LOG_FIRST, cfg.SOLVER.GAMMA) == (2, 5, 3, 0.3)


def test_configuration_is_frozen():
    cfg = load()
    with pytest.raises(ReadonlyConfigError):
        cfg.SOLVER.BASE_LR = 1.0


def test_saved_configuration_can_be_given_back(tmp_path: Path):
    cfg = load(
        *(
            "SAVE_DIR",
            'a "b" \\ ü\t#: no',
            "BASENAME",
            "null",
            "SOLVER.BASE_LR",
            "1e-5",
            "DATASETS.TRAIN",
            "['1', yes]",
        ),
        *("SOLVER.LR_MULTIPLIER", "{a.b: 0.5}", "SOLVER.FIX_PARAM.backbone", "true", "RESUME_FROM", "2024-01-01"),
    )
    saved = save_config(cfg, tmp_path / "run" / "config.yaml")
    assert load(files=[saved]) == cfg
    standard = yaml.safe_load(saved.read_text())  # other YAML readers agree
    assert standard["SAVE_DIR"] == cfg.SAVE_DIR
    assert standard["SOLVER"]["BASE_LR"] == 1e-5


@given(st.text())
def test_any_text_survives_being_written(text: str):
    printable = "".join(letter for letter in text if letter not in "\ud800" and not 0xD800 <= ord(letter) <= 0xDFFF)
    assert yaml.safe_load(f"a: {render_value(printable)}") == {"a": printable}


# Mistakes


@pytest.mark.fault("G1", "G2", "G3")
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            "MODEL.DECODER.DETECTION Fasle",
            ["MODEL.DECODER.DETECTION: 'Fasle'", "command line", "did you mean", "false?"],
        ),
        ("WANDB 2", ["'2' is neither true nor false", "yes, no, 1 or 0 (default: false)"]),
        ("SOLVER.BASE_LRR 1", ['"SOLVER.BASE_LRR"', "did you mean SOLVER.BASE_LR?", "(default: 0.0001)"]),
        ("BASE_LR 1", ["did you mean SOLVER.BASE_LR?"]),
        ("SOLVER.LEARNING_RATE 1", ['"SOLVER.LEARNING_RATE"', "did you mean SOLVER.BASE_LR?"]),
        ("optim.lr 1", ["did you mean SOLVER.BASE_LR?"]),
        ("solver.gamma 1", ["did you mean SOLVER.GAMMA?"]),
        ("MODEL.DECODER.XYZ 1", ["in MODEL.DECODER:", "NUM_OBJECT_QUERIES"]),
        ("SOLVER 1", ["SOLVER is a section, not a key", "BASE_LR"]),
        ("SEED.x 1", ["SEED is not a section"]),
        ("SOLVER.BASE_LR abc", ["'abc' is not a finite number"]),
        ("SOLVER.BASE_LR .nan", ["'.nan' is not a finite number"]),
        ("SOLVER.BASE_LR 1e999", ["'1e999' is not a finite number"]),
        ("SOLVER.BASE_LR -1", ["-1 is too small", "at least 0"]),
        ("SOLVER.BASE_LR [1]", ["'[1]' is not a finite number"]),
        ("SEED 2.5", ["'2.5' is not a whole number"]),
        ("DATASETS.TRAIN name", ["'name' is not a list", "[a, b, ...]"]),
        ("SOLVER.STEPS [0.5,2]", ["2 is too large", "at most 1"]),
        ("SOLVER.STEPS [0.5", ["command line, SOLVER.STEPS"]),
        ("MODEL.NAME pix2cap", ["did you mean pix2cap_model?"]),
        ("MODEL.BACKBONE.NAME focla", ["focal, focal_dw, davit, vit, timm:<name>", "mean MODEL.BACKBONE.NAME focal?"]),
        ("SAVE_DIR ${oc.env:HOME}", ["write the value itself"]),
        ("SEED", ["SEED has no value", "read so far: nothing"]),
        ("WANDB True SEED", ["SEED has no value", "read so far: WANDB = True"]),
        ("WEIGHT RESUME True", ["WEIGHT has no value: the next word, RESUME, is a key itself"]),
        ("SEED=3", ["SEED=3: keys and values are separate words", "write --overrides SEED 3"]),
        ("WEIGHT True", ["RESUME_FROM names no weights file"]),
        ("MODEL.DECODER.NHEADS 7", ["512 is not a multiple of MODEL.DECODER.NHEADS 7"]),
    ],
)
def test_wrong_override_is_explained(overrides: str, parts: list[str]):
    message = error(*overrides.split(" "))
    assert [part for part in parts if part not in message] == []
    assert len(message.splitlines()) <= 12


@pytest.mark.fault("G5", "G6", "G7")
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("SEED: 1\nSOLVER:\n  BASE_RL: 3\n", ["x.yaml:3", "did you mean SOLVER.BASE_LR?"]),
        ("SEED: 1\n\nSEED: 2\n", ["x.yaml:3", "SEED is given twice, first on line 1"]),
        ("SOLVER: {GAMMA: 1}\nSOLVER.GAMMA: 2\n", ["x.yaml:2", "SOLVER.GAMMA is given twice"]),
        ("SOLVER:\n\tGAMMA: 1\n", ["x.yaml:2", "indented with a tab"]),
        ("SEED:\n", ["x.yaml:1", "it has no value"]),
        ("SEED: [1]\n", ["'[\"1\"]' is not a single value"]),
        ("SEED: {a: 1}\n", ["SEED is not a section"]),
        ("- SEED\n", ["The configuration is a list"]),
        ("SEED\n", ["The configuration is a single value"]),
        ("# nothing\n", ["The configuration is empty"]),
        ("SEED: 1\n---\nSEED: 2\n", ["x.yaml:2", "more than one YAML document"]),
        ("SAVE_DIR: !!python/object/apply:os.system [x]\n", ["YAML tags are not allowed", "x.yaml:1"]),
        ("SEED: &a [*a]\n", ["nested too deeply"]),
        ("SEED: " + "[" * 10_000, ["nested too deeply"]),
        ("SAVE_DIR: " + "x" * 1_000_001, ["too large", "1000000 bytes"]),
        ("_base_: [other.yaml]\n", ["no such configuration file", "x.yaml?"]),
        ("_base_: /etc/passwd\n", ["_base_ must name configuration files"]),
        ("_base_: x.yaml\n", ["circle", "x.yaml -> "]),
    ],
)
def test_wrong_file_is_explained(tmp_path: Path, text: str, parts: list[str]):
    message = error(files=[SHIPPED, write(tmp_path, text)])
    assert [part for part in parts if part not in message] == []


@pytest.mark.fault("G7")
def test_alias_bomb_is_refused(tmp_path: Path):
    lines = ["A0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"A{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "at most 10000 values, aliases followed" in error(files=[write(tmp_path, "\n".join(lines))])


@pytest.mark.fault("G5")
def test_missing_file_names_the_near_one(tmp_path: Path):
    message = error(files=[SHIPPED.with_name("pix2cap_panoptic_segmentation_captionin.yaml")])
    assert f"did you mean {SHIPPED}?" in message
    assert "folder, not a configuration file" in error(files=[tmp_path])
    (tmp_path / "x.yaml").write_bytes(b"SEED: \xff")
    assert "not UTF-8 text (byte 6)" in error(files=[tmp_path / "x.yaml"])


@pytest.mark.fault("G4")
def test_all_problems_are_reported_together(tmp_path: Path):
    path = write(tmp_path, "MODEL.NAME: pix2cap_model\nSEED: x\nLOG_EVERRY: 3\n")
    lines = error("FP16", "maybe", "SOLVER.GAMMA=1", files=[path, tmp_path / "absent.yaml"]).splitlines()
    assert lines[0] == "5 problems in the configuration:"
    assert [
        part for part in ("absent.yaml", "SOLVER.GAMMA=1", "x.yaml:2", "x.yaml:3", "FP16") if part not in "".join(lines)
    ] == []


def test_model_must_be_named(tmp_path: Path):
    assert "MODEL.NAME is not set" in error(files=[write(tmp_path, "SEED: 1")])


@pytest.mark.fault("G10")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, len(SHIPPED.read_text())),
    st.integers(0, 30),
    st.text(alphabet=":-[]{}&*!#\n\t\"'%@ ?,|>0a.\0", max_size=8),
)
def test_a_damaged_file_loads_or_is_explained(tmp_path: Path, start: int, removed: int, inserted: str):
    text = SHIPPED.read_text()
    path = write(tmp_path, text[:start] + inserted + text[start + removed :])
    with contextlib.suppress(UsageError):
        load(files=[path])


def test_configuration_is_checked_without_torch():
    code = (
        f"import runpy; runpy.run_path({str(ROOT / 'entry.py')!r}, run_name='entry');"
        "import sys; from locap.utils.config import load_config; from locap.modeling.schemas import MODEL_SCHEMAS;"
        f"load_config([{str(SHIPPED)!r}], model_schemas=MODEL_SCHEMAS); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
