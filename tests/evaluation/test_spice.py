"""SPICE: the tuple stage in Python, and the call of the original program."""

from __future__ import annotations

import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.evaluation import captions
from locap.evaluation.captions import java, score_tokens
from locap.evaluation.captions import spice as spice_program
from locap.evaluation.captions.scene_graph import CATEGORIES, SceneGraph, TupleCounts, count_tuples, score_tuples
from locap.evaluation.captions.synonyms import SynonymDictionary, shared_synonyms
from locap.utils.errors import MissingDependencyError

SYNONYMS = SynonymDictionary(
    {"car": "1 2", "auto": "1", "dog": "5", "hound": "5 6", "near": "7", "close": "7", "red": "9", "be": "4"},
    {"mice": ("mouse",)},
)
WORDS = st.sampled_from(["car", "auto", "cars", "dog", "hound", "red", "big", "two", "near"])
TUPLES = st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=8)


def graph(*tuples: tuple[str, ...], merge: bool = True) -> SceneGraph:
    return SceneGraph(tuples, synonyms=SYNONYMS, merge=merge)


def words(scene: SceneGraph) -> list[list[set[str]]]:
    return [[part.words for part in parts] for parts in scene.tuples()]


class TestSceneGraph:
    def test_synonyms_become_one_node(self):
        scene = graph(("car",), ("auto", "red"), ("car", "hound", "be near"), ("auto", "dog", "close"), ("tree",))
        both = [{"car", "auto"}, {"dog", "hound"}]
        assert words(scene) == [
            both[:1], [both[0], {"red"}], both[1:], [{"tree"}], [both[0], {"near", "close"}, both[1]],
        ]  # fmt: skip

    def test_nothing_merges_without_synsets(self):
        assert words(graph(("car",), ("auto",), ("car",), merge=False)) == [[{"car"}], [{"auto"}]]
        counts = count_tuples(graph(("car",), merge=False), graph(("auto",), merge=False))
        assert counts["All"] == TupleCounts(0, 1, 1)

    def test_one_reference_tuple_may_make_several_true(self):
        separate = SynonymDictionary({"a": "1", "b": "2", "c": "1 2"}, {})
        ours, theirs = (SceneGraph(t, synonyms=separate) for t in ([["a"], ["b"]], [["c"]]))
        assert count_tuples(ours, theirs)["All"] == TupleCounts(2, 0, -1)

    def test_merged_words_are_of_no_kind(self):
        counts = count_tuples(graph(("dog", "red"), ("dog", "two"), ("car", "big")), graph(("dog", "red")))
        assert [counts[name] for name in ("Color", "Cardinality", "Size", "Attribute", "Object")] == [
            TupleCounts(*numbers) for numbers in [(1, 0, 0), (0, 1, 0), (0, 1, 0), (1, 2, 0), (1, 1, 0)]
        ]

    def test_empty_sides_score_zero(self):
        scores = score_tuples([[], [["dog"]], []], [[[["dog"]]], [[]], [[]]])
        assert (scores.segments, scores.corpus) == ([0.0, 0.0, 0.0], 0.0)
        assert math.isnan(scores.categories["Color"])
        assert score_tuples([], []).corpus == 0.0

    def test_wrong_length_is_refused(self):
        with pytest.raises(ValueError, match="one, two or three parts"):
            graph(("a", "b", "c", "d"))

    @settings(max_examples=60, deadline=None)
    @given(TUPLES, st.booleans())
    def test_equal_graphs_match_entirely(self, tuples, merge):
        scene = graph(*map(tuple, tuples), merge=merge)
        counts = count_tuples(scene, graph(*map(tuple, tuples * 2), merge=merge))
        assert [counts[name] for name in CATEGORIES] == [TupleCounts(counts[name].true, 0, 0) for name in CATEGORIES]
        assert counts["All"].f_score == (1.0 if tuples else 0.0)


class TestSynonyms:
    def test_base_forms(self):
        assert SYNONYMS.synsets(" Cars ") == {1, 2}
        assert SYNONYMS.synsets("hounded") == {5, 6}
        assert SYNONYMS.synsets("unknown") == SYNONYMS.synsets("mice") == frozenset()

    def test_dictionary_of_the_jar(self):
        known = shared_synonyms()
        assert known.synsets("car") & known.synsets("automobile")
        assert known.synsets("children") >= known.synsets("child")
        assert known.synsets("fire hydrant")


@pytest.mark.parametrize(("key", "synsets"), [("synsets", True), ("exact_match_only", False)])
def test_equals_the_jar_on_stored_tuples(shared, key, synsets):
    folder = shared / "golden" / "eval" / "spice_tuples"
    images = json.loads((folder / "tuples.json").read_text())
    stored = json.loads((folder / "expected.json").read_text())
    expected, columns = stored[key], stored["columns_of_tp_fp_fn"]
    scores = score_tuples([image["test"] for image in images], [image["refs"] for image in images], synsets=synsets)
    found = [[[c[name].true, c[name].false, c[name].missing] for name in columns] for c in scores.counts]
    assert found == expected["tp_fp_fn"]
    assert scores.segments == pytest.approx(expected["f_All"], abs=1e-12)
    assert scores.corpus == pytest.approx(expected["mean_All_f"], abs=1e-12)
    macro = expected["macro_average_f_ignoring_images_without_reference_tuples"]
    assert scores.categories == pytest.approx(macro, abs=1e-12, nan_ok=True)


@pytest.fixture
def parser(monkeypatch, tmp_path):
    """A stand-in for the program, with all files it needs in place; returns a setter of its source."""
    (tmp_path / "lib").mkdir()
    jar = tmp_path / "spice-1.0.jar"
    for name in (*spice_program.CORENLP, "nashorn-core-15.4.jar", "asm-7.3.1.jar"):
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(java, "find_jar", lambda *parts: jar)
    path = tmp_path / "java"
    monkeypatch.setattr(java, "find_java", lambda: path)

    def write(source: str) -> None:
        path.write_text(f"#!{sys.executable}\nimport json, sys\n{source}")
        path.chmod(0o755)

    return write


class TestProgram:
    def test_scores_come_back_in_order(self, parser):
        parser(
            "given, out = sys.argv[sys.argv.index('edu.anu.spice.SpiceScorer') + 1], sys.argv[-2]\n"
            "items = json.load(open(given))\n"
            "f = {i['image_id']: {'All': {'f': len(i['refs']) / 4}} for i in items[::-1]}\n"
            "json.dump([{'image_id': i, 'scores': s} for i, s in f.items()], open(out, 'w'))\n"
        )
        scores = spice_program.spice_scores(["a dog", "ein Hündchen"], [["b"], ["c", "d", "e"]])
        assert (scores.segments.tolist(), scores.corpus) == ([0.25, 0.75], 0.5)

    def test_failure_is_reported_with_its_words(self, parser):
        parser("print('no heap left', file=sys.stderr)\nsys.exit(3)\n")
        with pytest.raises(MissingDependencyError, match=r"SPICE failed(.|\n)*exit code 3(.|\n)*no heap left"):
            spice_program.spice_scores(["a"], [["b"]])

    def test_missing_download_says_what_belongs_where(self, parser, tmp_path):
        (tmp_path / "lib" / spice_program.CORENLP[1]).unlink()
        with pytest.raises(MissingDependencyError) as caught:
            spice_program.spice_scores(["a"], [["b"]])
        assert caught.value.where == str(tmp_path / "lib")
        assert caught.value.value == spice_program.CORENLP[1]
        assert spice_program.CORENLP_SOURCE in caught.value.fix

    def test_other_metrics_survive(self, monkeypatch, meteor):
        def missing(*_):
            raise MissingDependencyError("SPICE needs an optional download that is not there.")

        monkeypatch.setattr(captions, "spice_scores", missing)
        scores = score_tokens(["a dog"], [["a dog"]], extra=("spice",))
        assert scores.unavailable == {"spice": "SPICE needs an optional download that is not there."}
        assert scores.corpus["meteor"] == scores.corpus["rouge_l"] == 1.0
