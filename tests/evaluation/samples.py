"""Small records that every protocol can score: `SAMPLES`, protocol -> (variant, request) -> `Sample`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import (
    Narrative,
    Record,
    Region,
    TimedWord,
    Turn,
    box_of_mask,
    encode_mask,
)
from locap.evaluation.formats import load_ground_truth

from .conftest import ENCODER_WORDS, draw_image
from .dense_scenes import dense_images

IMAGES, SIZE = 9, 24
WORDS = ("a", "red", "blue", "dog", "cat", "sits", "on", "the", "big", "table", "near", "grass")


class Sample(NamedTuple):
    """What a protocol is tried on.

    Attributes:
        truth, predictions: one of each per image, in the same order.
        options: the evaluator's further keyword arguments.
    """

    truth: list[Record]
    predictions: list[Record]
    options: dict[str, Any]


def sample_of(pairs: list[tuple[Record, Record]], **options: Any) -> Sample:
    """Return a sample of (truth, prediction) pairs."""
    return Sample([truth for truth, _ in pairs], [prediction for _, prediction in pairs], options)


def panoptic(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Segments, some of them alike, with captions."""
    return sample_of([draw_image(np.random.default_rng(seed), seed) for seed in range(IMAGES)])


def attributes(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Segments whose colour is known."""
    sample = panoptic(variant, request)
    for region in (region for record in sample.truth for region in record.regions):
        region.attributes = {"colour": ("red", "blue")[region.id % 2], "size": "big"}
    return Sample(sample.truth, sample.predictions, {"judge": _said_words, "attributes": ("colour", "size")})


def _said_words(caption: str, region: Region, record: Record) -> dict[str, bool | None]:
    kinds = {"colour": ("red", "blue"), "size": ("big", "small")}
    said = {name: [word for word in words if word in caption.split()] for name, words in kinds.items()}
    return {name: region.attributes[name] in found if found else None for name, found in said.items()}


def things(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Scored regions of all geometries: box, mask and 17 keypoints."""
    pairs = []
    for index in range(IMAGES):
        rng = np.random.default_rng(index)
        true = [_thing(rng, i + 1, rng.integers(0, 12, 2)) for i in range(3)]
        found = [_found(rng, one) for one in true] + [_thing(rng, 4, rng.integers(0, 12, 2))]
        for one in found:
            one.score = float(np.round(rng.random(), 1))
        pairs.append((_record(index, true), _record(index, found)))
    return sample_of(pairs)


def _thing(rng: np.random.Generator, region_id: int, corner: np.ndarray, category: int | None = None) -> Region:
    (x, y), (width, height) = np.maximum(corner, 0), rng.integers(6, 10, 2)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + height, x : x + width] = True
    points = tuple((x + i % 5 + rng.normal(0, 0.2), y + i // 4 + rng.normal(0, 0.2), 2) for i in range(17))
    category = int(rng.choice([1, 1, 3])) if category is None else category
    return Region(region_id, category, mask=encode_mask(mask), box_xyxy=box_of_mask(mask), keypoints=points)


def _found(rng: np.random.Generator, true: Region) -> Region:
    """Return a prediction near a true region, three in four times of its class."""
    corner = _corner(true) + rng.integers(-1, 2, 2)
    return _thing(rng, true.id, corner, true.category_id if rng.random() < 0.75 else None)


def _corner(region: Region) -> np.ndarray:
    return np.array(region.box_xyxy[:2], int)


def _record(image_id: int, regions: list[Region], **more: Any) -> Record:
    return Record(image_id, SIZE, SIZE, regions=regions, **more)


def expressions(variant: str, request: pytest.FixtureRequest) -> Sample:
    """A region per expression, and an answer with mask and box to each; region ids are the data set's."""
    sample = things(variant, request)
    for index, (truth, prediction) in enumerate(zip(*sample[:2], strict=True)):
        prediction.regions.pop()
        for record in (truth, prediction):
            for region in record.regions:
                region.id += 10 * index
        for region in truth.regions:
            region.expressions, region.attributes = (sentence(region.id),), {"split": ("val", "testA")[index % 2]}
    return sample


def questions(variant: str, request: pytest.FixtureRequest) -> Sample:
    """One question per image that asks for several masks, and an answer with one of them missing or too many."""
    sample = things(variant, request)
    for truth, prediction in zip(*sample[:2], strict=True):
        if truth.image_id % 2:
            prediction.regions = prediction.regions[:2]
        for record in (truth, prediction):
            turns = (Turn("user", "where?"), Turn("assistant", "[SEG]", tuple(r.id for r in record.regions)))
            record.conversations = (turns,)
    return sample


def sentence(seed: int, words: tuple[str, ...] = WORDS) -> str:
    """Return six random words."""
    return " ".join(np.random.default_rng([seed, 7]).choice(words, 6))


def captioned_images(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Images with three captions and one prediction."""
    truth = [_record(i, [], captions=tuple(sentence(3 * i + n) for n in range(3))) for i in range(IMAGES)]
    near = [" ".join([*record.captions[0].split()[:4], "dog"]) for record in truth]
    return Sample(truth, [_record(i, [], captions=(text,)) for i, text in enumerate(near)], {})


def captioned_regions(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Regions in the structure of the file that the variant is for."""
    pairs = []
    for index in range(IMAGES):
        count = 1 if variant == "vg_a" else 1 + index % 3
        ids = [index] if variant == "vg_a" else [10 * index + n for n in range(1, count + 1)]
        true = [_described(variant, i, n) for n, i in enumerate(ids)]
        said = [Region(i, captions=(sentence(i)[:-3] + "cat",)) for i in ids]
        pairs.append((_record(index, true), _record(index, said)))
    return sample_of(pairs)


def _described(variant: str, region_id: int, place: int) -> Region:
    box = (float(place), 0.0, place + 5.0, 5.0)
    if variant == "refcocog":
        return Region(region_id, box_xyxy=box, expressions=(sentence(region_id), sentence(region_id + 5)))
    if variant == "refcocog_per_expression":
        return Region(region_id, box_xyxy=(0.0, 0.0, 5.0, 5.0), expressions=(sentence(region_id),))
    return Region(region_id, box_xyxy=box, captions=(sentence(region_id),))


def told_apart(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Several captioned regions per image, whose predictions resemble them."""
    pairs = []
    for index in range(IMAGES):
        boxes = [(5.0 * n, 0.0, 5.0 * n + 4, 4.0) for n in range(4)]
        true = [Region(n, box_xyxy=box, captions=(sentence(9 * index + n),)) for n, box in enumerate(boxes)]
        said = [Region(n, captions=(sentence(9 * index + n // 2),)) for n in range(4)]
        pairs.append((_record(index, true), _record(index, said)))
    return sample_of(pairs)


def class_names(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Answers that should name the class of a region, for the tests' tiny sentence encoder."""
    pairs = []
    for index in range(IMAGES):
        true = [Region(n + 1, (1, 3, 184)[n]) for n in range(3)]
        said = [
            Region(n + 1, captions=(f"{('person', 'car')[index % 2]} {sentence(n, ENCODER_WORDS)}",)) for n in range(3)
        ]
        pairs.append((_record(index, true), _record(index, said)))
    return sample_of(pairs, encoder=str(request.getfixturevalue("encoder")))


def narratives(variant: str, request: pytest.FixtureRequest) -> Sample:
    """Descriptions whose every word points somewhere."""
    rng = np.random.default_rng(0)
    return sample_of([tuple(_record(i, [], narratives=(_narrative(rng),)) for _ in range(2)) for i in range(IMAGES)])


def _narrative(rng: np.random.Generator) -> Narrative:
    texts = [str(rng.choice(WORDS)) for _ in range(6)]
    words = tuple(TimedWord(text, float(n), n + 1.0) for n, text in enumerate(texts))
    strokes = [[(float(x), float(y), n + 0.5) for x, y in rng.integers(1, SIZE, (2, 2))] for n in range(6)]
    return Narrative(" ".join(texts), words, tuple(tuple(stroke) for stroke in strokes))


def graded_answers(variant: str, request: pytest.FixtureRequest) -> Sample:
    """ViP-Bench's files, and a judge on this machine whose score depends on the question."""
    folder = request.getfixturevalue("tmp_path") / "ViP-Bench"
    (folder / "bbox").mkdir(parents=True)
    items = {
        f"v1_{n}": {
            "image": f"v1_{n}.png",
            "question": "?",
            "answer": sentence(n),
            "capability": ["rec", "ocr"][: 1 + n % 2],
        }
        for n in range(IMAGES)
    }
    lines = [{"question_id": n, "image": f"v1_{n}.png", "text": f"What is {n}?"} for n in range(IMAGES)]
    (folder / "bbox" / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "vip-bench-meta-data.json").write_text(json.dumps(items))
    truth, _ = load_ground_truth(folder / "vip-bench-meta-data.json")
    said = [_answers(record, lambda n: sentence(n // 2 * 2)) for record in truth]
    options = {} if variant == "containment" else _judge(request, lambda text: f"{len(text) % 10 / 10}")
    return Sample(truth, said, options)


def _judge(request: pytest.FixtureRequest, answer: Callable[[str], str]) -> dict[str, str]:
    server = request.getfixturevalue("server")
    server.answer = lambda body: answer(json.dumps(body["messages"], sort_keys=True))
    return server.options(request.getfixturevalue("tmp_path"))


def _answers(record: Record, text: Callable[[int], str]) -> Record:
    regions = [Region(region.id, captions=(text(region.id),)) for region in record.regions]
    return Record(record.image_id, record.height, record.width, regions=regions)


def questioned_regions(variant: str, request: pytest.FixtureRequest) -> Sample:
    """DLC-Bench's file of questions, regions in pictures, and a judge that takes the first choice or the second."""
    positive = [["It is red.", 1], ["It is blue.", -1], ["Not mentioned.", 0]]
    negative = [["A dog is beside it.", -1], ["No dog is mentioned.", 1]]
    kinds = [("positive", positive), ("negative", negative)]
    body = {
        str(n): [{"question": f"{kind} {n}?", "choices": choices, "type": kind} for kind, choices in kinds]
        for n in range(1, IMAGES + 1)
    }
    folder = request.getfixturevalue("tmp_path")
    (folder / "qa.json").write_text(json.dumps(body))
    (folder / "class_names.json").write_text(json.dumps(dict.fromkeys(body, "bus")))
    truth, _ = load_ground_truth(folder / "qa.json")
    for record in truth:
        record.height = record.width = SIZE
        record.image = str(folder / f"{record.image_id}.png")
        Image.new("RGB", (SIZE, SIZE), (record.image_id, 0, 0)).save(record.image)
        mask = np.zeros((SIZE, SIZE), bool)
        mask[4:9, 5 : 6 + record.image_id] = True
        record.regions[0].mask = encode_mask(mask)
    said = [_answers(record, sentence) for record in truth]
    return Sample(truth, said, _judge(request, lambda text: "Yes" if "bus" in text else "AB"[len(text) % 2]))


SAMPLES: dict[str, Callable[[str, pytest.FixtureRequest], Sample]] = {
    "panoptic": panoptic,
    "panoptic_captioning": panoptic,
    "image_captioning": captioned_images,
    "region_captioning": captioned_regions,
    "dense_captioning": lambda variant, request: sample_of(dense_images(IMAGES)),
    "narrative_trace": narratives,
    "caption_attributes": attributes,
    "referring": expressions,
    "reason_seg": expressions,
    "muse": questions,
    "vip_bench": graded_answers,
    "dlc_bench": questioned_regions,
    "detection": things,
    "instances": things,
    "keypoints": things,
    "region_class_similarity": class_names,
    "uniqueness": told_apart,
}
