"""The command ``data show``: a contact sheet of what a model really sees, or of a data set as it is stored.

    python entry.py data show --conf_files configs/quickstart.yaml --output sheet.png
    python entry.py data show pix2cap_coco_val_with_sem_seg --root DATASETS --output sheet.png

With a configuration the pictures are the first of epoch 0 of training, augmented; regions, captions and places are
decoded from the very tensors that the model learns from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.config_arguments import add_config_arguments, read_config
from ..utils.errors import UsageError

if TYPE_CHECKING:  # what is imported with a command line must be light
    from PIL import Image

    from ..datasets.records import Category, Record
    from ..datasets.transforms.mapper import Sample

COUNT, COLUMNS, CELL = 12, 3, 512  # pictures, pictures in a row, width of one in pixels
GAP = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set as it is stored, or a file of one's own")
    parser.add_argument("--root", metavar="FOLDER", help="of the data sets; default: $DETECTRON2_DATASETS")
    parser.add_argument("--split", default="train", choices=["train", "test"], help="of the configuration")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--output", default="sheet.png", metavar="FILE", help="a PNG (default: %(default)s)")
    add_config_arguments(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Draw the sheet; returns the exit code.

    Raises:
        UsageError: neither or both of a data set and a configuration are given, or the count is no count.
        DataError: a data set is wrong.
    """
    if bool(arguments.name) == bool(arguments.conf_files):
        fix = "data show NAME --root FOLDER, or data show --conf_files FILE.yaml"
        raise UsageError("Give either a data set or a configuration.", value=arguments.name, fix=fix)
    if arguments.count < 1:
        raise UsageError("There is nothing to show.", where="--count", value=arguments.count, allowed="1 or more")
    pictures, categories = stored(arguments) if arguments.name else seen(read_config(arguments), arguments)
    sheet = draw_sheet(pictures, categories)
    path = write(sheet, Path(arguments.output))
    sys.stdout.write(f"{len(pictures)} pictures are in {path} ({sheet.width} x {sheet.height} pixels)\n")
    return 0


def stored(arguments: argparse.Namespace) -> tuple[list[tuple[str, Record]], Sequence[Category]]:
    """Return (title, record) of the first records of a data set as it is stored, and its categories."""
    from ..datasets.readers import SHAPES_SPLITS, open_dataset
    from ..datasets.shapes import Shapes

    if arguments.name in SHAPES_SPLITS:
        reader = Shapes(arguments.count, split=SHAPES_SPLITS[arguments.name])
    else:
        reader = open_dataset(arguments.name, arguments.root)
    records = [reader[index] for index in range(min(arguments.count, len(reader)))]
    return [(str(record.image_id), replace(record, image=record.read_image())) for record in records], reader.categories


def seen(cfg: Any, arguments: argparse.Namespace) -> tuple[list[tuple[str, Record]], Sequence[Category]]:
    """Return (title, record) of what a model sees first in training, or in evaluation, and the categories."""
    from ..modeling.systems import find_system
    from .data import open_eval_sets, open_training

    tokenizer = find_system(cfg.MODEL.NAME).tokenizer(cfg)
    if arguments.split == "train":
        reader = open_training(cfg)
        samples = training_samples(reader, tokenizer, cfg, arguments.count)
    else:
        eval_sets = open_eval_sets(cfg)
        reader = eval_sets[0].reader
        samples = test_samples(eval_sets, tokenizer, cfg, arguments.count)
    categories = tuple(reader.categories)
    return [(f"{s.image_id}{title}", decoded(s, tokenizer, categories)) for title, s in samples], categories


def training_samples(reader: Any, tokenizer: Any, cfg: Any, count: int) -> Iterator[tuple[str, Sample]]:
    """Yield (what follows the title, sample) of epoch 0, in the order of its batches."""
    from omegaconf import OmegaConf, read_write

    from .data import train_loader
    from .distributed import World

    cfg = OmegaConf.create(cfg)
    with read_write(cfg):
        cfg.COCO.DATALOADER.NUM_WORKERS = 0
    for batch in train_loader(reader, tokenizer, cfg, World()).batches(0):
        for sample in samples_of(batch):
            if count == 0:
                return
            count -= 1
            yield _task(sample), sample


def samples_of(batch: Any) -> Iterator[Sample]:
    """Yield the samples of a batch; one that could not be used is told as training would tell it."""
    from ..datasets.transforms.mapper import Sample

    for bad in batch.bad:
        sys.stderr.write(f"left out: {bad}\n")
    targets = batch.targets or [None] * len(batch)
    for parts in zip(batch.images, batch.image_ids, batch.output_sizes, targets, strict=True):
        yield Sample(*parts)


def test_samples(eval_sets: Sequence[Any], tokenizer: Any, cfg: Any, count: int) -> Iterator[tuple[str, Sample]]:
    """Yield (what follows the title, sample) of the data sets of DATASETS.TEST, as many of each."""
    from omegaconf import OmegaConf, read_write

    from .data import eval_loader
    from .distributed import World

    cfg = OmegaConf.create(cfg)
    with read_write(cfg):
        cfg.COCO.DATALOADER.NUM_WORKERS = 0
    for number, eval_set in enumerate(eval_sets):
        share = count * (number + 1) // len(eval_sets) - count * number // len(eval_sets)
        left = share
        for batch in eval_loader(eval_set, tokenizer, cfg, World()):
            for sample in samples_of(batch):
                if left:
                    left -= 1
                    yield _task(sample), sample
            if not left:
                break


def _task(sample: Sample) -> str:
    task = getattr(sample.targets, "task", "")
    return f" · {task}" if task else ""


def decoded(sample: Sample, tokenizer: Any, categories: Sequence[Category]) -> Record:
    """Return a sample as the record that its tensors say, in pixels of the augmented image."""
    from ..datasets.batches import RegionTargets
    from ..datasets.records import Record

    pixels = sample.image.permute(1, 2, 0).numpy()
    record = Record(sample.image_id, *pixels.shape[:2], pixels)
    if sample.targets is None:
        return record
    if isinstance(sample.targets, RegionTargets):
        return _with_regions(record, sample.targets, tokenizer, categories)
    return _with_prompts(record, sample.targets, tokenizer)


def _with_regions(record: Record, targets: Any, tokenizer: Any, categories: Sequence[Category]) -> Record:
    from ..datasets.records import Region

    regions = [
        Region(
            id=int(number),
            category_id=categories[int(label)].id,
            captions=(tokenizer.decode(tokens),) if (tokens != tokenizer.pad_id).any() else (),
        )
        for number, label, tokens, box in zip(
            targets.segment_ids, targets.labels, targets.caption_tokens, targets.boxes_xyxy, strict=True
        )
        if box.any()  # else the crop removed it
    ]
    return replace(record, regions=regions, id_map=targets.id_map.numpy())


def _with_prompts(record: Record, targets: Any, tokenizer: Any) -> Record:
    if targets.task == "trace":
        return replace(record, narratives=tuple(_narrative(row, targets, tokenizer) for row in range(len(targets))))
    masks = None if targets.masks is None else targets.unpacked_masks(record.width).numpy()
    regions = [_prompt(row, targets, tokenizer, masks) for row in range(len(targets))]
    return replace(record, regions=regions)


def _prompt(row: int, targets: Any, tokenizer: Any, masks: Any) -> Any:
    """Return a prompt as a region: where it points at, or what it should find, and what is read and said."""
    from ..datasets.batches import IMAGE_POINT
    from ..datasets.records import Region, encode_mask

    asked = tokenizer.decode(targets.context[row])
    said = tokenizer.decode(targets.text[row])
    pointed = targets.prompt_labels[row, 0] == IMAGE_POINT
    box = targets.boxes_xyxy[row]
    learns = targets.learns[row]
    text = f"{asked} → {said}" if learns[0] else f"{asked} → (its place)"
    return Region(
        id=row + 1,
        box_xyxy=tuple(box.tolist()) if box.any() and not pointed else None,
        points=(tuple(targets.prompt_points[row, 0].tolist()),) if pointed else (),
        mask=encode_mask(masks[row]) if masks is not None and learns[2] else None,
        captions=(text,),
    )


def _narrative(row: int, targets: Any, tokenizer: Any) -> Any:
    """Return a narrative whose words are tokens, each spoken for a second at the middle of its place."""
    from ..datasets.records import Narrative, TimedWord

    words, points = [], []
    for position, (token, box) in enumerate(zip(targets.text[row], targets.word_boxes[row], strict=True)):
        text = tokenizer.decode(token[None]).strip()
        if not text:
            continue
        words.append(TimedWord(text, float(position), float(position + 1)))
        if box.any():
            points.append((*((box[:2] + box[2:]) / 2).tolist(), position + 0.5))
    return Narrative(" ".join(word.text for word in words), tuple(words), (tuple(points),) if points else ())


def draw_sheet(pictures: Sequence[tuple[str, Record]], categories: Sequence[Category]) -> Image.Image:
    """Draw (title, record) in rows."""
    from PIL import Image

    from ..inference.drawing import WHITE
    from ..inference.visualise import draw_record

    if not pictures:
        raise UsageError("There is nothing to show.", fix="every sample was left out")
    cells = [
        draw_record(None, record, categories, panel="below", title=title, max_width=CELL) for title, record in pictures
    ]
    columns = min(COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, sum(heights) + GAP), WHITE)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            sheet.paste(cell, (GAP + place * (CELL + GAP), top))
        top += height
    return sheet


def write(sheet: Image.Image, path: Path) -> Path:
    """Write a PNG atomically."""
    from ..utils.files import atomic_path

    if path.suffix.lower() != ".png":
        raise UsageError("The output is not a PNG.", where="--output", value=str(path), allowed="FILE.png")
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
    return path
