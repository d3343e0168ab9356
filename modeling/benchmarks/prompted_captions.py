"""Captions of many boxes of one image: one encoding and one search for all, beside a box at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...datasets.batches import BOX_END, BOX_START, Batch, PromptTargets
from ...datasets.records import Record
from ...utils.config import load_config
from ..build_pixelllm import build_pixelllm
from ..pixelllm import PixelLLM
from ..schemas import MODEL_SCHEMAS
from .measuring import PartMeter, Parts, Work, measure_in_turn
from .report import Report, ratios
from .workload import Numbers

TINY = Path(__file__).resolve().parents[2] / "configs" / "pixelllm" / "pixelllm_shapes.yaml"
PUBLISHED = (  # its BERT model for dense captions, but that boxes are given
    *("MODEL.NAME", "pixelllm_model", "MODEL.TEXT_DECODER.MAX_STEPS", "40", "COCO.INPUT.IMAGE_SIZE", "384"),
    *("MODEL.MASKS", "false", "MODEL.DETECTOR.ENABLED", "false"),
)
INSTRUCTION = (7, 8, 9, Numbers.end_id)  # as long as "an object of"


def build_prompted(size: str, conf_files: Sequence[str], overrides: Sequence[str]) -> PixelLLM:
    """Return PixelLLM with random weights that writes texts of full length, the worst case.

    Args:
        size: "full": the published widths (EVA-02-L, SAM-H, unless MODEL.SAM.SIZE says another, and BERT); "tiny": that
            of the drawn world.
        conf_files: configuration files in place of these.
        overrides: see `load_config`.
    """
    files = list(conf_files) or ([TINY] if size == "tiny" else [])
    keys = [*(() if files else PUBLISHED), *overrides]
    cfg = load_config(files, keys, model_schemas=MODEL_SCHEMAS)
    torch.manual_seed(0)
    model = build_pixelllm(cfg, (), Numbers(cfg.MODEL.TEXT_DECODER.VOCAB_SIZE)).eval()
    with torch.no_grad():
        model.language.decoder.output.bias[model.tokenizer.end_id] = -1e4
    return model


def prompted_captions(model: PixelLLM, *, boxes: int, measured: int | None, repeats: int) -> Report:
    """Caption boxes together and one by one, in turns.

    Args:
        model: it answers.
        boxes: of one image.
        measured: so many are captioned one by one, and what that took is multiplied; None: all.
        repeats: timed turns; 0 takes the time of the counted one.
    """
    batch = draw_boxes(model.canvas, boxes)
    alone = one_by_one(batch)[: measured or None]
    rows = f" ({len(alone)} of {boxes}, multiplied)" if len(alone) < boxes else ""
    works = [
        Work("one encoding, one search", lambda: model.predict(batch), PartMeter(parts_of(model))),
        Work(f"box by box{rows}", lambda: [model.predict(box)[0] for box in alone], PartMeter(parts_of(model))),
    ]
    (ours, [record]), (slow, records) = measure_in_turn(works, repeats=repeats)
    slow.multiply(boxes / len(alone))
    same = sum(a == b for a, b in zip(captions([record]), captions(records), strict=False))
    facts = {"boxes": boxes, "same texts": f"{same} of {len(alone)}"}
    return Report("prompted_captions", [ours, slow], facts, ratios(ours, slow))


def parts_of(model: PixelLLM) -> Parts:
    """Return the parts whose costs are shown apart."""
    return {
        "image encoders": (model.encoder, ("forward",)),
        "prompt features": (model.prompt_features, ("forward",)),
        "language model": (model.language, ("start", "step", "logits")),
    }


def draw_boxes(canvas: tuple[int, int], count: int) -> Batch:
    """Return noise, and boxes anywhere in it to be captioned."""
    generator = torch.Generator().manual_seed(0)
    height, width = canvas
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
    targets = PromptTargets(
        text=torch.tensor([[Numbers.start_id, Numbers.end_id]]).expand(count, 2),
        context=torch.tensor([INSTRUCTION]).expand(count, len(INSTRUCTION)),
        prompt_points=corners,
        prompt_labels=torch.tensor([[BOX_START, BOX_END]]).expand(count, 2),
        boxes_xyxy=corners.flatten(1),
        word_boxes=torch.zeros(count, 2, 4),
        learns=torch.zeros(count, 3, dtype=torch.bool),
        size=canvas,
        region_ids=list(range(1, count + 1)),
        task="region",
    )
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return Batch([image], [targets], ["noise"], [canvas])


def one_by_one(batch: Batch) -> list[Batch]:
    """Return a batch per box of the one image."""
    (target,) = batch.targets
    names = ("text", "context", "prompt_points", "prompt_labels", "boxes_xyxy", "word_boxes", "learns", "region_ids")
    rows = [{name: getattr(target, name)[k : k + 1] for name in names} for k in range(len(target))]
    return [replace(batch, targets=[replace(target, **row)]) for row in rows]


def captions(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the captions of all regions."""
    return [region.captions for record in records for region in record.regions]
