"""Referring classification by similarity of texts and class names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Category, Record, Region, write_records
from locap.entry import main
from locap.evaluation.encoders.sentence_encoder import SentenceEncoder
from locap.evaluation.region_class_similarity import RegionClassSimilarity, answer_text, class_name, word_iou
from locap.utils.errors import DataError, UsageError

from .conftest import ENCODER_WORDS

CLASSES = (Category(1, "mug"), Category(2, "baseball_bat"), Category(3, "dog:ear"))
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def evaluate(answers, encoder="nowhere/nothing", truth=None, **options):
    truth = truth or [Region(i + 1, category) for i, (category, _) in enumerate(answers)]
    predicted = [Region(i + 1, captions=() if text is None else (text,)) for i, (_, text) in enumerate(answers)]
    evaluator = RegionClassSimilarity(CLASSES, encoder=str(encoder), **options)
    evaluator.update(Record(1, 9, 9, regions=truth), Record(1, 9, 9, regions=predicted))
    return evaluator.compute()


def by_hand(folder, text):
    """The embedding of one text without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=24)
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize(
    ("answer", "standard", "osprey"),
    [
        ("Red  Mug.", "Red Mug", "Red Mug"),
        (" It is: a mug, blue.", "a mug blue", "a mug blue"),
        ("a: mug: red", "mug red", "mug"),
        (":", "", ""),
        ("...", "", ""),
        ("t.v", "t v", "t v"),
    ],
)
def test_what_counts_of_a_text(answer, standard, osprey):
    assert answer_text(answer, "standard") == standard
    assert answer_text(answer, "osprey") == osprey


def test_word_overlap():
    assert word_iou(answer_text("Red  Mug.", "standard"), "mug") == 0.5
    assert word_iou("Baseball bat", class_name("baseball_bat")) == 1
    assert class_name("dog:ear") == "dog ear"
    assert word_iou("", "mug") == word_iou("", "") == 0


def test_similarity_is_the_cosine_of_mean_pooled_embeddings(encoder):
    long = "the blue dog " * 20  # more than the model reads
    result = evaluate([(1, "red mug."), (2, "baseball bat"), (3, long)], encoder)
    rows = result.regions.rows
    assert [row[3] for row in rows] == ["red mug", "baseball bat", long.strip()]
    for row in rows:
        expected = float(by_hand(encoder, row[3]) @ by_hand(encoder, row[2]))
        assert row[4] == pytest.approx(expected, abs=1e-5)
    assert rows[1][4] == pytest.approx(1, abs=1e-6)
    assert result.figures["similarity"] == pytest.approx(np.mean([row[4] for row in rows]), abs=1e-12)
    assert result.figures["semantic_iou"] == pytest.approx((1 / 2 + 1 + 1 / 4) / 3, abs=1e-12)
    assert not result.unavailable
    assert [row[2] for row in result.tables["categories"].rows] == [1, 1, 1]


def test_empty_and_missing_answers_score_zero(encoder):
    truth = [Region(1, 1), Region(2, 1), Region(3, 1), Region(4, 1, is_crowd=True), Region(5)]
    result = evaluate([(1, "?."), (1, None)], encoder, truth)
    counts = result.counts
    assert (counts["regions"], counts["unanswered"], counts["empty"], counts["crowds"], counts["without_category"]) == (
        3, 1, 1, 1, 1,
    )  # fmt: skip
    assert [row[5] for row in result.regions.rows] == [0, 0, 0]
    assert result.regions.rows[1][4] == result.regions.rows[2][4] == 0
    upstream = evaluate([(1, "?."), (1, None)], encoder, truth, variant="osprey")
    assert upstream.regions.rows[1][4] == pytest.approx(float(by_hand(encoder, "") @ by_hand(encoder, "mug")), abs=1e-5)


def test_without_the_encoder_words_are_still_compared():
    result = evaluate([(1, "mug")])
    assert result.figures == {"semantic_iou": 1.0}
    assert "hf download nowhere/nothing" in result.unavailable["similarity"]
    assert result.regions.rows[0][4] is None


def test_from_the_command_line(tmp_path, capsys):
    truth = write_records(tmp_path / "t.json", [Record(1, 9, 9, regions=[Region(4, 2)])], CLASSES)
    given_ = write_records(tmp_path / "p.json", [Record(1, 9, 9, regions=[Region(4, captions=("A bat",))])])
    arguments = ["--ground-truth", str(truth), "--predictions", str(given_), "--protocol", "region_class_similarity"]
    assert main(["evaluate", *arguments, "--csv", "--option", "encoder=nowhere/nothing"]) == 5
    assert "hf download nowhere/nothing" in capsys.readouterr().out.replace("\n", " ")
    assert json.loads((tmp_path / "p_results.json").read_text())["results"][0]["figures"] == {"semantic_iou": 1 / 3}
    rows = (tmp_path / "p_results_region_class_similarity.csv").read_text().splitlines()
    assert rows[1] == "1,4,baseball bat,A bat,,0.3333333333333333,A bat"


def test_folders_that_hold_no_encoder(encoder, tmp_path):
    assert "does not exist" in evaluate([(1, "mug")], tmp_path / "absent").unavailable["similarity"]
    with pytest.raises(UsageError, match="cannot be read"):
        SentenceEncoder(tmp_path)
    for path in encoder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(UsageError, match="does not pool by the mean"):
        SentenceEncoder(tmp_path)


def test_each_text_is_embedded_once(encoder, monkeypatch):
    asked = []
    original = SentenceEncoder.encode
    monkeypatch.setattr(SentenceEncoder, "encode", lambda self, texts: asked.append(texts) or original(self, texts))
    evaluate([(1, "mug"), (1, "mug"), (1, "a mug"), (2, "mug")], encoder)
    assert asked == [["a mug", "baseball bat", "mug"]]


def test_nothing_to_score_is_undefined():
    assert set(evaluate([]).undefined) == {"similarity", "semantic_iou"}


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([Region(1, 1)], [Region(2)], r"regions that the ground truth does not have(.|\n)*image_id 1(.|\n)*2"),
        ([Region(1, 1)], [Region(1), Region(1)], r"occur twice(.|\n)*prediction"),
        ([Region(1, 1), Region(1, 1)], [], r"occur twice(.|\n)*ground truth"),
        ([Region(1, 8)], [], r"category that the data set does not have(.|\n)*region 1(.|\n)*8"),
    ],
)
def test_regions_that_do_not_fit(truth, predicted, message):
    with pytest.raises(DataError, match=message):
        RegionClassSimilarity(CLASSES).update(Record(1, 9, 9, regions=truth), Record(1, 9, 9, regions=predicted))


texts = st.lists(st.sampled_from([*ENCODER_WORDS, ":", ",", "\U0001f600", "\ud800"]), max_size=5).map(" ".join)


@FEW
@given(answers=st.lists(st.tuples(st.sampled_from([1, 2, 3]), texts), min_size=1, max_size=9))
def test_any_number_of_ranks_gives_the_same_bits(encoder, answers):
    images = [
        (Record(i, 9, 9, regions=[Region(1, c)]), Record(i, 9, 9, regions=[Region(1, captions=(t,))]))
        for i, (c, t) in enumerate(answers)
    ]
    results = []
    for ranks in (1, 2, 4):
        parts = [RegionClassSimilarity(CLASSES, encoder=str(encoder)) for _ in range(ranks)]
        for index, pair in enumerate(images if ranks == 1 else reversed(images)):
            parts[index % ranks].update(*pair)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        results.append(parts[0].compute())
    assert results[0] == results[1] == results[2]
    assert all(-1 <= row[4] <= 1 and 0 <= row[5] <= 1 for row in results[0].regions.rows)


@FEW
@given(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))
def test_class_names_score_one(encoder, kinds):
    names = {category.id: category.name.replace(":", " ") for category in CLASSES}
    figures = evaluate([(kind, names[kind].upper().replace("_", " ")) for kind in kinds], encoder).figures
    assert figures == pytest.approx({"similarity": 1, "semantic_iou": 1}, abs=1e-6)
