"""From a record to what the model sees: augmented pixels and typed targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import DataError, UsageError
from ...utils.id_maps import measure_segments
from ...utils.tokenizers import CaptionTokenizer
from ..batches import PromptTargets, RegionTargets
from ..categories import contiguous_indices
from ..checks import read_checked_id_map, read_checked_image
from ..records import Category, Record, Region
from .geometry import FLIPS, draw_jitter, resize, shortest_side_size


@dataclass(slots=True)
class Sample:
    """One mapped record.

    Attributes:
        image: uint8 (3, H, W), RGB 0-255.
        image_id: id of the record.
        output_size: (height, width) of the original image.
        targets: None at inference.
    """

    image: Tensor
    image_id: int | str
    output_size: tuple[int, int]
    targets: RegionTargets | PromptTargets | None = None


Mapper = Callable[[Record, int, int], Sample]


class PanopticCaptionMapper:
    """Training mapper: flip, large-scale jitter, square crop; the id map goes along, captions become tokens.

    Everything random is a function of (seed, epoch, index), so that neither workers nor ranks nor a resumed run
    change it. Crowd regions take no part.

    Args:
        categories: of the reader; their order gives the labels.
        tokenizer: of the caption decoder.
        image_size: side of the square that results, pixels.
        min_scale, max_scale: the resize scale is uniform between them; 1 and 1 leave a square image of ``image_size``
            as it is.
        random_flip: "horizontal" (probability 1/2), "vertical" or "none".
        seed: of the run.
        drop_vanished: leave out regions that the crop removed. Pix2Cap trained with them: empty mask, zero box, and
            caption.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        tokenizer: CaptionTokenizer,
        *,
        image_size: int = 1024,
        min_scale: float = 0.1,
        max_scale: float = 2.0,
        random_flip: str = "horizontal",
        seed: int = 0,
        drop_vanished: bool = False,
    ) -> None:
        if random_flip not in FLIPS:
            raise UsageError("Unknown flip.", where="INPUT.RANDOM_FLIP", value=random_flip, allowed=", ".join(FLIPS))
        if not 0 < min_scale <= max_scale:
            value = f"{min_scale} to {max_scale}"
            raise UsageError("Impossible scales.", where="INPUT.MIN_SCALE", value=value, allowed="0 < min <= max")
        self.labels = contiguous_indices(categories)
        self.tokenizer, self.image_size, self.random_flip = tokenizer, image_size, random_flip
        self.min_scale, self.max_scale, self.seed, self.drop_vanished = min_scale, max_scale, seed, drop_vanished

    def __call__(self, record: Record, epoch: int, index: int) -> Sample:
        """Map one record.

        Raises:
            DataError: its files are unreadable or disagree with it.
        """
        generator = np.random.default_rng([self.seed, epoch, index])
        drawn = draw_jitter(
            generator,
            record.height,
            record.width,
            size=self.image_size,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            flip=self.random_flip,
        )
        pixels = drawn.apply_image(read_checked_image(record))
        ids = drawn.apply_id_map(read_checked_id_map(record))
        targets = self._targets(record, ids, generator)
        return Sample(_to_tensor(pixels), record.image_id, (record.height, record.width), targets)

    def _targets(self, record: Record, ids: np.ndarray, generator: np.random.Generator) -> RegionTargets:
        segments = measure_segments(ids)
        boxes = dict(zip(segments.ids.tolist(), segments.boxes_xyxy.tolist(), strict=True))
        regions = [region for region in record.regions if not region.is_crowd]
        if self.drop_vanished:
            regions = [region for region in regions if region.id in boxes]
        captions = [_draw_caption(region, generator) for region in regions]
        return RegionTargets(
            labels=torch.tensor([self._label(region, record) for region in regions], dtype=torch.int64),
            segment_ids=torch.tensor([region.id for region in regions], dtype=torch.int64),
            id_map=torch.tensor(ids, dtype=torch.int32),
            boxes_xyxy=torch.tensor([boxes.get(region.id, [0] * 4) for region in regions]).float().reshape(-1, 4),
            caption_tokens=caption_tokens(self.tokenizer, captions),
            captions=captions,
            seed=int(generator.integers(2**63)),
        )

    def _label(self, region: Region, record: Record) -> int:
        if region.category_id not in self.labels:
            where = f"image {record.image_id}, region {region.id}"
            raise DataError("A region has an unknown category.", where=where, value=region.category_id)
        return self.labels[region.category_id]


class EvalMapper:
    """Evaluation mapper: the image at its test size, no targets.

    Args:
        shortest: length of the shorter side, pixels; None keeps the image as it is.
        longest: what the longer side may reach.
    """

    def __init__(self, *, shortest: int | None = 800, longest: int = 1333) -> None:
        self.shortest, self.longest = shortest, longest

    def __call__(self, record: Record, epoch: int = 0, index: int = 0) -> Sample:
        """Map one record; raises DataError when its image is unreadable or of another size than the record says."""
        pixels = read_checked_image(record)
        if self.shortest:
            pixels = resize(pixels, shortest_side_size(*pixels.shape[:2], self.shortest, self.longest))
        return Sample(_to_tensor(pixels), record.image_id, (record.height, record.width))


def caption_tokens(tokenizer: CaptionTokenizer, captions: Sequence[str]) -> Tensor:
    """Return int64 (n, T); a region without caption has a row of padding, which the caption loss leaves out."""
    rows = [tokenizer.encode(caption) if caption else [] for caption in captions]
    tokens = torch.full((len(rows), max([2, *map(len, rows)])), tokenizer.pad_id, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens


def _draw_caption(region: Region, generator: np.random.Generator) -> str:
    if not region.captions:
        return ""
    return region.captions[int(generator.integers(len(region.captions)))]


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.tensor(pixels).permute(2, 0, 1).contiguous()
