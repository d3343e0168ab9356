"""A tiny Pix2Cap on the vocabulary and classes of the drawn world, and batches of rectangles to feed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from locap.datasets.batches import Batch, RegionTargets
from locap.datasets.shapes import CATEGORIES
from locap.modeling.build_pix2cap import build_pix2cap, build_tokenizer
from locap.modeling.pix2cap import Pix2Cap
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config
from locap.utils.tokenizers import CaptionTokenizer

HERE = Path(__file__).parent
PUBLISHED = HERE.parent / "configs" / "pix2cap_panoptic_segmentation_captioning.yaml"
FITTING = {  # to the drawn world
    "MODEL.ENCODER.NUM_CLASSES": len(CATEGORIES),
    "MODEL.TEXT_DECODER.VOCAB_SIZE": CaptionTokenizer.from_pretrained("shapes").vocab_size,
}


def build(*overrides: str, aids: bool = False, seed: int = 0) -> Pix2Cap:
    """Build a tiny Pix2Cap in its published form, or with every optional aid."""
    files = [PUBLISHED, HERE / "modeling" / "tiny.yaml", *([HERE / "modeling" / "aids.yaml"] if aids else [])]
    fitting = [str(token) for pair in FITTING.items() for token in pair]
    cfg = load_config(files, [*fitting, *overrides], model_schemas=MODEL_SCHEMAS)
    torch.manual_seed(seed)
    return build_pix2cap(cfg, CATEGORIES, build_tokenizer(cfg))


def _target(num_segments: int, height: int, width: int, seed: int, tokens: int = 7) -> RegionTargets:
    """Draw overlapping rectangles with random classes and words; every third has no caption."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    id_map = torch.zeros(height, width, dtype=torch.int32)
    words = torch.zeros(num_segments, tokens, dtype=torch.int64)
    for index in range(num_segments):
        y, x = draw(0, height // 2), draw(0, width // 2)
        id_map[y : y + draw(9, height // 2), x : x + draw(9, width // 2)] = index + 1
        length = draw(3, tokens + 1) if index % 3 < 2 else 0
        words[index, :length] = torch.tensor([2, *(draw(5, 100) for _ in range(length - 2)), 3][:length])
    boxes = torch.zeros(num_segments, 4)
    for index in range(num_segments):
        ys, xs = (id_map == index + 1).nonzero(as_tuple=True)
        if len(ys):
            boxes[index] = torch.stack((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)).float()
    labels = torch.tensor([draw(0, len(CATEGORIES)) for _ in range(num_segments)], dtype=torch.int64)
    ids = torch.arange(1, num_segments + 1)
    return RegionTargets(labels, ids, id_map, boxes, words, [""] * num_segments, seed)


def make_batch(segments: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None, seed: int = 0) -> Batch:
    """Make noise with rectangles, so many per image, 64 x 64 unless told otherwise."""
    sizes = sizes or [(64, 64)] * len(segments)
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=[torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes],
        targets=[
            _target(n, *size, seed=100 * seed + i) for i, (n, size) in enumerate(zip(segments, sizes, strict=True))
        ],
        image_ids=list(range(len(segments))),
        output_sizes=list(sizes),
    )
