"""Protocol image_captioning, and what all protocols of caption metrics share."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record
from locap.entry import main
from locap.evaluation import captions
from locap.evaluation.captions import ptb
from locap.evaluation.captions.meteor import Meteor
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.image_captioning import ImageCaptioning
from locap.evaluation.results import ProtocolResult
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError, MissingDependencyError, UsageError

PEER = {"METEOR": "meteor", "ROUGE_L": "rouge_l", "CIDEr": "cider"} | {f"Bleu_{n}": f"bleu_{n}" for n in range(1, 5)}
TEXT = st.lists(st.sampled_from(["a", "the", "red", "dog", "sits", "on", "...", "!", "😀"]), max_size=6).map(" ".join)
CASES = st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=7)
PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def score(truth: list[Record], predictions: list[Record], **options) -> ProtocolResult:
    (result,) = evaluate_stored(truth, predictions, ["image_captioning"], (), options={"image_captioning": options})
    return result


def records(texts: list[list[str]]) -> list[Record]:
    return [Record(i, 4, 4, captions=tuple(group)) for i, group in enumerate(texts)]


@pytest.mark.parametrize("case", ["multi_reference", "regions", "one_image", "three_images"])
def test_equals_coco_caption_on_stored_files(shared, meteor, tmp_path, case):
    folder = shared / "golden" / "eval" / "caption_scores"
    expected = json.loads((folder / "expected.json").read_text())["cases"][case]
    files = folder / case / "captions_gt.json", folder / case / "captions_results.json"
    truth, _ = load_ground_truth(files[0])
    predictions = load_predictions(files[1], truth)
    result = score(truth, predictions)
    assert result.unavailable == {}
    columns, rows = result.regions.columns, {row[0]: row for row in result.regions.rows}
    for theirs, ours in PEER.items():
        assert result.figures[ours] == pytest.approx(expected["corpus"][theirs], abs=1e-9)
        each = [rows[image_id][columns.index(ours)] for image_id in expected["image_ids"]]
        assert each == pytest.approx(expected["per_image"][theirs], abs=1e-9)
    given = {record.image_id: record.captions[0] for record in predictions}
    assert (
        ptb.shared_tokenizer().tokenize([given[i] for i in expected["image_ids"]]) == expected["tokenised_candidates"]
    )
    arguments = ["evaluate", "--ground-truth", str(files[0]), "--predictions", str(files[1])]
    out = tmp_path / "out.json"
    assert main([*arguments, "--protocol", "image_captioning", "--output", str(out), "--csv"]) == 0
    assert json.loads(out.read_text())["results"][0]["figures"] == result.figures
    assert len((tmp_path / "out_image_captioning.csv").read_text("utf-8").splitlines()) > len(truth)


def test_what_cannot_score_is_counted(meteor):
    truth = records([["a red dog"], ["a cat", " "], ["..."], [" "], []])
    predictions = records([[""], ["?!"], ["a dog"], ["a dog"], []])
    result = score(truth, predictions)
    assert result.counts == {
        "images": 5, "captions": 4, "truth_without_caption": 1, "predicted_without_caption": 1,
        "predicted_without_word": 1, "truth_without_word": 2,
    }  # fmt: skip
    assert {name: round(value, 9) for name, value in result.figures.items()} == dict.fromkeys(result.figures, 0.0)
    assert [row[0] for row in result.regions.rows] == [0, 1, 2, 3]


def test_blank_caption_of_the_ground_truth_is_one(meteor):
    """Figures of pycocoevalcap 1.2, which counts such an image like any other."""
    truth = records([["a red dog sits"], [""], ["a cat sits on grass"]])
    figures = score(truth, records([["a red dog sits"], ["a dog"], ["the cat sits on grass"]])).figures
    stated = {"bleu_1": 0.7272727272066117, "bleu_4": 0.7344112538411556, "meteor": 0.5593959507112332}
    stated |= {"rouge_l": 0.6, "cider": 5.640931010031029}
    assert {name: figures[name] for name in stated} == pytest.approx(stated, abs=1e-12)


def test_ground_truth_without_captions_has_no_figures():
    result = score(records([[], [""]]), records([["a"], ["b"]]))
    assert result.figures == {}
    assert result.undefined["cider"] == "the ground truth has no caption"
    assert set(result.undefined) == {"meteor", "cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}


def test_missing_java_costs_meteor_only(monkeypatch):
    def missing():
        raise MissingDependencyError("Java is missing.")

    monkeypatch.setattr(captions.java, "find_java", missing)
    monkeypatch.setattr(ptb, "shared_tokenizer", ptb.PtbTokenizer)
    monkeypatch.setattr(captions, "shared_meteor", Meteor)
    result = score(records([["a dog"], ["a cat"]]), records([["a dog"], ["a cat"]]))
    assert set(result.unavailable) == {"meteor", "ptb_tokenizer"}
    assert result.figures["rouge_l"] == 1.0


def test_optional_metrics_are_missing_only_when_asked_for(monkeypatch, meteor):
    def missing(*_):
        raise MissingDependencyError("SPICE needs an optional download that is not there.")

    monkeypatch.setattr(captions, "spice_scores", missing)
    monkeypatch.setattr(captions, "nltk_meteor_scores", lambda given, _: captions.np.ones(len(given)))
    images = records([["a dog"]]), records([["a dog"]])
    assert score(*images).unavailable == score(*images, spice="false").unavailable == {}
    result = score(*images, spice="true", nltk_meteor=True)
    assert set(result.unavailable) == {"spice"}
    assert result.figures["nltk_meteor"] == 1.0
    assert result.regions.columns[-3:] == ("nltk_meteor", "prediction", "references")
    with pytest.raises(UsageError, match=r"neither true nor false(.|\n)*'yes'"):
        score(*images, spice="yes")


def test_texts_must_be_lists_of_texts():
    (truth,) = records([["a dog"]])
    with pytest.raises(DataError, match="not a list of texts"):
        ImageCaptioning(()).update(truth, replace(truth, captions="a dog"))
    with pytest.raises(DataError, match="not a list of texts"):
        ImageCaptioning(()).update(replace(truth, captions=(None,)), truth)


@PROPERTY
@given(st.lists(st.lists(st.sampled_from(["red", "dog", "cat", "sits", "on"]), min_size=4, max_size=8), min_size=2))
def test_perfect_predictions_score_one(quick_tokens, texts):
    images = records([[" ".join(words), "another text"] for words in texts])
    result = score(images, [replace(image, captions=image.captions[:1]) for image in images])
    for name in ("rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"):
        assert result.figures[name] == pytest.approx(1.0, abs=1e-8)
    assert [row[1] for row in result.regions.rows] == [1.0] * len(images)  # METEOR
    assert result.figures["cider"] <= 10.0


@PROPERTY
@given(CASES, st.randoms(use_true_random=False))
def test_neither_order_nor_number_of_ranks_matters(quick_tokens, cases, random):
    truth = records([references for _, references in cases])
    predictions = records([[candidate] for candidate, _ in cases])
    pairs = list(zip(truth, predictions, strict=True))
    expected = score(truth, predictions)
    random.shuffle(pairs)
    for ranks in (1, 2, 4):
        parts = [ImageCaptioning(()) for _ in range(ranks)]
        for index, pair in enumerate(pairs):
            parts[index % ranks].update(*pair)
        whole = ImageCaptioning(())
        for part in parts[::-1]:
            whole.merge_state(json.loads(json.dumps(part.state())))
        assert whole.compute() == expected
        with pytest.raises(DataError, match="evaluated twice"):
            whole.update(*pairs[0])


@PROPERTY
@given(CASES)
def test_further_captions_of_a_prediction_change_nothing(quick_tokens, cases):
    truth = records([references for _, references in cases])
    once = score(truth, records([[candidate] for candidate, _ in cases]))
    assert score(truth, records([[candidate, *references] for candidate, references in cases])) == once
