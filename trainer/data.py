"""From the configuration's data set names to readers, mappers and loaders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.bad_samples import most_bad
from ..datasets.expressions import PerExpression
from ..datasets.flattening import Flattened
from ..datasets.loader import EvalLoader, TrainLoader
from ..datasets.mixtures import MixedMapper, MixedReader, Mixture
from ..datasets.reader import Reader
from ..datasets.readers import SHAPES_SPLITS, names_file, open_dataset, open_expressions
from ..datasets.records import Record
from ..datasets.shapes import Shapes
from ..datasets.tasks import TASKS, offers
from ..datasets.transforms.mapper import EvalMapper, Mapper, PanopticCaptionMapper
from ..inference.prompt_mappers import evaluation_mapper, training_mapper
from ..utils.errors import UsageError
from .distributed import World
from .entries import Entry, eval_groups, is_prompted, name_of, train_entries


class First:
    """The first records of a data set."""

    def __init__(self, reader: Reader, length: int) -> None:
        self.reader, self.length, self.categories = reader, min(length, len(reader)), tuple(reader.categories)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.reader[index]


@dataclass(frozen=True, slots=True)
class EvalSet:
    """What is predicted and scored together: an item of DATASETS.TEST, or all of a system without prompts.

    Attributes:
        entries: the items.
        reader: their records.
    """

    entries: tuple[Entry, ...]
    reader: Reader

    @property
    def name(self) -> str:
        """As in DATASETS.TEST, joined by commas."""
        return name_of(self.entries)

    @property
    def task(self) -> str:
        """What a prompted system does with it, or ""."""
        return self.entries[0].task

    @property
    def folder(self) -> str:
        """Where its results go below those of the evaluation; "" for right there."""
        return re.sub(r"[^\w.-]+", "_", f"{self.task}_{self.entries[0].name}") if self.task else ""  # it may be a path

    def is_shapes(self) -> bool:
        """Return whether it is drawn, so that the truth about every attribute is known."""
        return all(entry.name in SHAPES_SPLITS for entry in self.entries)


def open_training(cfg: Any) -> MixedReader:
    """Open the data sets of DATASETS.TRAIN as one.

    Raises:
        UsageError: a name is wrong, or they don't fit together.
        DataError: files are missing or inconsistent.
    """
    entries = train_entries(cfg)
    readers = _open_all(entries, cfg)
    for entry, reader in zip(entries, readers, strict=True):
        _require_prompts(entry, reader, "DATASETS.TRAIN")
    return _joined(readers, same_categories=not is_prompted(cfg))


def open_eval_sets(cfg: Any) -> list[EvalSet]:
    """Open the data sets of DATASETS.TEST; raises as `open_training`."""
    groups = eval_groups(cfg)
    entries = [entry for group in groups for entry in group]
    opened = dict(zip(entries, _open_all(entries, cfg, evaluating=True), strict=True))
    for entry, reader in opened.items():
        _require_prompts(entry, reader, "DATASETS.TEST")
    same = not is_prompted(cfg)
    return [EvalSet(group, _joined([opened[entry] for entry in group], same_categories=same)) for group in groups]


def _open_all(entries: Iterable[Entry], cfg: Any, *, evaluating: bool = False) -> list[Reader]:
    """Open data sets, each once however many tasks use it; those to find expressions in are scored by expression."""
    opened: dict[tuple[str, bool], Reader] = {}
    keys = [(entry.name, evaluating and entry.task == "refer") for entry in entries]
    for key in keys:
        if key not in opened:
            opened[key] = _open(*key, cfg)
    return [opened[key] for key in keys]


def _require_prompts(entry: Entry, reader: Reader, where: str) -> None:
    """Raise UsageError where a data set knows nothing that its task asks for: nothing would be learnt or scored."""
    if not entry.task or any(offers(reader[index], entry.task) for index in range(len(reader))):
        return
    others = [task for task in TASKS if offers(reader[0], task)]
    raise UsageError(
        f"The data set has nothing for the task {entry.task}.",
        where=where,
        value=str(entry),
        allowed=", ".join(f"{task}:{entry.name}" for task in others) or "another data set",
    )


def _open(name: str, per_expression: bool, cfg: Any) -> Reader:
    if name not in SHAPES_SPLITS:
        root = cfg.DATASETS.ROOT or None
        reader = (open_expressions if per_expression else open_dataset)(name, root)
        return Flattened(reader) if names_file(name, root) and not is_prompted(cfg) else reader
    shapes = cfg.SHAPES
    count = shapes.NUM_TRAIN if name == "shapes_train" else shapes.NUM_TEST
    reader = Shapes(count, seed=shapes.SEED, split=SHAPES_SPLITS[name], image_size=shapes.IMAGE_SIZE)
    return PerExpression(reader) if per_expression else reader


def _joined(readers: Sequence[Reader], *, same_categories: bool = True) -> MixedReader:
    first, *others = readers
    if same_categories and not all(reader.categories for reader in readers):
        fix = "write the shards with locap.datasets.prepare.shards, or put their shards.json beside them"
        raise UsageError("The shards come without categories, which the system needs.", where="DATASETS", fix=fix)
    if same_categories and any(
        [c.id for c in other.categories] != [c.id for c in first.categories] for other in others
    ):
        raise UsageError("Data sets with different categories cannot be joined.", where="DATASETS")
    return MixedReader(readers)


def train_loader(reader: MixedReader, tokenizer: Any, cfg: Any, world: World) -> TrainLoader:
    """Return the training batches of this rank.

    Args:
        reader: of `open_training`.
        tokenizer: of the system.
        cfg: the resolved configuration.
        world: this process among its peers.
    """
    loading = cfg.COCO.DATALOADER
    return TrainLoader(
        reader,
        _training_mapper(reader, tokenizer, cfg),
        batch_size_total=cfg.COCO.TRAIN.BATCH_SIZE_TOTAL,
        rank=world.rank,
        world_size=world.size,
        num_workers=loading.NUM_WORKERS,
        seed=cfg.SEED,
        mixture=_mixture(reader, cfg),
        prefetch=loading.PREFETCH,
        timeout=loading.TIMEOUT,
        skip_bad=most_bad(len(reader), loading.MAX_BAD_SAMPLES, loading.MAX_BAD_SHARE) > 0,
        sources=[str(entry) for entry in train_entries(cfg)],
    )


def _training_mapper(reader: MixedReader, tokenizer: Any, cfg: Any) -> Mapper:
    if is_prompted(cfg):
        return MixedMapper(reader, [training_mapper(entry.task, tokenizer, cfg) for entry in train_entries(cfg)])
    inputs = cfg.COCO.INPUT
    return PanopticCaptionMapper(
        reader.categories,
        tokenizer,
        image_size=inputs.IMAGE_SIZE,
        min_scale=inputs.MIN_SCALE,
        max_scale=inputs.MAX_SCALE,
        random_flip=inputs.RANDOM_FLIP,
        seed=cfg.SEED,
    )


def _mixture(reader: MixedReader, cfg: Any) -> Mixture | None:
    """Return how the data sets are drawn; None: they are not told apart, and each record comes once per epoch."""
    data = cfg.DATASETS
    if not is_prompted(cfg) and not data.WEIGHTS and not data.SAMPLES_PER_EPOCH:
        return None
    given = [data.WEIGHTS.get(str(entry), 1.0) for entry in train_entries(cfg)]
    weights = given if data.WEIGHTS else reader.lengths
    return Mixture(reader.lengths, weights, data.SAMPLES_PER_EPOCH or None, reader.blocks_of)


def eval_loader(eval_set: EvalSet, tokenizer: Any, cfg: Any, world: World) -> EvalLoader:
    """Return the evaluation batches of this rank; which images share a batch does not depend on the number of ranks."""
    inputs, loading = cfg.COCO.INPUT, cfg.COCO.DATALOADER
    if eval_set.task:
        mapper = evaluation_mapper(eval_set.task, tokenizer, cfg)
    else:
        mapper = EvalMapper(shortest=inputs.MIN_SIZE_TEST, longest=inputs.MAX_SIZE_TEST)
    return EvalLoader(
        eval_set.reader,
        mapper,
        batch_size=cfg.COCO.TEST.IMAGES_PER_FORWARD,
        rank=world.rank,
        world_size=world.size,
        num_workers=loading.NUM_WORKERS,
        prefetch=loading.PREFETCH,
        timeout=loading.TIMEOUT,
    )
