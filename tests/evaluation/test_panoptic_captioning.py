from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from locap.datasets.records import Record, Region
from locap.evaluation import captions
from locap.evaluation.captions import java, ptb
from locap.evaluation.captions.meteor import Meteor
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.matching.assignment import NOTHING
from locap.evaluation.panoptic_captioning import PanopticCaptioning, take_segments
from locap.evaluation.panoptic_captioning_upstream import character_meteor
from locap.utils.errors import DataError, MissingDependencyError, UsageError

from .conftest import CATEGORIES


def evaluate(images, variant="standard", categories=CATEGORIES):
    evaluator = PanopticCaptioning(categories, variant=variant, image_order=[truth.image_id for truth, _ in images])
    for truth, predicted in images:
        evaluator.update(truth, predicted)
    return evaluator.compute()


def breakdown(result):
    return {row[:2]: row[2] for row in result.tables["average_precision"].rows}


class TestStandard:
    def test_perfect_predictions_score_one(self, meteor, make_images):
        images = []
        for truth, _ in make_images(4):
            truth.regions = [region for region in truth.regions if not region.is_crowd]
            truth.id_map = np.where(np.isin(truth.id_map, [r.id for r in truth.regions]), truth.id_map, 0)
            predicted = copy.deepcopy(truth)
            for region in predicted.regions:
                region.captions = region.captions[1:]  # any one of the references
            images.append((truth, predicted))
        figures = evaluate(images).figures
        for name in ("map", "detection_map", "meteor", "rouge_l", "bleu_1", "bleu_4", "pq", "sq", "rq"):
            assert figures[name] == pytest.approx(1.0, abs=1e-8), name

    def test_ranks_and_order_do_not_change_a_bit(self, meteor, make_images):
        images = make_images(9)
        whole = evaluate(images)
        assert 0 < whole.figures["map"] < whole.figures["detection_map"] < 1
        for ranks in (2, 4):
            parts = [PanopticCaptioning(CATEGORIES) for _ in range(ranks)]
            for index, image in enumerate(reversed(images)):
                parts[index % ranks].update(*image)
            for part in parts[1:]:
                parts[0].merge_state(json.loads(json.dumps(part.state())))
            assert parts[0].compute() == whole
        assert evaluate(images[::-1]) == whole

    def test_the_wording_counts(self, meteor, pix2cap_image):
        truth, predicted = pix2cap_image
        plain = evaluate([pix2cap_image])
        right = copy.deepcopy(predicted)
        right.regions[0].captions = ("A man in red.",)
        better = evaluate([(truth, right)])
        assert better.figures["map"] > plain.figures["map"]
        assert better.figures["detection_map"] == plain.figures["detection_map"]
        assert breakdown(better)[0.3, 0.25] > breakdown(plain)[0.3, 0.25] == 0

    def test_matching_is_one_to_one_and_class_free(self, pix2cap_image, no_meteor):
        result = evaluate([pix2cap_image])
        # 1 and 3 take a segment at .3 ... .6, 2 as well; 4 (crowd) and 5 (void) are forgiven, 6 is a false positive
        assert breakdown(result)[0.3, None] == pytest.approx(1.0)
        assert result.counts["truth"] == 3
        assert result.counts["predicted_without_score"] == 6

    def test_best_score_takes_first_at_each_threshold(self):
        image = {
            "truth": [[1, []], [2, []]],
            "predicted": [[1, 0.2, "", False], [2, 0.9, "", False], [3, 0.9, "", False]],
            "near": [[0, 0, 0.6], [0, 1, 0.35], [1, 1, 0.3], [1, 2, 0.45]],
        }
        taken = take_segments(image)
        assert taken.tolist() == [
            [NOTHING, 0, 1],
            [0, NOTHING, 1],
            [0, NOTHING, NOTHING],
            [0, NOTHING, NOTHING],
            [NOTHING] * 3,
        ]

    def test_segments_without_caption_are_counted_and_left_out(self, meteor, pix2cap_image):
        truth, predicted = pix2cap_image
        truth.regions[1].captions = (" ",)
        result = evaluate([pix2cap_image])
        assert result.counts["truth_without_caption"] == 1
        assert result.counts["captioned_matches"] == 2
        assert breakdown(result)[0.3, None] == 1.0
        for region in truth.regions:
            region.captions = ()
        bare = evaluate([(truth, predicted)])
        assert bare.figures["pq"] == result.figures["pq"]
        assert bare.figures["detection_map"] == result.figures["detection_map"]
        assert bare.undefined["map"] == bare.undefined["cider"] == "no ground-truth segment has a caption"

    def test_nothing_predicted_scores_zero(self, pix2cap_image):
        truth, _ = pix2cap_image
        nothing = Record(7, 10, 10, id_map=np.zeros((10, 10), np.int32))
        result = evaluate([(truth, nothing)])
        assert {result.figures[name] for name in ("map", "detection_map", "meteor", "cider", "pq")} == {0.0}
        assert not result.unavailable

    @pytest.mark.fault("N1")
    def test_without_java_the_rest_stands(self, no_meteor, pix2cap_image):
        result = evaluate([pix2cap_image])
        assert result.unavailable["meteor"].startswith("METEOR not computed: Java is missing.")
        assert set(result.unavailable) == {"meteor", "map", "ptb_tokenizer"}
        assert {"pq", "detection_map", "cider", "rouge_l", "bleu_1", "bleu_4"} <= set(result.figures)
        assert "built-in approximation" in result.unavailable["ptb_tokenizer"]

    def test_regions_name_match_and_scores(self, meteor, pix2cap_image):
        result = evaluate([pix2cap_image])
        rows = {row[1]: dict(zip(result.regions.columns, row, strict=True)) for row in result.regions.rows}
        assert {key: row["predicted_id"] for key, row in rows.items()} == {1: 1, 256: 2, 65543: 3}
        assert rows[1]["prediction"] == "a person"
        assert 0 < rows[65543]["meteor"] < 1

    @pytest.mark.fault("R11")
    def test_scores_must_be_finite(self, pix2cap_image):
        pix2cap_image[1].regions[2].score = float("nan")
        with pytest.raises(DataError, match="not a finite number"):
            evaluate([pix2cap_image])

    def test_unknown_variant(self):
        with pytest.raises(UsageError, match=r"no such variant(.|\n)*use upstream"):
            PanopticCaptioning(CATEGORIES, variant="upsteam")

    def test_states_of_two_variants_do_not_mix(self):
        with pytest.raises(DataError, match="belongs to another protocol"):
            PanopticCaptioning(CATEGORIES).merge(PanopticCaptioning(CATEGORIES, variant="upstream"))


class TestUpstream:
    def test_published_code_on_a_small_image(self, pix2cap_image):
        evaluator = PanopticCaptioning(CATEGORIES, variant="upstream")
        evaluator.update(*pix2cap_image)
        records = evaluator.state()["images"][0][1]["records"]
        assert [row[0] for row in records] == pytest.approx([25 / 30, 0.1, 0.8, 0.625], abs=1e-15)
        assert [row[1] for row in records] == pytest.approx([0.5 / 1.3, 0.5 / 2.4, 0.5 / 2.4, 0], abs=1e-15)
        result = evaluator.compute()
        assert result.counts["truth"] == 4
        assert result.figures["map"] == pytest.approx(0.3949394939493947, abs=1e-12)
        assert result.figures["detection_map"] == pytest.approx(0.5874587458745875, abs=1e-12)
        assert result.figures["text_factor"] == 0.75
        assert breakdown(result)[0.6, None] == pytest.approx(0.6287128712871287, abs=1e-12)
        assert breakdown(result)[0.7, None] == pytest.approx(0.4224422442244221, abs=1e-12)

    def test_match_without_a_caption_is_no_text(self):
        """The published code's figures where the file gives one match a list of no captions."""
        truth, predicted = (np.array([row], np.int32) for row in ([1] * 5 + [2] * 5, [1] * 4 + [2] * 5 + [3]))
        regions = [Region(1, 1, captions=("a cat",)), Region(2, 3, captions=("the man is here",))]
        found = [Region(1, 1), Region(2, 3, captions=("a man",)), Region(3, 3, captions=("b",))]
        images = [(Record(1, 1, 10, id_map=truth, regions=regions), Record(1, 1, 10, id_map=predicted, regions=found))]
        result = evaluate(images, "upstream")
        assert (result.counts["matched"], result.counts["captioned_matches"]) == (2, 1)
        stated = {"bleu_4": 1.8336935783690536e-08, "rouge_l": 0.10481099656357389, "cider": 0.0, "map": 0.0}
        stated |= {"pq": 0.6222222222222222, "detection_map": 0.201980198019802}
        assert {name: result.figures[name] for name in stated} == pytest.approx(stated, abs=1e-12)

    def test_order_is_that_of_the_ground_truth(self, make_images):
        images = make_images(6)
        forward, backward = evaluate(images, "upstream"), evaluate(images[::-1], "upstream")
        assert forward.figures["pq"] == backward.figures["pq"]
        assert forward.figures["map"] != backward.figures["map"]

    @pytest.mark.parametrize(("length", "level"), [(11, 0.25), (16, 0.20), (24, 0.15), (41, 0.10), (91, 0.05)])
    def test_length_decides(self, length, level):
        """Rounding included: 0.5 / (0.9 + 0.1 * 11) comes out just above 0.25, as in NLTK."""
        words = ["dog"] * (length - 1)
        assert character_meteor(" ".join(["a", *words]), "an apple") > level
        assert character_meteor(" ".join(["a", "dog", *words]), "an apple") <= level
        assert character_meteor(" ".join(["a", *words]), "blue") == 0.0

    @pytest.mark.parametrize(
        ("truth", "characters"),
        [
            ("two dogs", "2"),
            ("meters", "m"),
            ("one", "i"),
            ("A", "a"),
            ("us", "u"),
            ("uer", "u"),
            ("unity", ""),
            ("vest", ""),
        ],
    )
    def test_words_that_wordnet_equates_with_characters(self, truth, characters):
        equal = {c for c in "abcdefghijklmnopqrstuvwxyz0123456789" if character_meteor(truth, c)}
        assert set(characters) <= equal
        assert bool(characters) == bool(equal)

    @pytest.fixture
    def cases(self, shared):
        """The evaluator after all images, and the expected figures, of every stored case."""
        folder = shared / "golden" / "eval" / "pix2cap_captioning"
        found = []
        for case, expected in json.loads((folder / "expected.json").read_text())["cases"].items():
            root = folder / case
            truth, categories = load_ground_truth(root / "pix2cap_gt.json", root / "panoptic_gt")
            predicted = load_predictions(root / "pix2cap_pred.json", truth, root / "panoptic_pred")
            images = {record.image_id: record for record in predicted}
            order = [record.image_id for record in truth]
            evaluator = PanopticCaptioning(categories, variant="upstream", image_order=order)
            for record in truth:
                evaluator.update(record, images[record.image_id])
            found.append((evaluator, expected))
        return found

    def test_figures_of_the_published_code(self, cases):
        for evaluator, expected in cases:
            result, stated = evaluator.compute(), expected["workers_1"]
            for name in ("pq", "sq", "rq"):
                assert result.figures[name] == pytest.approx(stated[name], abs=1e-12)
            for ours, theirs in (("bleu_4", "bleu"), ("rouge_l", "rouge"), ("cider", "cider"), ("meteor", "meteor")):
                assert result.figures[ours] == pytest.approx(stated[theirs], abs=1e-9)
            assert result.counts["classes"] == stated["n"]
            assert result.figures["text_factor"] == pytest.approx(expected["totals"]["text_factor"], abs=1e-15)
            names = ("tp", "fp", "fn", "matched_captions")
            counts = ("matched", "false_positives", "false_negatives", "captioned_matches")
            assert [result.counts[name] for name in counts] == [expected["totals"][name] for name in names]

    def test_map_of_the_published_code(self, cases):
        for evaluator, expected in cases:
            result, stated = evaluator.compute(), expected["map"]
            assert result.figures["map"] == pytest.approx(stated["map"], abs=1e-12)
            assert result.figures["detection_map"] == pytest.approx(stated["detmap"], abs=1e-12)
            values = stated["ap_breakdown"] | stated["det_breakdown"]
            assert len(values) == len(breakdown(result)) == 35
            for (iou, score), value in breakdown(result).items():
                name = f"iou{iou}" + ("" if score is None else f"_score{score:g}")
                assert value == pytest.approx(values[name], abs=1e-12)

    def test_records_of_the_published_code(self, cases):
        for evaluator, expected in cases:
            entries = evaluator._ordered(as_ground_truth=True)
            records = [row for _, entry in entries for row in entry["records"]]
            assert [row[0] for row in records] == pytest.approx(expected["map_records"]["iou"], abs=1e-12)
            assert [row[1] for row in records] == pytest.approx(expected["map_records"]["score"], abs=1e-12)
            assert evaluator.compute().counts["truth"] == expected["map_records"]["npos"]

    def test_matched_captions_of_the_published_code(self, cases):
        for evaluator, expected in cases:
            rows = evaluator.compute().regions.rows
            tokens = captions.tokenize_pairs([row[4] for row in rows], [[row[3]] for row in rows])
            if tokens.unavailable:
                pytest.skip(f"tokens were not checked: {tokens.unavailable['ptb_tokenizer']}")
            keys = [f"{image_id}_{segment_id}" for image_id, segment_id, *_ in rows]
            stated = expected["matched"]
            assert dict(zip(keys, tokens.candidates, strict=True)) == dict(
                zip(stated["keys"], map(_only, stated["pred_tokens"]), strict=True)
            )
            assert dict(zip(keys, map(_only, tokens.references), strict=True)) == dict(
                zip(stated["keys"], map(_only, stated["gt_tokens"]), strict=True)
            )


def _only(texts):
    """Return the one text, given alone or in a list."""
    return texts if isinstance(texts, str) else texts[0]


@pytest.fixture
def no_meteor(monkeypatch):
    def missing():
        raise MissingDependencyError("Java is missing.")

    monkeypatch.setattr(java, "find_java", missing)
    monkeypatch.setattr(ptb, "shared_tokenizer", ptb.PtbTokenizer)
    monkeypatch.setattr(captions, "shared_meteor", Meteor)


@pytest.mark.fault("R10")
def test_strange_captions_stay_with_their_segments(meteor):
    """Captions with line ends, separators, nothing or only punctuation do not shift the others."""
    strange = [
        "a dog\nsits",
        "x ||| y",
        "",
        "...",
        "naïve café 日本語 😀",
        "a\u2028b\r\nc",
        'say "no"',
        "the last one",
    ]
    ids = np.arange(1, 9, dtype=np.int32).reshape(2, 4).repeat(4, 0).repeat(4, 1)
    truth = [Region(i + 1, 1, captions=(text or "something",)) for i, text in enumerate(strange)]
    predicted = [Region(i + 1, 1, captions=(text,), score=1 - i / 10) for i, text in enumerate(strange)]
    result = evaluate([(Record(1, 8, 16, id_map=ids, regions=truth), Record(1, 8, 16, id_map=ids, regions=predicted))])
    scores = {row[1]: row[4] for row in result.regions.rows}
    assert scores == {1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0, 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}
