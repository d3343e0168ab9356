"""Small scenes, and one METEOR process for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from locap.datasets.records import Category, Record, Region
from locap.evaluation import captions
from locap.evaluation.captions import ptb
from locap.evaluation.captions.meteor import Meteor, MeteorScores, shared_meteor
from locap.evaluation.captions.words import split_words
from locap.evaluation.ranking import dense_average_precision
from locap.utils.errors import MissingDependencyError

from .chat_server import server  # noqa: F401 - a fixture

ENCODER_WORDS = ("red", "mug", ".", "baseball", "bat", "dog", "ear", "the", "a", "blue")
CATEGORIES = (Category(1, "person"), Category(3, "car"), Category(184, "tree", is_thing=False))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let METEOR load its tables while other tests run."""
    here = Path(__file__).parent
    if not session.config.option.collectonly and any(item.path.is_relative_to(here) for item in session.items):
        captions.warm_up()


@pytest.fixture(scope="session")
def meteor() -> Meteor:
    """The shared METEOR process."""
    try:
        shared_meteor().warm_up()
    except MissingDependencyError as err:
        pytest.skip(f"METEOR was not checked: {err.what}")
    return shared_meteor()


@pytest.fixture
def equal_words(monkeypatch):
    """In place of METEOR: 1 for a caption that is among its references, else 0; no process is started."""

    def scores(candidates, references):
        values = [float(c in r and bool(c)) for c, r in zip(candidates, references, strict=True)]
        return MeteorScores(np.array(values), 0.0)

    monkeypatch.setattr(dense_average_precision, "meteor_scores", scores)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A tiny random BERT in transformers' layout."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ENCODER_WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, initializer_range=1.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def pix2cap_image() -> tuple[Record, Record]:
    """Truth and prediction of one 10 x 10 image with a crowd, void, and known figures of the published evaluation."""
    truth, predicted = np.zeros((10, 10), np.int32), np.zeros((10, 10), np.int32)
    truth[:5, :5], truth[:5, 5:], truth[5:, :8], truth[5:8, 8:] = 1, 256, 65543, 300
    predicted[:5, :6], predicted[:5, 6:], predicted[5:, :5], predicted[5:, 5:8] = 1, 2, 3, 6
    predicted[5:8, 8:], predicted[8:, 8:] = 4, 5
    long = "the second man wears blue trousers and walks behind a white dog near the fence"
    return (
        Record(
            7, 10, 10, id_map=truth,
            regions=[
                Region(1, 1, captions=("a man in red",)), Region(256, 1, captions=(long,)),
                Region(65543, 184, captions=("green trees behind them",)), Region(300, 1, is_crowd=True),
            ],
        ),
        Record(
            7, 10, 10, id_map=predicted,
            regions=[
                Region(1, 1, captions=("a person",)), Region(2, 1, captions=("someone walking",)),
                Region(3, 184, captions=("a row of trees",)), Region(6, 3, captions=("a car",)),
                Region(4, 1, captions=("crowd",)), Region(5, 3, captions=("void car",)),
            ],
        ),
    )  # fmt: skip


@pytest.fixture
def make_images() -> Callable[..., list[tuple[Record, Record]]]:
    """Random truths and predictions that resemble them."""

    def make(count: int, first: int = 0) -> list[tuple[Record, Record]]:
        return [draw_image(np.random.default_rng(seed), seed) for seed in range(first, first + count)]

    return make


def draw_image(rng: np.random.Generator, image_id: int) -> tuple[Record, Record]:
    truth = np.kron(rng.integers(0, 6, (4, 4)), np.ones((6, 6), int)).astype(np.int32) * 1000
    predicted = np.roll(truth, int(rng.integers(0, 3)), axis=1) + 1
    predicted[:, :2] = 0
    words = ["a", "red", "blue", "dog", "cat", "sits", "on", "the", "big", "table", "near", "grass"]

    def regions(ids: Sequence[int], captions: int, crowd: bool) -> list[Region]:
        return [
            Region(
                int(i),
                int(rng.choice([1, 1, 3, 184])),
                captions=tuple(" ".join(rng.choice(words, 6)) for _ in range(captions)),
                is_crowd=crowd and rng.random() < 0.1,
                score=float(np.round(rng.random(), 1)),
            )
            for i in ids
            if i
        ]

    truth_regions = regions(np.unique(truth), 2, True)
    kinds = {region.id: region.category_id for region in truth_regions}
    predicted_regions = regions(np.unique(predicted), 1, False)
    for region in predicted_regions:
        if rng.random() < 0.8:
            region.category_id = kinds.get(region.id - 1, 1)
    return (
        Record(image_id, 24, 24, id_map=truth, regions=truth_regions),
        Record(image_id, 24, 24, id_map=predicted, regions=predicted_regions),
    )


@pytest.fixture
def quick_tokens(monkeypatch, meteor):
    """The built-in tokeniser, so that an example of a property test starts no process."""

    class Tokenizer:
        def tokenize(self, texts):
            return [ptb.drop_punctuation(split_words(text)) for text in texts]

    monkeypatch.setattr(ptb, "shared_tokenizer", Tokenizer)
