"""A prompted system that knows every answer: what is around it can then only score 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from locap.datasets.batches import Batch, PromptTargets
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.records import Narrative, Record, Region, TimedWord
from locap.evaluation.narratives import located_words
from locap.modeling.losses.terms import LossTerm
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.schemas.prompts import Prompts
from locap.modeling.systems import SYSTEMS, System
from locap.trainer.data import open_eval_sets
from locap.utils.config import load_config
from locap.utils.config_keys import key
from locap.utils.schema import ModelConfig
from locap.utils.tokenizers import LanguageTokenizer

STUB = "all_knowing"


@dataclass
class Decoder:
    """Of texts."""

    BEAM_SIZE: int = key(1, "beams")
    MAX_STEPS: int = key(30, "tokens")


@dataclass
class StubConfig(ModelConfig):
    """What the trainer reads of a prompted system's section."""

    MASKS: bool = key(True, "has a mask head")
    PROMPTS: Prompts = field(default_factory=Prompts)
    TEXT_DECODER: Decoder = field(default_factory=Decoder)


class AllKnowing(nn.Module):
    """Learns one number, and answers from the truth."""

    def __init__(self, truth: dict[tuple[str, Any], Record]) -> None:
        super().__init__()
        self.truth, self.number = truth, nn.Parameter(torch.ones(1))

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"prompts": sum(map(len, batch.targets))}

    def forward(self, batch: Batch, step_seed: int) -> dict[str, LossTerm]:
        prompts = sum(map(len, batch.targets))
        return {"loss_number": LossTerm((self.number**2 * max(prompts, 1)).sum(), "prompts", 1.0)}

    def predict(self, batch: Batch) -> list[Record]:
        return [self._answer(*each) for each in zip(batch.image_ids, batch.output_sizes, batch.targets, strict=True)]

    def _answer(self, image_id: Any, size: tuple[int, int], targets: PromptTargets) -> Record:
        answer, truth = Record(image_id, *size), self.truth[targets.task, image_id]
        regions = {region.id: region for region in truth.regions}
        if targets.task == "detect":
            assert targets.region_ids == [-1], "one prompt, the whole image"
            answer.regions = [described(k, region) for k, region in enumerate(truth.regions, start=1)]
        elif targets.task in ("region", "refer"):
            asked = [regions[i] for i in targets.region_ids]
            make = described if targets.task == "region" else found
            answer.regions = [make(region.id, region) for region in asked]
        elif targets.task == "caption":
            answer.captions = tuple(targets.texts)
        elif targets.task == "trace":
            answer.narratives = tuple(map(retold, truth.narratives))
        return answer


def described(number: int, region: Region) -> Region:
    return Region(number, box_xyxy=region.box_xyxy, captions=region.captions[:1], score=0.9, caption_score=-0.1)


def found(number: int, region: Region) -> Region:
    return Region(number, box_xyxy=region.box_xyxy, mask=region.mask, score=0.9)


def retold(narrative: Narrative) -> Narrative:
    """Return a narrative as systems write it: a word a second, in its middle a point of where the narrator was."""
    words, strokes = [], []
    for i, word in enumerate(located_words(narrative, "truth")):
        words.append(TimedWord(word.text, i, i + 1))
        x, y = word.points[0] if len(word.points) else (0.0, 0.0)
        strokes.append(((float(x), float(y), i + 0.5),))
    return Narrative(narrative.caption, tuple(words), tuple(strokes))


def build(cfg: Any, categories: Any, tokenizer: Any) -> AllKnowing:
    sets = open_eval_sets(cfg)
    return AllKnowing({(s.task, s.reader[k].image_id): s.reader[k] for s in sets for k in range(len(s.reader))})


def make_tokenizer(cfg: Any) -> LanguageTokenizer:
    return LanguageTokenizer.from_pretrained(FOLDER, max_tokens=64)


@pytest.fixture
def configure(tmp_path, monkeypatch) -> Callable[..., Any]:
    """Return a function: pairs of keys and values -> the resolved configuration of the stub on five drawn scenes."""
    monkeypatch.setitem(SYSTEMS, STUB, System(make_tokenizer, build, targets=PromptTargets))
    schemas = {**MODEL_SCHEMAS, STUB: StubConfig}
    defaults = {
        "MODEL.NAME": STUB,
        "SAVE_DIR": str(tmp_path),
        "BASENAME": "stub",
        "DEVICE": "cpu",
        "TENSORBOARD": "false",
        "DATASETS.TRAIN": "[refer:shapes_train]",
        "DATASETS.TEST": "[refer:shapes_val]",
        "SHAPES.NUM_TRAIN": "5",
        "SHAPES.NUM_TEST": "3",
        "SHAPES.IMAGE_SIZE": "48",
        "COCO.INPUT.IMAGE_SIZE": "64",
        "COCO.TEST.IMAGES_PER_FORWARD": "2",
        "COCO.TRAIN.BATCH_SIZE_TOTAL": "2",
        "SOLVER.MAX_STEPS": "1",
        "SOLVER.LR_MULTIPLIER": "{}",
        "EVAL_EVERY_EPOCHS": "0",
        "EVAL_MAX_IMAGES": "2",
    }
    file = tmp_path / "stub.yaml"
    file.write_text(f"MODEL: {{NAME: {STUB}}}\n")

    def make(*pairs: str) -> Any:
        changed = defaults | dict(zip(pairs[::2], pairs[1::2], strict=True))
        overrides = [word for pair in changed.items() for word in pair]
        return load_config([file], overrides, model_schemas=schemas)

    return make


@pytest.fixture
def pix2cap(configure) -> Callable[..., Any]:
    """As ``configure``, of a system without prompts."""

    def make(*pairs: str) -> Any:
        names = ("DATASETS.TRAIN", "[shapes_train]", "DATASETS.TEST", "[shapes_val]")
        return configure("MODEL.NAME", "pix2cap_model", *names, *pairs)

    return make
