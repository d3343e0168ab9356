"""Any number of processes writes what one writes: the same predictions to the byte, the same figures to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from locap.datasets.batches import Batch
from locap.datasets.records import Record, Region
from locap.datasets.samplers import TrainSampler
from locap.trainer import evaluate
from locap.trainer.data import open_eval_sets
from locap.trainer.distributed import World

from ..trainer.conftest import build, configure, make_tokenizer, pix2cap  # noqa: F401 - two are fixtures
from .test_batches import seeing

RANKS, SIZES = range(1, 5), range(1, 18)
REAL = [(2, 1), (2, 5), (3, 2), (3, 7), (4, 1), (4, 3), (4, 9)]  # processes, images


class Seer(nn.Module):
    """Finds the colours of an image."""

    def __init__(self, categories: Any) -> None:
        super().__init__()
        self.categories = categories

    def predict(self, batch: Batch) -> list[Record]:
        return [self._answer(*each) for each in zip(batch.image_ids, batch.images, batch.output_sizes, strict=True)]

    def _answer(self, image_id: Any, image: torch.Tensor, size: tuple[int, int]) -> Record:
        ids = 1 + (image[:, : size[0], : size[1]] > 128).int().mul(torch.tensor([4, 2, 1])[:, None, None]).sum(0)
        regions = [Region(k, self.categories[k].id, score=0.5) for k in ids.unique().tolist()]
        return Record(image_id, *size, id_map=ids.int().numpy(), regions=regions)


class Noticing(nn.Module):
    """Lets every score depend on which images share a batch, so that another batching shows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def predict(self, batch: Batch) -> list[Record]:
        seen = sum(float(image.float().mean()) for image in batch.images) / len(batch) / 1000
        answers = self.model.predict(batch)
        for region in (region for answer in answers for region in answer.regions):
            region.score = 0.5 + seen
        return answers


@dataclass
class Trial:
    """Evaluates a data set of some images by a number of processes, each in its own folder."""

    model: nn.Module
    cfg: Any
    folder: Path

    def __call__(self, world: World, size: int | None = None) -> None:
        """Do one rank's part."""
        [eval_set] = open_eval_sets(self.cfg)
        tokenizer = make_tokenizer(self.cfg) if eval_set.task else None
        folder = self.folder / str(size or world.size)
        evaluate.evaluate_model(self.model, eval_set, tokenizer, self.cfg, world, folder)

    def simulate(self, size: int, monkeypatch) -> dict[str, Any]:
        """Do every rank's part one after the other, rank 0 last, which gets the texts of all."""
        texts: list[str] = []

        def gather(text: str) -> list[str] | None:
            texts.insert(0, text)
            return texts if len(texts) == size else None

        with monkeypatch.context() as patched:
            patched.setattr(evaluate, "gather_texts", gather)
            for rank in reversed(range(size)):
                self(World(rank=rank, size=size))
        return self.outcome(size)

    def outcome(self, size: int) -> dict[str, Any]:
        """Return what was written: the bytes of the predictions and tables, and the figures."""
        folder = self.folder / str(size)
        found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
        found["predictions"] = (folder / "predictions.json").read_bytes()
        found["results"] = json.loads((folder / "results.json").read_text())["results"]
        return found

    def ids(self) -> list[Any]:
        [eval_set] = open_eval_sets(self.cfg)
        return [eval_set.reader[k].image_id for k in range(len(eval_set.reader))]


@pytest.fixture(params=["prompts", "no prompts"])
def trial_of(request, configure, pix2cap, tmp_path) -> Callable[[int], Trial]:  # noqa: F811 - fixtures
    """``trial_of(images)``, one to three of them in a batch."""

    def make(images: int, together: int | None = None) -> Trial:
        together = together or 1 + images % 3
        counts = ("SHAPES.NUM_TEST", str(images), "COCO.TEST.IMAGES_PER_FORWARD", str(together))
        if request.param == "prompts":
            cfg = configure(*counts)
            model = build(cfg, None, None)
        else:
            cfg = pix2cap(*counts, "PROTOCOLS", "[panoptic]", "COCO.INPUT.MIN_SIZE_TEST", "48")
            model = Seer(open_eval_sets(cfg)[0].reader.categories)
        return Trial(Noticing(model), cfg, tmp_path / f"{images}_{together}")

    return make


def same(found: dict[str, Any], alone: dict[str, Any], ids: list[Any]) -> None:
    assert [record["image_id"] for record in json.loads(found["predictions"])["records"]] == ids
    assert found == alone


@pytest.mark.fault("C5")
def test_any_number_of_ranks_writes_the_same_bytes(trial_of, monkeypatch, figure, scale, request):
    sizes = SIZES[:: scale(4, 1)]
    for images in sizes:
        trial = trial_of(images)
        alone = trial.simulate(1, monkeypatch)
        for ranks in RANKS[1:]:
            same(trial.simulate(ranks, monkeypatch), alone, trial.ids())
    figure("T7", f"{request.node.callspec.id}: {len(sizes)} sizes of 1 ... 17 on 1 ... 4 ranks, simulated: same bytes")


@pytest.mark.fault("C5")
def test_processes_write_the_bytes_of_one(trial_of, monkeypatch, on_ranks, figure, scale, request):
    cases = REAL[:: scale(2, 1)]
    for ranks, images in cases:
        trial = trial_of(images)
        on_ranks(ranks, trial)
        same(trial.outcome(ranks), trial.simulate(1, monkeypatch), trial.ids())
    figure("T7", f"{request.node.callspec.id}: {len(cases)} cases of 2 to 4 processes: same bytes, 0 twice, 0 lost")


def test_other_batches_would_be_noticed(trial_of, monkeypatch):
    one, other = (trial_of(5, together).simulate(1, monkeypatch)["predictions"] for together in (2, 3))
    assert one != other


@pytest.mark.fault("C5")
def test_a_model_writes_the_same_on_any_number_of_ranks(
    pix2cap,  # noqa: F811 - a fixture
    tiny_pix2cap,
    tmp_path,
    monkeypatch,
    on_ranks,
    figure,
):
    options = ("SHAPES.NUM_TEST", "5", "COCO.TEST.IMAGES_PER_FORWARD", "2", "COCO.INPUT.MIN_SIZE_TEST", "48")
    trial = Trial(seeing(tiny_pix2cap), pix2cap(*options, "PROTOCOLS", "[panoptic]"), tmp_path / "runs")
    alone = trial.simulate(1, monkeypatch)
    for ranks in RANKS[1:]:
        same(trial.simulate(ranks, monkeypatch), alone, trial.ids())
    (tmp_path / "runs" / "3").rename(tmp_path / "simulated")
    on_ranks(3, trial)
    same(trial.outcome(3), alone, trial.ids())
    figure("T7", "a tiny Pix2Cap, 5 images on 1 ... 4 ranks and by 3 processes: same bytes, same figures")


@pytest.mark.fault("C5")
@pytest.mark.parametrize("ranks", RANKS)
def test_training_sees_every_image_once_however_few_there_are(ranks):
    for images in SIZES:
        steps = [list(TrainSampler(images, 4 * ranks, rank=k, world_size=ranks).batches(3)) for k in range(ranks)]
        assert len({len(batches) for batches in steps}) == 1, "ranks that stop early would be waited for"
        seen = [index for batches in steps for batch in batches for index in batch]
        assert sorted(seen) == list(range(images))
