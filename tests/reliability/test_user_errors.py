"""One mistake in a command line or a configuration: one message with place and remedy, the right code, no traceback."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap import entry
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config
from locap.utils.config_keys import index_keys
from locap.utils.errors import UsageError
from locap.utils.schema import Config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PIX2CAP = "configs/pix2cap_panoptic_segmentation_captioning.yaml"
LARGEST = 12  # lines of a message


class Mistake(NamedTuple):
    """A command line with one mistake, its exit code and what the message has to hold."""

    line: str
    code: int
    says: tuple[str, ...]


def mistake(line: str, code: int, *says: str) -> Mistake:
    """Return a mistake; ``QS`` and ``P2C`` stand for shipped configurations."""
    return Mistake(line.replace("QS", "configs/quickstart.yaml").replace("P2C", PIX2CAP), code, says)


KEYS = [  # README's commands and rows G1 to G4, G8
    ("SOLVER.BASE_LRR 1e-4", '"SOLVER.BASE_LRR"', "did you mean SOLVER.BASE_LR?"),
    ("MODEL.DECODER.DETECTOIN False", "did you mean MODEL.DECODER.DETECTION?"),
    ("BASE_LR 1e-4", "did you mean SOLVER.BASE_LR?"),
    ("NOTHING.LIKE.THIS 1", '"NOTHING.LIKE.THIS"', "allowed:"),
    ("MODEL.DECODER.DETECTION Fasle", "'Fasle'", "did you mean MODEL.DECODER.DETECTION false?"),
    ("WANDB 2", "'2' is neither true nor false", "allowed:"),
    ("SOLVER.BASE_LR abc", "'abc' is not a finite number", "allowed:"),
    ("SOLVER.BASE_LR .nan", "'.nan' is not a finite number"),
    ("SOLVER.BASE_LR -1", "-1 is too small", "at least 0"),
    ("SOLVER.MAX_NUM_EPOCHS 2.5", "'2.5' is not a whole number"),
    ("SOLVER.BASE_LR [1,2]", "is not a finite number"),
    ("DATASETS.TRAIN pix2cap_coco_train_with_sem_seg", "is not a list", "[a, b, ...]"),
    ("SOLVER.STEPS [0.5,2]", "2 is too large"),
    ("SOLVER.STEPS [0.9,0.5]", "not in rising order"),
    ("SOLVER.STEPS [0.5", "SOLVER.STEPS"),
    ("PRECISION fp8", "'fp8' is not one of the allowed values", "bf16"),
    ("FP16 True COCO.TRAIN.BATCH_SIZE_TOTAL", "COCO.TRAIN.BATCH_SIZE_TOTAL has no value", "read so far: FP16 = True"),
    ("FP16 COCO.INPUT.IMAGE_SIZE 1024", "FP16 has no value: the next word, COCO.INPUT.IMAGE_SIZE, is a key itself"),
    ("FP16=True", "keys and values are separate words", "write --overrides FP16 True"),
    ("SOLVER 1", "SOLVER is a section, not a key", "BASE_LR"),
    ("SEED.x 1", "SEED is not a section"),
    ("MODEL.NAME pix2cap", "did you mean pix2cap_model?"),
    ("WEIGHT True", "RESUME_FROM names no weights file"),
    ("WEIGHT True RESUME True RESUME_FROM x", "only one of them can be true"),
    ("FP16 True PRECISION bf16", "FP16 is true, but PRECISION is bf16"),
    ("COCO.INPUT.MIN_SCALE 2.0 COCO.INPUT.MAX_SCALE 1.0", "MIN_SCALE 2.0 > MAX_SCALE 1.0"),
    ("COCO.INPUT.MIN_SIZE_TEST 2000 COCO.INPUT.MAX_SIZE_TEST 1000", "MIN_SIZE_TEST 2000 > MAX_SIZE_TEST 1000"),
    ("INPUT.PIXEL_MEAN [1,2]", "2 values for 3 channels"),
    ("MODEL.DECODER.NHEADS 7", "512 is not a multiple of MODEL.DECODER.NHEADS 7"),
    ("MODEL.BACKBONE.FOCAL.FOCAL_LEVELS [2,2]", "2 stages, but DEPTHS has 4"),
    ("SAVE_DIR ${oc.env:HOME}", "write the value itself"),
]
LINES = [
    *(mistake(f"train --conf_files P2C --overrides {pairs}", 2, *says) for pairs, *says in KEYS),
    mistake(
        "train --conf_files configs/quickstrat.yaml", 2, "no such configuration file", "did you mean", "quickstart"
    ),
    mistake("train --conf_files configs", 2, "folder, not a configuration file"),
    mistake("train --conf_files nowhere/at/all.yaml", 2, "nowhere/at does not exist either"),
    mistake("train --conf_files QS --config_overrides {SEED:", 2, "--config_overrides"),
    mistake("train --conf_files QS --config_overrides '[1]'", 2, "is a list"),
    mistake("evaluate --conf_files QS --overrides RESUME_FROM", 2, "RESUME_FROM has no value"),
    mistake("evaluate --predictions p.json", 2, "--protocol is missing", "allowed:"),
    mistake("evaluate --predictions p.json --protocol panoptc --ground-truth t.json", 2, "use panoptic"),
    mistake("evaluate --predictions p.json --protocol panoptic", 2, "--ground-truth is missing"),
    mistake(
        "evaluate --predictions p.json --protocol panoptic --ground-truth nowhere.json", 3, "nowhere.json", "exist"
    ),
    mistake("evaluate --compare one.json", 2, "two result files or more"),
    mistake("evaluate --compare a.json b.json", 3, "a.json", "does not exist"),
    mistake("predict --image photo.jpg", 2, "give --conf_files FILE.yaml, or --model RUN_FOLDER"),
    mistake("predict --model ./nowhere/run_1", 2, "config.yaml", "no such model folder"),
    mistake("predict --model nowhere/run_1", 5, "hf download nowhere/run_1"),
    mistake("predict --conf_files QS --box 5 5 1 1", 2, "corners of the box are exchanged"),
    mistake("predict --conf_files QS --box nan 0 1 1", 2, "box"),
    mistake("predict --conf_files QS --text ''", 2, "text"),
    mistake(
        "export --model nowhere --to original --output out.pt", 2, "no such model folder", "nowhere", "config.yaml"
    ),
    mistake("export --conf_files QS --to original --output out.pt", 2, "RESUME_FROM"),
    mistake("combine --xdecoder nowhere.pt", 4, "nowhere.pt", "does not exist"),
]
USAGE = [  # told by the parser of arguments, with the command's usage
    ("frobnicate", "invalid choice: 'frobnicate'"),
    ("", "arguments are required"),
    ("train", "--conf_files"),
    ("train --conf_files", "expected at least one argument"),
    ("train --conf_flies x.yaml", "--conf_files"),
    ("predict --model run --box 1 2 3", "expected 4 arguments"),
    ("predict --model run --box 1 2 3 x", "invalid float value: 'x'"),
    ("predict --model run --point 1", "expected 2 arguments"),
    ("export --model run --to folder", "--output"),
    ("export --model run --output x.pt", "--to"),
    ("export --model run --to other --output x.pt", "invalid choice: 'other'"),
    ("combine --xdecodr x.pt", "unrecognized arguments: --xdecodr"),
]


def run(line: str, capsys) -> tuple[int, str, float]:
    """Return exit code, what was said and the seconds of a command in this process."""
    started = time.monotonic()
    try:
        code = entry.main(shlex.split(line))
    except SystemExit as err:
        code = err.code
    return code, capsys.readouterr().err, time.monotonic() - started


@pytest.mark.fault("G1", "G2", "G3", "G5", "G8", "R1")
def test_every_mistake_has_one_message_and_its_code(capsys, monkeypatch, figure):
    """In one test, so that the figure covers all of them."""
    monkeypatch.chdir(ROOT)
    wrong, slowest = [], 0.0
    for line, code, says in LINES:
        got, said, seconds = run(line, capsys)
        told = [line for line in said.splitlines() if not line.startswith("warning")]
        missing = [part for part in says if part not in said]
        if got != code or missing or "Traceback" in said or len(told) > LARGEST or said.count("error: ") != 1:
            wrong.append(f"{line}: {got} instead of {code}, without {missing}: {said}")
        slowest = max(slowest, seconds)
    for line, says in USAGE:
        got, said, _ = run(line, capsys)
        if got != 2 or says not in said or "Traceback" in said:
            wrong.append(f"{line}: {got}, without {says!r}: {said}")
    assert "\n".join(wrong) == ""
    figure(
        "T10",
        f"{len(LINES) + len(USAGE)} mistakes: 0 tracebacks, each with its code and place; {slowest:.1f} s at most",
    )


@pytest.mark.fault("G1")
def test_configuration_mistakes_are_told_within_three_seconds(python_seconds, figure):
    code, seconds, said = python_seconds(
        "train", "--conf_files", "configs/quickstart.yaml", "--overrides", "SEEED", "1"
    )
    assert code == 2, said
    assert "did you mean SEED?" in said
    assert seconds < 3
    figure("T10", f"a wrong configuration is told {seconds:.1f} s after the command")


@pytest.fixture
def python_seconds():
    """Return a function: start entry.py in a process of its own; code, processor seconds and what it said."""
    import resource
    import subprocess

    def start(*words: str) -> tuple[int, float, str]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "entry.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # others may use the machine
        return done.returncode, spent, done.stderr

    return start


@pytest.mark.fault("G4")
def test_everything_that_is_missing_is_told_at_once(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("SOLVER:\n  BASE_LR:\n  GAMMA:\nMODEL: {NAME: pix2cap_model, DIM_PROJ: }\nSEED: ${SEED}\n")
    with pytest.raises(UsageError) as caught:
        load_config([path], model_schemas=MODEL_SCHEMAS)
    said = str(caught.value)
    assert "4 problems" in said
    assert all(part in said for part in ("x.yaml:2", "x.yaml:3", "x.yaml:4", "x.yaml:5", "SEED", "GAMMA"))


@pytest.mark.fault("G6")
def test_cycles_of_includes_show_the_way_round(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_base_: {base}.yaml\n")
    with pytest.raises(UsageError, match=r"circle(.|\n)*a\.yaml -> .*b\.yaml -> .*c\.yaml -> .*a\.yaml"):
        load_config([tmp_path / "a.yaml"], model_schemas=MODEL_SCHEMAS)
    for depth in range(25):
        (tmp_path / f"d{depth}.yaml").write_text(f"_base_: d{depth + 1}.yaml\n")
    with pytest.raises(UsageError, match="nested too deeply"):
        load_config([tmp_path / "d0.yaml"], model_schemas=MODEL_SCHEMAS)


VALUES = st.one_of(
    st.sampled_from(["", "null", "true", "Fasle", "0", "-1", "1", "2", "3", "7", "1e-4", "1e999", ".nan", "[]", "{}"]),
    st.sampled_from(["[1, 2]", "[a, b]", "[[1]]", "{a: 1}", "{a: {b: 1}}", "~", "${SEED}", "???", "!!int 3", "&a *a"]),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.text(max_size=12),
)  # fmt: skip
SPECS = {name: list(index_keys(Config, replace={"MODEL": schema})) for name, schema in MODEL_SCHEMAS.items()}


@st.composite
def mutations(draw) -> tuple[Path, list[str]]:
    """Draw a shipped configuration and overrides of any of its keys, some of them not its own."""
    keys = draw(st.sampled_from(list(SPECS.values())))
    pairs = draw(st.lists(st.tuples(st.sampled_from(keys), VALUES), min_size=1, max_size=4))
    words = [word for pair in pairs for word in pair]
    if draw(st.integers(0, 5)) == 0:
        del words[draw(st.integers(0, len(words) - 1))]
    return draw(st.sampled_from(CONFIGS)), words


def lines_of_refusal(path: Path, words: Sequence[str] = ()) -> int:
    """Return the length of the user error, 0 when the configuration loads; any other exception passes."""
    try:
        load_config([path], words, model_schemas=MODEL_SCHEMAS)
    except UsageError as err:
        return len(str(err).splitlines())
    return 0


@pytest.mark.fault("G10")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
def test_any_override_of_any_shipped_configuration_loads_or_is_explained(mutated):
    path, words = mutated
    assert lines_of_refusal(path, words) <= LARGEST


@pytest.mark.fault("G10")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(CONFIGS), st.integers(0, 10**6), st.integers(0, 40), st.text(max_size=6), st.booleans())
def test_any_damage_to_any_shipped_file_loads_or_is_explained(tmp_path, path, place, removed, inserted, by_line):
    """Characters or whole lines are taken out and others put in; the file stays in its folder for what it includes."""
    text = path.read_text(encoding="utf-8")
    pieces = text.splitlines(keepends=True) if by_line else list(text)
    at = place % (len(pieces) + 1)
    damaged = "".join([*pieces[:at], inserted, *pieces[at + removed :]])
    file = tmp_path / "x.yaml"
    file.write_text(damaged.replace("_base_: ", f"_base_: {path.parent}/", 1), encoding="utf-8", errors="replace")
    assert lines_of_refusal(file) <= LARGEST
