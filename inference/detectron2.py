"""Works with detectron2: our systems in its trainers and evaluators, our records in its structures and catalogs.

from locap.inference.detectron2 import add_locap_config, register_datasets, register_meta_architecture

register_datasets()
register_meta_architecture()
cfg = get_cfg()
add_locap_config(cfg)
cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.LOCAP.CONFIG = "LocapMetaArch", "run_folder/config.yaml"

It stands here and not in ``utils``, since it needs records, readers and systems, which lie above that floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..datasets.batches import Batch, RegionTargets
from ..datasets.detectron2_catalog import register_datasets, to_catalog
from ..datasets.detectron2_classes import Classes, library
from ..datasets.detectron2_structures import (
    Texts,
    from_instances,
    from_panoptic,
    mask_tensor,
    to_instances,
    to_panoptic,
)
from ..datasets.readers import categories_of
from ..datasets.readers.detectron2 import CatalogReader, entry_of, record_of_entry
from ..datasets.records import Category, Record
from ..datasets.transforms.mapper import Mapper, caption_tokens
from ..modeling.schemas import MODEL_SCHEMAS
from ..modeling.systems import build_trained, find_system
from ..utils.config import load_config
from ..utils.errors import DataError, UsageError
from ..utils.tokenizers import CaptionTokenizer

__all__ = [
    "CatalogReader",
    "Classes",
    "LocapMetaArch",
    "RegionMapper",
    "Texts",
    "add_locap_config",
    "from_instances",
    "from_panoptic",
    "register_datasets",
    "register_meta_architecture",
    "to_catalog",
    "to_instances",
    "to_panoptic",
]

FORMATS = ("BGR", "RGB")


class LocapMetaArch(nn.Module):
    """A system that segments and describes, such as Pix2Cap, as a detectron2 meta-architecture.

    Inputs are detectron2's: per image a dict with ``image`` (uint8 (3, H, W), already resized, channels in the order of
    ``input_format``), ``height`` and ``width`` of the output, and in training ``instances`` with ``gt_classes``,
    ``gt_masks`` of any kind, and ``gt_captions`` (a text each, "" for none; without the field nothing learns to speak).
    The system learns from an id map, so where masks overlap, the smaller one lies on top.

    In training it returns the losses, weighted and divided as locap's trainer does; else per image a dict with
    ``panoptic_seg``, ``instances``, ``captions`` (of the segments, in the order of ``segments_info``) and ``record``,
    in the form of `to_panoptic` and `to_instances`.

    Args:
        model: the system.
        categories: its classes, in their order.
        tokenizer: of its captions; needed to train.
        input_format: cfg.INPUT.FORMAT, "BGR" or "RGB".
    """

    def __init__(
        self,
        model: nn.Module,
        categories: Sequence[Category],
        tokenizer: CaptionTokenizer | None = None,
        *,
        input_format: str = "BGR",
    ) -> None:
        super().__init__()
        if input_format not in FORMATS:
            raise UsageError("Unknown order of channels.", where="INPUT.FORMAT", value=input_format, allowed="BGR, RGB")
        self.model, self.categories, self.tokenizer = model, tuple(categories), tokenizer
        self.input_format = input_format

    @classmethod
    def from_detectron2(cls, cfg: Any) -> LocapMetaArch:
        """Build what cfg.MODEL.LOCAP describes, with the weights of RESUME_FROM if its configuration names any.

        Raises:
            UsageError: there is no such configuration, or its system learns from prompts instead of regions.
        """
        ours = load_config([cfg.MODEL.LOCAP.CONFIG], list(cfg.MODEL.LOCAP.OVERRIDES), model_schemas=MODEL_SCHEMAS)
        system = find_system(ours.MODEL.NAME)
        if system.targets is not RegionTargets:
            fix = "use locap.load(...) for it"
            raise UsageError(
                "This system answers prompts, which detectron2 has no place for.", value=ours.MODEL.NAME, fix=fix
            )
        categories, tokenizer = categories_of(ours.DATASETS.TEST, ours.DATASETS.ROOT or None), system.tokenizer(ours)
        build = build_trained if ours.RESUME_FROM else system.model
        return cls(build(ours, categories, tokenizer), categories, tokenizer, input_format=cfg.INPUT.FORMAT)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """See the class.

        Raises:
            DataError: an image or its instances are not of the form above.
        """
        batch = self._batch(batched_inputs).to(self.device)
        if self.training:
            return self._losses(batch)
        return [self._output(record) for record in self.model.predict(batch)]

    def _batch(self, inputs: Sequence[Mapping[str, Any]]) -> Batch:
        images = [self._image(item) for item in inputs]
        return Batch(
            images=images,
            targets=[self._targets(item, image) for item, image in zip(inputs, images, strict=True)]
            if self.training
            else [],
            image_ids=[item.get("image_id", row) for row, item in enumerate(inputs)],
            output_sizes=[
                (int(item.get("height", image.shape[1])), int(item.get("width", image.shape[2])))
                for item, image in zip(inputs, images, strict=True)
            ],
        )

    def _image(self, item: Mapping[str, Any]) -> Tensor:
        image = item["image"]
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError("An image is not (3, height, width).", where=_place(item), value=list(image.shape))
        image = image if image.dtype == torch.uint8 else image.round().clamp(0, 255).to(torch.uint8)
        return image.flip(0) if self.input_format == "BGR" else image

    def _targets(self, item: Mapping[str, Any], image: Tensor) -> RegionTargets:
        if self.tokenizer is None or "instances" not in item or not item["instances"].has("gt_masks"):
            allowed = 'a tokenizer, and "instances" with gt_classes and gt_masks; without objects, empty ones'
            raise DataError("An image cannot be learnt from.", where=_place(item), allowed=allowed)
        instances = item["instances"].to("cpu")
        height, width = image.shape[1:]
        masks = mask_tensor(instances.gt_masks, height, width, where=_place(item))
        captions = list(instances.gt_captions) if instances.has("gt_captions") else [""] * len(masks)
        return RegionTargets(
            labels=instances.gt_classes.long(),
            segment_ids=torch.arange(1, len(masks) + 1),
            id_map=_stack(masks),
            boxes_xyxy=instances.gt_boxes.tensor.float() if instances.has("gt_boxes") else _boxes(masks),
            caption_tokens=caption_tokens(self.tokenizer, captions),
            captions=captions,
            seed=int(torch.randint(2**62, ())),
        )

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        counts, ranks = _summed(self.model.counts(batch), self.device)
        terms = self.model(batch, int(torch.randint(2**31, ())))
        return {name: term.total * (term.weight * ranks / counts[term.counted]) for name, term in terms.items()}

    def _output(self, record: Record) -> dict[str, Any]:
        output = {
            "instances": to_instances(record, self.categories, things_only=True, device=self.device),
            "captions": [region.captions[0] if region.captions else "" for region in record.regions],
            "record": record,
        }
        if record.id_map is not None:
            output["panoptic_seg"] = to_panoptic(record, self.categories)
        return output


class RegionMapper:
    """From an entry of a catalog to the input of `LocapMetaArch` in training, by locap's own augmentations.

    detectron2's own drops captions. Used as ``build_detection_train_loader(cfg, mapper=RegionMapper(…))``.

    Args:
        mapper: such as `PanopticCaptionMapper`.
        categories: in the order of the catalog's numbers; or its numbers.
        input_format: cfg.INPUT.FORMAT.
    """

    def __init__(self, mapper: Mapper, categories: Sequence[Category] | Classes, *, input_format: str = "BGR") -> None:
        self.mapper, self.classes, self.input_format = mapper, Classes.of(categories), input_format

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map one entry; what is random follows PyTorch's generator, which detectron2 seeds in each worker."""
        structures = library("structures")
        record = record_of_entry(entry_of(dataset_dict, str(dataset_dict.get("image_id"))), self.classes)
        sample = self.mapper(record, 0, int(torch.randint(2**62, ())))
        targets = sample.targets
        instances = structures.Instances(
            tuple(sample.image.shape[1:]),
            gt_boxes=structures.Boxes(targets.boxes_xyxy),
            gt_classes=targets.labels,
            gt_masks=structures.BitMasks(targets.masks()),
            gt_captions=Texts(targets.captions),
        )
        image = sample.image.flip(0) if self.input_format == "BGR" else sample.image
        body = {"image": image, "instances": instances, "height": record.height, "width": record.width}
        return {"file_name": record.image, "image_id": record.image_id, **body}


def add_locap_config(cfg: Any) -> None:
    """Add the keys of `LocapMetaArch` to a detectron2 configuration: MODEL.LOCAP.CONFIG and MODEL.LOCAP.OVERRIDES."""
    node = library("config").CfgNode
    cfg.MODEL.LOCAP = node({"CONFIG": "", "OVERRIDES": []})


def register_meta_architecture() -> None:
    """Make ``MODEL.META_ARCHITECTURE: LocapMetaArch`` known to detectron2; twice does no harm."""
    registry = library("modeling").META_ARCH_REGISTRY
    if LocapMetaArch.__name__ in registry:
        return

    def build(cfg: Any) -> LocapMetaArch:
        return LocapMetaArch.from_detectron2(cfg)

    build.__name__ = LocapMetaArch.__name__  # the registry's key
    registry.register(build)


def _place(item: Mapping[str, Any]) -> str:
    return f"image {item.get('image_id', item.get('file_name', ''))}"


def _stack(masks: Tensor) -> Tensor:
    """Draw masks bool (n, H, W) into an int32 id map (H, W), ids from 1, the smallest on top."""
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32)
    for row in masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist():
        ids[masks[row]] = row + 1
    return ids


def _boxes(masks: Tensor) -> Tensor:
    return library("structures").BitMasks(masks).get_bounding_boxes().tensor


def _summed(counts: Mapping[str, float], device: torch.device) -> tuple[dict[str, float], int]:
    """Return counts over all ranks, 1 at least, and how many ranks DDP will average over."""
    values = torch.tensor([float(value) for value in counts.values()], device=device)
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        ranks = dist.get_world_size()
    return dict(zip(counts, values.clamp(min=1).tolist(), strict=True)), ranks
