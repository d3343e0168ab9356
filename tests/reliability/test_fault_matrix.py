"""Every fault that locap has to live with, and the tests that stand for it: ``@pytest.mark.fault("A1")``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROWS = {
    "A1": "killed at any step",
    "A2": "killed at any write of a save",
    "A3": "killed between rename, latest and deletion",
    "A4": "asked to stop by a signal",
    "A5": "mpirun is terminated",
    "A6": "second signal, signal during a save",
    "A7": "STOP file, hours used up",
    "A8": "signal on one rank only",
    "A9": "launcher dies, workers are orphans",
    "A10": "loader worker is killed or raises",
    "A11": "loader worker hangs",
    "A12": "shared memory too small",
    "A13": "exception on one rank",
    "A14": "one rank is killed",
    "A15": "one rank hangs",
    "A16": "one rank leaves early",
    "A17": "ranks disagree",
    "A18": "collectives do not match",
    "B1": "disk full during a save",
    "B2": "disk full for logs",
    "B3": "run folder cannot be written to",
    "B4": "data set cannot be written to",
    "B5": "two runs in one folder",
    "B6": "file system without locks",
    "B7": "checkpoint truncated, files missing",
    "B8": "bit flips, zeroed blocks",
    "B9": "no checkpoint is valid",
    "B10": "checkpoints of another model",
    "B11": "checkpoints of earlier releases",
    "B12": "configuration changed at resume",
    "B13": "ranks or workers changed at resume",
    "B14": "asynchronous save overlaps an update",
    "B15": "saving over the mapped source",
    "B16": "equal step names",
    "B17": "half a line in metrics.jsonl",
    "C1": "port in use",
    "C2": "peer or master missing",
    "C3": "launcher variables contradict each other",
    "C4": "no GPU, driver too old",
    "C5": "fewer images than ranks, ragged ends",
    "C6": "a rank without targets",
    "C7": "one rank saves slowly",
    "D1": "loss is not finite",
    "D2": "gradient overflows in half precision",
    "D3": "NaN in the initial weights",
    "D4": "nothing to learn from",
    "D5": "attention row fully masked",
    "D6": "NaN cost in matching",
    "D7": "NaN scores and boxes",
    "D8": "GPU out of memory",
    "D9": "loss spike",
    "E1": "image empty, HTML, truncated, bad checksum",
    "E2": "flipped byte that still decodes",
    "E3": "every image mode",
    "E4": "EXIF orientation",
    "E5": "image size differs from the annotation",
    "E6": "extreme image shapes",
    "E7": "image bombs, animations",
    "E8": "foreign image formats",
    "E9": "odd file names",
    "E10": "image vanishes or is forbidden",
    "E11": "panoptic PNG and JSON disagree",
    "R1": "annotation file missing",
    "R2": "malformed JSON",
    "R3": "missing or mistyped field",
    "R4": "duplicate ids",
    "R5": "dangling references between records",
    "R6": "impossible boxes",
    "R7": "impossible polygons",
    "R8": "impossible run-length encodings",
    "R9": "mask vanishes by cropping",
    "R10": "odd captions",
    "R11": "predictions missing, twice, unasked, NaN",
    "R12": "conversation about a region that is not there",
    "R13": "impossible traces",
    "R14": "too many bad samples",
    "R15": "no good sample at all",
    "G1": "unknown key",
    "G2": "value of the wrong kind",
    "G3": "misread command line",
    "G4": "mandatory key missing",
    "G5": "configuration file missing or malformed",
    "G6": "cyclic includes and references",
    "G7": "hostile YAML",
    "G8": "values that contradict each other",
    "G9": "keys of the original code",
    "G10": "any mutation of a shipped configuration",
    "H1": "weights do not fit",
    "H2": "no weight fits",
    "H3": "vocabulary or positions of another size",
    "H4": "malicious pickle",
    "H5": "tensor bombs",
    "H6": "weights file is something else",
    "H7": "hub cannot be reached",
    "H8": "hub configuration asks for code",
    "N1": "Java missing, broken, silent",
    "N2": "wandb missing, silent, dying",
    "N3": "TensorBoard folder cannot be written to",
    "N4": "torch, torchvision and kernels do not match",
    "N5": "optional package missing",
    "N6": "plain terminal, other encodings",
    "N7": "no home, read-only caches",
    "N8": "small machine",
    "J1": "upload too large",
    "J2": "path traversal in the demo",
    "J3": "addresses in place of images",
    "J4": "hostile images in the demo",
    "J5": "impossible questions in the demo",
    "J6": "many users at once",
    "J7": "user leaves during generation",
    "J8": "model fails during a request",
    "J9": "port taken, listening to all",
    "J10": "state and files between users",
    "J11": "pages of other sites, analytics",
    **{f"K{number}": "downloads" for number in range(1, 6)},
}
LATER = {  # rows without a test, each with its reason
    "B11": "there has been no release whose checkpoints would have to load",
}


def marks(path: Path) -> Iterator[str]:
    """Yield the rows that a file's tests stand for, without importing it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (ast.literal_eval(argument) for argument in node.args)


def covered() -> dict[str, list[str]]:
    """Return row -> files with a test for it."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for row in marks(path):
            found.setdefault(row, []).append(str(path.relative_to(TESTS)))
    return found


def test_the_matrix_is_whole():
    assert len(ROWS) == 119
    assert LATER.keys() <= ROWS.keys()


def test_marks_name_rows():
    assert {row: files for row, files in covered().items() if row not in ROWS} == {}


def test_every_row_has_a_test_or_a_reason(figure):
    found = covered()
    open_rows = [row for row in ROWS if row not in found and row not in LATER]
    assert {row: ROWS[row] for row in open_rows} == {}
    assert sorted(found.keys() & LATER.keys()) == [], "has a test by now: take it out of LATER"
    figure("T9", f"{len(found)} of {len(ROWS)} rows have tests; {len(LATER)} are of what does not exist yet")
