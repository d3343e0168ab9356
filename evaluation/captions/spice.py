"""SPICE (Anderson et al. 2016) of captions: the original program, whose parser is an optional download.

Beside the jars that pip brings it needs, in the folder ``spice/lib`` of the installed pycocoevalcap, the English parser
CoreNLP 3.6.0 with its models and, since Java 15, a JavaScript engine with which it formats its answer. The stage after
the parser alone is `scene_graph`, which needs neither.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...utils.errors import MissingDependencyError
from . import java

CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CORENLP_SOURCE = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
ENGINE = ("nashorn-core-15.*.jar", "asm-*.jar")
ENGINE_SOURCE = "org.openjdk.nashorn:nashorn-core:15.4 of Maven Central, with what it depends on"
HEAP = 8  # GB that the parser may use, as far as the machine has them
BASE_TIMEOUT, CAPTION_TIMEOUT = 600.0, 1.0  # seconds


@dataclass(frozen=True, slots=True)
class SpiceScores:
    """F-scores of N candidates, float64 [N], and their mean."""

    segments: np.ndarray
    corpus: float


def spice_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> SpiceScores:
    """Score tokenised captions; the references of a candidate make one scene graph.

    Raises:
        MissingDependencyError: Java or one of the files is missing, or the program failed; its messages are included.
    """
    classes = find_classes()
    if not candidates:
        return SpiceScores(np.zeros(0), 0.0)
    pairs = zip(candidates, references, strict=True)
    items = [{"image_id": i, "test": ours, "refs": list(theirs)} for i, (ours, theirs) in enumerate(pairs)]
    with tempfile.TemporaryDirectory(prefix="locap-spice-") as folder:
        given, answer = Path(folder) / "captions.json", Path(folder) / "scores.json"
        given.write_text(json.dumps(items), encoding="ascii")
        _run(classes, given, answer, BASE_TIMEOUT + CAPTION_TIMEOUT * sum(1 + len(group) for group in references))
        scores = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(answer.read_text("utf-8"))}
    segments = np.array([float(scores[i]) for i in range(len(items))])
    return SpiceScores(segments, float(segments.mean()))


def find_classes() -> list[Path]:
    """Return the class path.

    Raises:
        MissingDependencyError: with the missing files, where they come from and where they belong.
    """
    jar = java.find_jar("spice", "spice-1.0.jar")
    library = jar.parent / "lib"
    wanted = [(CORENLP_SOURCE, CORENLP), (ENGINE_SOURCE, ENGINE)]
    missing = {source: [name for name in names if not any(library.glob(name))] for source, names in wanted}
    if any(missing.values()):
        parts = [f"{', '.join(names)} from {source}" for source, names in missing.items() if names]
        raise MissingDependencyError(
            "SPICE needs an optional download that is not there.",
            where=str(library),
            value=", ".join(name for names in missing.values() for name in names),
            fix=f"put there {' and '.join(parts)}",
        )
    return [jar, *sorted(library.glob("*.jar"))]


def _run(classes: Sequence[Path], given: Path, answer: Path, timeout: float) -> None:
    heap = max(2, min(HEAP, java.free_memory() // 2**30 or HEAP))
    command = [str(java.find_java()), f"-Xmx{heap}G", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8"]
    command += ["-cp", os.pathsep.join(map(str, classes)), "edu.anu.spice.SpiceScorer", str(given)]
    command += ["-out", str(answer), "-silent"]
    try:
        done = subprocess.run(command, cwd=given.parent, capture_output=True, timeout=timeout)
    except (OSError, subprocess.SubprocessError) as err:
        raise MissingDependencyError("SPICE could not be run.", where=command[0], value=str(err)) from None
    if done.returncode or not answer.is_file():
        said = done.stderr.decode("utf-8", "replace").strip()[-2000:]
        value = f"exit code {done.returncode}"
        raise MissingDependencyError("SPICE failed.", where=command[0], value=value, fix=f"it said: {said}")
