"""A Pix2Cap with random weights, and drawn images and targets for it to work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...datasets.batches import Batch, RegionTargets
from ...datasets.categories import COCO_PANOPTIC
from ...utils.config import load_config
from ..build_pix2cap import build_pix2cap
from ..pix2cap import Pix2Cap
from ..region_encoders.query_decoder import DecodedQueries
from ..schemas import MODEL_SCHEMAS

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "pix2cap_panoptic_segmentation_captioning.yaml"
RECIPE = (  # the published training command's
    *("MODEL.DECODER.FROZEX", "true", "MODEL.MASK_HEAD_ENABLED", "true"),
    *("MODEL.DECODER.TOP_DENSECAPTION_LAYERS", "9", "MODEL.DECODER.DENSECAPTION_WEIGHT", "0.1"),
)
TINY = (  # of the published shape, small enough for a test
    *("MODEL.TEXT.PRETRAINED_TOKENIZER", "shapes", "MODEL.TEXT.WIDTH", "32", "MODEL.TEXT.HEADS", "4"),
    *("MODEL.TEXT.LAYERS", "2", "MODEL.DIM_PROJ", "32"),
    *("MODEL.BACKBONE.FOCAL.EMBED_DIM", "16", "MODEL.BACKBONE.FOCAL.DEPTHS", "[1, 1, 2, 1]"),
    *("MODEL.ENCODER.CONVS_DIM", "64", "MODEL.ENCODER.MASK_DIM", "64", "MODEL.ENCODER.TRANSFORMER_ENC_LAYERS", "2"),
    *("MODEL.DECODER.HIDDEN_DIM", "64", "MODEL.DECODER.NHEADS", "4", "MODEL.DECODER.DIM_FEEDFORWARD", "96"),
    *("MODEL.DECODER.NUM_OBJECT_QUERIES", "13", "MODEL.DECODER.DEC_LAYERS", "4"),
    *("MODEL.DECODER.TRAIN_NUM_POINTS", "256", "MODEL.DECODER.TOP_DENSECAPTION_LAYERS", "3"),
    *("MODEL.TEXT_DECODER.OBJECT_FEATURE_SIZE", "24", "MODEL.TEXT_DECODER.HIDDEN_SIZE", "48"),
    *("MODEL.TEXT_DECODER.NUM_LAYERS", "2", "MODEL.TEXT_DECODER.ATTENTION_HEADS", "4"),
    *("MODEL.TEXT_DECODER.FEEDFORWARD_SIZE", "96"),
)
SMALL = (  # between the two: the published numbers of layers and prediction points, narrower
    *("MODEL.TEXT.PRETRAINED_TOKENIZER", "shapes", "MODEL.TEXT.WIDTH", "128", "MODEL.TEXT.HEADS", "4"),
    *("MODEL.TEXT.LAYERS", "4", "MODEL.DIM_PROJ", "128"),
    *("MODEL.BACKBONE.FOCAL.EMBED_DIM", "48", "MODEL.BACKBONE.FOCAL.DEPTHS", "[2, 2, 6, 2]"),
    *("MODEL.ENCODER.CONVS_DIM", "128", "MODEL.ENCODER.MASK_DIM", "128", "MODEL.ENCODER.TRANSFORMER_ENC_LAYERS", "3"),
    *("MODEL.DECODER.HIDDEN_DIM", "128", "MODEL.DECODER.NHEADS", "8", "MODEL.DECODER.DIM_FEEDFORWARD", "512"),
    *("MODEL.DECODER.NUM_OBJECT_QUERIES", "101", "MODEL.DECODER.TRAIN_NUM_POINTS", "3136"),
    *("MODEL.TEXT_DECODER.OBJECT_FEATURE_SIZE", "128", "MODEL.TEXT_DECODER.HIDDEN_SIZE", "192"),
    *("MODEL.TEXT_DECODER.NUM_LAYERS", "3", "MODEL.TEXT_DECODER.ATTENTION_HEADS", "4"),
    *("MODEL.TEXT_DECODER.FEEDFORWARD_SIZE", "384"),
)
SIZES = {"full": (), "small": SMALL, "tiny": TINY}


class Numbers:
    """Stands for a caption tokenizer: words are numbers, so that no vocabulary is needed to measure."""

    start_id, end_id, pad_id = 101, 102, 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode(self, ids: Sequence[int]) -> str:
        """Return the numbers, separated by spaces."""
        return " ".join(map(str, ids))


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is to do: images, their pixels, segments of each, words of each caption (the end included)."""

    images: int
    height: int
    width: int
    segments: int
    words: int


SHAPES = {"full": Shape(1, 512, 512, 12, 24), "small": Shape(2, 256, 256, 8, 16), "tiny": Shape(2, 128, 160, 6, 24)}


def build(size: str, conf_files: Sequence[str], overrides: Sequence[str]) -> Pix2Cap:
    """Return the shipped model under the published recipe, or a smaller one like it, with random weights.

    Args:
        size: a key of `SIZES`.
        conf_files: configuration files in place of the shipped one.
        overrides: see `load_config`.
    """
    keys = [*RECIPE, *SIZES[size], *overrides]
    cfg = load_config(list(conf_files) or [SHIPPED], keys, model_schemas=MODEL_SCHEMAS)
    torch.manual_seed(0)
    return build_pix2cap(cfg, COCO_PANOPTIC, Numbers(cfg.MODEL.TEXT_DECODER.VOCAB_SIZE))


def draw_batch(shape: Shape, vocab_size: int) -> Batch:
    """Return noise, cut into stripes with random classes and words."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, shape.height, shape.width), dtype=torch.uint8, generator=generator)
        for _ in range(shape.images)
    ]
    return Batch(
        images,
        [_targets(shape, vocab_size, generator, seed) for seed in range(shape.images)],
        list(range(shape.images)),
        [(shape.height, shape.width)] * shape.images,
    )


def _targets(shape: Shape, vocab_size: int, generator: torch.Generator, seed: int) -> RegionTargets:
    count = shape.segments
    owner = torch.arange(shape.width) * count // shape.width  # a stripe per segment
    words = torch.randint(1000 % vocab_size, vocab_size, (count, shape.words + 1), generator=generator)
    words[:, 0], words[:, -1] = Numbers.start_id, Numbers.end_id
    left = torch.tensor([float((owner < index).sum()) for index in range(count + 1)])
    zeros, bottom = torch.zeros(count), torch.full((count,), float(shape.height))
    return RegionTargets(
        labels=torch.randint(0, len(COCO_PANOPTIC), (count,), generator=generator),
        segment_ids=torch.arange(1, count + 1),
        id_map=(owner + 1).int().expand(shape.height, -1).contiguous(),
        boxes_xyxy=torch.stack((left[:-1], zeros, left[1:], bottom), 1),
        caption_tokens=words,
        captions=[""] * count,
        seed=seed,
    )


def keep_segments(model: Pix2Cap, count: int) -> int:
    """Let every image have ``count`` segments, whatever its weights see; returns how many there are.

    No query of a model with random weights passes the thresholds. So after the query decoder has done all its work, the
    class scores, the masks' vectors and as many channels of the mask features are written over: each of some queries is
    sure of a thing and of a stripe of the image. What follows (masks, merging, captions) is real work on these.
    """
    count = min(count, model.num_objects, model.decoder.mask_embed.layers[-1].out_features)
    queries = torch.linspace(0, model.num_objects - 1, count).long()
    things = [index for index, category in enumerate(model.categories) if category.is_thing]
    labels = torch.tensor([things[index % len(things)] for index in range(count)])

    def decide(module: torch.nn.Module, inputs: tuple, decoded: DecodedQueries) -> DecodedQueries:
        last = decoded.points[-1]
        logits, embed, maps = last.class_logits.clone(), last.mask_embed.clone(), decoded.mask_features.clone()
        logits[..., :-1], logits[..., -1] = 0.0, 20.0
        logits[:, queries, labels] = 40.0
        embed[:, queries] = torch.eye(count, embed.shape[-1])
        maps[:, :count] = _stripes(count, *maps.shape[-2:])
        last = replace(last, class_logits=logits, mask_embed=embed)
        return DecodedQueries([*decoded.points[:-1], last], maps, decoded.global_feature)

    model.decoder.register_forward_hook(decide)
    return count


def never_end(model: Pix2Cap) -> None:
    """Suppress the end token, so that every caption has its full length: the worst case."""
    with torch.no_grad():
        model.captioner.output.bias[model.tokenizer.end_id] = -1e4


def _stripes(count: int, height: int, width: int) -> Tensor:
    """Return (count, height, width): 10 inside the stripe, -10 elsewhere."""
    owner = torch.arange(width) * count // width
    inside = owner == torch.arange(count)[:, None]
    return (20.0 * inside - 10.0)[:, None].expand(-1, height, -1)
