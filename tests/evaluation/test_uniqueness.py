"""Captions that must find their own region."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record, Region, encode_mask
from locap.evaluation.captions import ptb
from locap.evaluation.encoders.clip_scorer import ClipScorer, crop
from locap.evaluation.matching.region_pairs import answers_prompts, pair_by_overlap, region_overlaps
from locap.evaluation.ranking.retrieval import Rank, TokenRetrieval, rank_own
from locap.evaluation.uniqueness import Uniqueness
from locap.utils.errors import DataError, UsageError

FEW = settings(max_examples=20, deadline=None)
WORDS = ["a", "red", "blue", "dog", "cat", "tree", "big"]


@pytest.fixture(autouse=True)
def _built_in_tokens(monkeypatch):
    """One Java start per hypothesis example would take minutes; the words of these tests are the same either way."""
    monkeypatch.setattr(
        ptb,
        "tokenize",
        lambda texts: ptb.Tokenized([ptb.drop_punctuation(ptb.split_words(t)) for t in texts], "built-in"),
    )


def box(i):
    return (20.0 * i, 0.0, 20.0 * i + 10, 10.0)


def record(captions, image_id=1, **more):
    regions = [Region(i + 1, box_xyxy=box(i), captions=tuple(texts)) for i, texts in enumerate(captions)]
    return Record(image_id, 50, 200, regions=regions, **more)


def answers(texts, image_id=1):
    return Record(image_id, 50, 200, regions=[Region(i + 1, captions=(t,)) for i, t in enumerate(texts)])


def evaluate(images, **options):
    evaluator = Uniqueness((), **options)
    for pair in images:
        evaluator.update(*pair)
    return evaluator.compute()


def test_ranks_share_ties():
    assert rank_own(np.array([0.5, 0.9, 0.5, 0.1]), 0) == Rank(4, 1, 2)
    rank = Rank(4, 1, 2)
    assert [rank.recall(k) for k in (1, 2, 3)] == [0, 0.5, 1]
    assert rank.reciprocal() == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_tf_idf_by_hand():
    retrieval = TokenRetrieval([["a dog", "big dog"], ["a cat"], ["a tree"]])
    a, dog, cat = 1 + np.log(4 / 4), 1 + np.log(4 / 2), 1 + np.log(4 / 2)
    expected = dog / np.hypot(a, dog)
    scores = retrieval.scores(["dog", "unknown", "a cat"], 0, 3)
    assert scores[0] == pytest.approx([max(expected, dog / np.hypot(dog, 1 + np.log(4 / 2))), 0, 0])
    assert scores[1].tolist() == [0, 0, 0]
    assert scores[2] == pytest.approx([a * a / np.hypot(a, cat) / np.hypot(a, dog), 1, a * a / np.hypot(a, cat) ** 2])
    assert retrieval.scores(["a cat"], 1, 3) == pytest.approx(scores[2:, 1:])


def test_figures_by_hand():
    truth = record([["a red dog"], ["a blue dog"], ["a tree"]])
    result = evaluate([(truth, answers(["the red one", "dog", "blue"]))])
    assert [row[4:6] for row in result.regions.rows] == [(0, 1), (0, 2), (1, 2)]
    assert result.figures == pytest.approx({
        "recall_1": (1 + 0.5 + 0) / 3, "recall_5": 1, "mrr": (1 + 0.75 + (1 / 2 + 1 / 3) / 2) / 3,
        "chance_recall_1": 1 / 3, "chance_recall_5": 1, "chance_mrr": (1 + 1 / 2 + 1 / 3) / 3, "coverage": 1,
    })  # fmt: skip


def test_what_is_left_out_is_counted():
    several = record([["a dog"], ["a cat"], [" "], ["a tree"]])
    several.regions[3].is_crowd = True
    alone = record([["a dog"]], image_id=2)
    result = evaluate([(several, answers(["a dog", "", "tree", "tree"])), (alone, answers(["a dog"], 2))])
    assert result.counts == {
        "images": 2, "images_left_out": 1, "candidates": 2, "queries": 2, "empty_queries": 1, "unpaired": 2,
        "truth_without_caption": 1, "crowds": 1,
    }  # fmt: skip
    assert result.figures["recall_1"] == pytest.approx((1 + 0.5) / 2)
    assert evaluate([(alone, answers(["a dog"], 2))]).undefined.keys() == {
        "recall_1", "recall_5", "mrr", "chance_recall_1", "chance_recall_5", "chance_mrr"
    }  # fmt: skip


class TestPairing:
    def test_predictions_with_regions_of_their_own_are_paired_by_overlap(self):
        truth = record([["a dog"], ["a cat"]])
        predicted = Record(1, 50, 200, regions=[
            Region(1, box_xyxy=box(1), captions=("a cat",), score=0.5),
            Region(2, box_xyxy=(19.0, 0.0, 30.0, 10.0), captions=("a dog",), score=0.9),
            Region(3, box_xyxy=(0.0, 0.0, 5.0, 10.0), captions=("half is not enough",), score=1.0),
        ])  # fmt: skip
        assert not answers_prompts(truth, predicted)
        assert pair_by_overlap(truth, predicted, truth.regions) == [(1, 1)]
        result = evaluate([(truth, predicted)])
        assert [row[1:3] for row in result.regions.rows] == [(2, 2)]
        assert (result.figures["recall_1"], result.figures["coverage"]) == (0, 0.5)
        assert (
            evaluate([(truth, replace(predicted, regions=predicted.regions[:2]))], pairing="id").counts["queries"] == 2
        )

    def test_prompts_with_their_geometry_are_paired_by_id(self):
        truth = record([["a dog"], ["a cat"]])
        truth.regions[1].box_xyxy = truth.regions[0].box_xyxy
        assert answers_prompts(truth, truth)
        assert evaluate([(truth, truth)]).figures["recall_1"] == 1

    def test_masks_and_id_maps(self):
        ids = np.zeros((50, 200), np.int32)
        ids[:, :50], ids[:, 50:100] = 5, 6
        truth = Record(1, 50, 200, regions=[Region(5, captions=("a dog",)), Region(6, captions=("a cat",))], id_map=ids)
        mask = ids == 6
        mask[:, :55] = False
        predicted = Record(1, 50, 200, regions=[Region(1, mask=encode_mask(mask))])
        assert region_overlaps(truth, truth.regions, predicted, predicted.regions).tolist() == [[0.0], [0.9]]
        assert pair_by_overlap(truth, predicted, truth.regions) == [(1, 0)]
        boxed = Record(1, 50, 200, regions=[Region(1, box_xyxy=(50.0, 0.0, 100.0, 25.0))])
        assert region_overlaps(truth, truth.regions, boxed, boxed.regions).tolist() == [[0.0], [0.5]]

    def test_regions_that_cannot_be_compared(self):
        truth = record([["a dog"], ["a cat"]])
        with pytest.raises(DataError, match="regions that the ground truth does not have"):
            evaluate([(truth, Record(1, 50, 200, regions=[Region(7)]))], pairing="id")
        with pytest.raises(DataError, match="neither box nor mask"):
            evaluate([(truth, Record(1, 50, 200, regions=[Region(7)]))])
        with pytest.raises(DataError, match="A box is not"):
            evaluate([(truth, Record(1, 50, 200, regions=[Region(7, box_xyxy=(0, 0, float("nan"), 5))]))])
        with pytest.raises(UsageError, match="pairing has no such value"):
            Uniqueness((), pairing="box")


captions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
scenes = st.lists(
    st.lists(
        st.tuples(captions, st.one_of(captions, st.sampled_from(["", "...", "\U0001f600"]))), min_size=1, max_size=6
    ),
    min_size=1,
    max_size=5,
)


def images_of(scene):
    return [
        (record([[truth] for truth, _ in image], i), answers([text for _, text in image], i))
        for i, image in enumerate(scene)
    ]


@FEW
@given(scenes)
def test_any_number_of_ranks_gives_the_same_bits(scene):
    images = images_of(scene)
    whole = evaluate(images)
    for ranks in (2, 4):
        parts = [Uniqueness(()) for _ in range(ranks)]
        for index, pair in enumerate(reversed(images)):
            parts[index % ranks].update(*pair)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == whole


@FEW
@given(scenes, st.randoms())
def test_order_of_predictions_does_not_matter(scene, random):
    images = images_of(scene)
    shuffled = [(t, replace(p, regions=random.sample(p.regions, len(p.regions)))) for t, p in images]
    assert evaluate(shuffled).figures == evaluate(images).figures


@FEW
@given(scenes)
def test_the_true_captions_are_the_best_there_can_be(scene):
    distinct = [list({" ".join(sorted(set(t.split()))): (t, p) for t, p in image}.values()) for image in scene]
    distinct = [[(" ".join(sorted(set(t.split()))), p) for t, p in image] for image in distinct]
    perfect = evaluate([(t, t) for t, _ in images_of(distinct)])
    assert perfect.figures.get("recall_1", 1) == perfect.figures.get("mrr", 1) == 1
    empty = evaluate(
        [(t, replace(p, regions=[replace(r, captions=()) for r in p.regions])) for t, p in images_of(scene)]
    )
    for name in ("recall_1", "recall_5", "mrr") if empty.figures else ():
        assert empty.figures[name] == pytest.approx(empty.figures[f"chance_{name}"], abs=1e-12)


def test_approximate_tokens_are_named(monkeypatch):
    monkeypatch.setattr(ptb, "tokenize", lambda texts: ptb.Tokenized(list(texts), "built-in", "no Java"))
    assert evaluate([(record([["a"], ["b"]]), answers(["a", "b"]))]).unavailable == {"ptb_tokenizer": "no Java"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP in transformers' layout."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(i) for i in range(97, 123)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=small | text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8
        )
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


class TestClip:
    PIXELS = np.random.default_rng(0).integers(0, 256, (50, 200, 3), dtype=np.uint8)

    def test_pieces_are_ranked(self, clip):
        truth = record([["a dog"], ["a cat"], ["a tree"]], image=self.PIXELS)
        texts = ["a dog", "cat " * 20, ""]
        result = evaluate([(truth, answers(texts))], clip=str(clip))
        scorer = ClipScorer(clip)
        boxes = [(*box(i)[:2], 10.0, 10.0) for i in range(3)]
        alone = np.array([[scorer.scores(self.PIXELS, [b], [t])[0, 0] for b in boxes] for t in texts])
        ranks = [1 + int((row > row[i]).sum()) for i, row in enumerate(alone)]
        assert result.figures["clip_mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert result.figures["clip_recall_1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert np.abs(alone).max() <= 1

    @pytest.mark.parametrize(("pixels", "reason"), [(None, "has no image"), (PIXELS, "hf download")])
    def test_what_is_missing_is_said_and_tokens_are_still_ranked(self, clip, pixels, reason):
        name = str(clip) if pixels is None else "nowhere/nothing"
        result = evaluate([(record([["a dog"], ["a cat"]], image=pixels), answers(["a dog", "cat"]))], clip=name)
        assert result.figures["recall_1"] == 1
        assert set(result.unavailable) == {"clip_recall_1", "clip_recall_5", "clip_mrr"}
        assert reason in result.unavailable["clip_mrr"]

    def test_crops_have_a_pixel_at_least(self):
        assert crop(self.PIXELS, (0.2, 0.5, 1.0, 1.0)).shape == (2, 2, 3)
        assert crop(self.PIXELS, (500.0, 500.0, 5.0, 5.0)).shape == (1, 1, 3)
        assert crop(self.PIXELS, (-20.0, -20.0, 5.0, 5.0)).shape == (1, 1, 3)
        assert np.array_equal(crop(self.PIXELS, (3.0, 4.0, 0.0, 0.0)), self.PIXELS[4:5, 3:4])
