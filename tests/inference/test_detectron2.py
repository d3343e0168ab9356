"""Our systems as detectron2's meta-architecture, in its own trainer and before its own evaluator."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from locap.datasets.records import encode_mask
from locap.datasets.shapes import CATEGORIES, Shapes
from locap.datasets.transforms.mapper import PanopticCaptionMapper
from locap.inference.detectron2 import LocapMetaArch, RegionMapper, add_locap_config, register_meta_architecture
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config, save_config
from locap.utils.errors import DataError, UsageError
from locap.utils.tokenizers import CaptionTokenizer

REASON = "detectron2 is not installed: {} was not checked"


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(4, split="test", image_size=64)


@pytest.fixture
def architecture(build, shapes) -> LocapMetaArch:
    overrides = ("MODEL.DECODER.TEST.OBJECT_MASK_THRESHOLD", "0.0", "MODEL.DECODER.TEST.OVERLAP_THRESHOLD", "0.0")
    return LocapMetaArch(build(*overrides), shapes.categories, CaptionTokenizer.from_pretrained("shapes"))


class Fields:
    """Stands in for Instances."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def has(self, name):
        return name in self.__dict__

    def to(self, device):
        return self


def image_of(record):
    """Return the image as detectron2's mapper does: uint8 (3, H, W), BGR."""
    return torch.from_numpy(record.read_image()).permute(2, 0, 1).flip(0).contiguous()


def learnt_from(record, categories):
    labels = {category.id: number for number, category in enumerate(categories)}
    masks = torch.from_numpy(np.stack([record.read_mask(region) for region in record.regions]))
    instances = Fields(
        gt_classes=torch.tensor([labels[region.category_id] for region in record.regions]),
        gt_masks=SimpleNamespace(tensor=masks),
        gt_boxes=SimpleNamespace(tensor=torch.tensor([region.box_xyxy for region in record.regions])),
        gt_captions=[region.captions[0] for region in record.regions],
    )
    return {"image": image_of(record), "image_id": record.image_id, "instances": instances}


def test_inputs_become_what_the_system_learns_from(architecture, shapes):
    record = shapes[1]
    batch = architecture.train()._batch([learnt_from(record, shapes.categories)])
    assert torch.equal(batch.images[0], torch.from_numpy(record.read_image()).permute(2, 0, 1))
    target = batch.targets[0]
    own = PanopticCaptionMapper(shapes.categories, architecture.tokenizer, image_size=64, min_scale=1, max_scale=1,
                                random_flip="none")(record, 0, 0).targets  # fmt: skip
    assert torch.equal(target.labels, own.labels)
    assert torch.equal(target.masks(), own.masks())
    assert torch.equal(target.boxes_xyxy, own.boxes_xyxy)
    assert target.captions == [region.captions[0] for region in record.regions]
    assert (target.caption_tokens[:, 0] == own.caption_tokens[:, 0]).all()


def test_smaller_masks_lie_on_top(architecture, shapes):
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :10, :10], masks[1, :40, :40] = True, True
    instances = Fields(
        gt_classes=torch.tensor([0, 1]), gt_masks=masks, gt_boxes=SimpleNamespace(tensor=torch.ones(2, 4))
    )
    item = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": instances}
    (target,) = architecture.train()._batch([item]).targets
    assert target.masks().flatten(1).sum(1).tolist() == [100, 1500]
    assert not target.caption_tokens.any()


def test_losses_are_those_of_the_trainer(architecture, shapes):
    architecture.train()
    items = [learnt_from(shapes[i], shapes.categories) for i in range(2)]
    torch.manual_seed(3)
    losses = architecture(items)
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    torch.manual_seed(3)
    batch = architecture._batch(items)
    terms = architecture.model(batch, int(torch.randint(2**31, ())))
    counts = architecture.model.counts(batch)
    for name, term in terms.items():
        mean = term.weight * term.total / max(float(counts[term.counted]), 1.0)
        torch.testing.assert_close(losses[name], mean)
    sum(losses.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in architecture.model.captioner.parameters())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": torch.zeros(64, 64, 3, dtype=torch.uint8)}, r"not \(3, height, width\)"),
        ({"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "image_id": 9}, r"cannot be learnt from(.|\n)*image 9"),
        ({"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": Fields()}, "cannot be learnt from"),
    ],
)
def test_inputs_that_teach_nothing_are_refused(architecture, item, message):
    with pytest.raises(DataError, match=message):
        architecture.train()([item])


def test_channels_are_in_a_known_order(architecture, shapes):
    with pytest.raises(UsageError, match=r"INPUT\.FORMAT"):
        LocapMetaArch(architecture.model, shapes.categories, input_format="YUV-BT.601")
    record, same = shapes[0], LocapMetaArch(architecture.model, shapes.categories, input_format="RGB")
    rgb = torch.from_numpy(record.read_image()).permute(2, 0, 1)
    assert torch.equal(same.eval()._batch([{"image": rgb}]).images[0], rgb)


def test_outputs_are_detectron2s(architecture, shapes):
    structures = pytest.importorskip("detectron2.structures", reason=REASON.format("what LocapMetaArch returns"))
    record = shapes[0]
    (output,) = architecture.eval()([{"image": image_of(record), "height": 80, "width": 96, "image_id": 1}])
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (80, 96)
    assert {segment["id"] for segment in segments} == set(panoptic.unique().tolist()) - {0}
    assert len(output["captions"]) == len(segments) > 0
    assert isinstance(output["instances"], structures.Instances)
    assert output["instances"].image_size == (80, 96)
    assert len(output["instances"]) == sum(segment["isthing"] for segment in segments)


def test_detectron2s_trainer_trains_it(tmp_path, architecture, shapes):
    pytest.importorskip("detectron2.engine", reason=REASON.format("training under its trainer, and its checkpoints"))
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import SimpleTrainer
    from PIL import Image

    from locap.datasets.detectron2_catalog import to_catalog
    from locap.utils.untrusted import load_flat_tensors

    items = []
    for i in range(2):
        record = shapes[i]
        record.image = str(tmp_path / f"{i}.png")
        Image.fromarray(shapes[i].read_image()).save(record.image)
        for region in record.regions:
            region.mask = encode_mask(shapes[i].read_mask(region))
        record.id_map = None
        items.append(to_catalog(record, shapes.categories))
    mapper = PanopticCaptionMapper(shapes.categories, architecture.tokenizer, image_size=64)
    mapped = RegionMapper(mapper, shapes.categories)
    loader = [[mapped(item) for item in items] for _ in range(3)]
    assert len(loader[0][0]["instances"].gt_captions) == len(loader[0][0]["instances"]) > 0
    optimizer = torch.optim.AdamW(architecture.parameters(), 1e-3)
    before = {name: value.clone() for name, value in architecture.state_dict().items()}
    SimpleTrainer(architecture.train(), loader, optimizer).train(0, 3)
    changed = [name for name, value in architecture.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) > len(before) / 2
    DetectionCheckpointer(architecture, str(tmp_path)).save("model_final")
    stored = load_flat_tensors(tmp_path / "model_final.pth")
    assert {name.removeprefix("model.") for name in stored} == set(architecture.model.state_dict())


def test_detectron2_builds_it_from_its_configuration(tmp_path, tiny_pix2cap):
    modeling = pytest.importorskip("detectron2.modeling", reason=REASON.format("build_model of LocapMetaArch"))
    from detectron2.config import get_cfg

    fitting = [str(token) for pair in tiny_pix2cap.FITTING.items() for token in pair]
    files = [tiny_pix2cap.PUBLISHED, tiny_pix2cap.HERE / "modeling" / "tiny.yaml"]
    ours = load_config(files, [*fitting, "DATASETS.TEST", "[shapes_test]"], model_schemas=MODEL_SCHEMAS)
    register_meta_architecture()
    register_meta_architecture()
    cfg = get_cfg()
    add_locap_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "LocapMetaArch", "cpu", "RGB"
    cfg.MODEL.LOCAP.CONFIG = str(save_config(ours, tmp_path / "config.yaml"))
    cfg.MODEL.LOCAP.OVERRIDES = ["SEED", "3"]
    built = modeling.build_model(cfg)
    assert isinstance(built, LocapMetaArch)
    assert built.input_format == "RGB"
    assert built.categories == CATEGORIES
    cfg.MODEL.LOCAP.OVERRIDES = ["MODEL.NAME", "pixelllm_model"]
    with pytest.raises(UsageError):
        modeling.build_model(cfg)
