"""Mapped samples to one batch."""

from __future__ import annotations

from collections.abc import Sequence

from .batches import Batch
from .transforms.mapper import Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Gather samples. Images and targets stay per image: sizes, numbers of regions and caption lengths may differ."""
    return Batch(
        images=[sample.image for sample in samples],
        targets=[sample.targets for sample in samples if sample.targets is not None],
        image_ids=[sample.image_id for sample in samples],
        output_sizes=[sample.output_size for sample in samples],
    )
