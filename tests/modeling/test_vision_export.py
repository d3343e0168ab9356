"""The exported vision part computes what the system does, on its own."""

from __future__ import annotations

import json

import pytest
import torch

from locap.datasets.shapes import CATEGORIES
from locap.modeling import vision_export
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import SYSTEMS, find_system
from locap.modeling.vision_export import ABOUT, TOLERANCE, compare, example, export_vision
from locap.utils.config import load_config
from locap.utils.errors import CheckpointError, UsageError

DEFORMABLE = ("MODEL.ENCODER.NAME", "transformer_encoder_deform", "MODEL.ENCODER.TRANSFORMER_ENC_LAYERS", "1")
SMALL = ("MODEL.DECODER.DEC_LAYERS", "2", "MODEL.BACKBONE.FOCAL.DEPTHS", "[1, 1, 1, 1]")


def build(system: str, module, *overrides: str, aids: bool = False):
    """Return the configuration and the system."""
    if system == "pix2cap_model":
        fitting = [str(word) for pair in module.FITTING.items() for word in pair]
        files = [module.PUBLISHED, module.HERE / "modeling" / "tiny.yaml"]
        files += [module.HERE / "modeling" / "aids.yaml"] if aids else []
        words = [*fitting, "COCO.INPUT.MIN_SIZE_TEST", "60", "COCO.INPUT.MAX_SIZE_TEST", "96", *overrides]
    else:
        files, words = [module.SHIPPED], [*module.TINY, *overrides]
    cfg = load_config(files, words, model_schemas=MODEL_SCHEMAS)
    torch.manual_seed(0)
    found = find_system(system)
    return cfg, found.model(cfg, CATEGORIES, found.tokenizer(cfg)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "module", "overrides", "aids"),
    [
        ("pix2cap_model", "tiny_pix2cap", DEFORMABLE + SMALL, True),
        ("pixelllm_model", "tiny_pixelllm", SMALL[2:], False),
    ],
)
def test_every_system_s_vision_part(system, module, overrides, aids, request, tmp_path):
    cfg, model = build(system, request.getfixturevalue(module), *overrides, aids=aids)
    path = tmp_path / "vision.pt2"
    found = export_vision(cfg, model, path)
    assert found.any_batch
    assert max(found.differences.values()) <= TOLERANCE
    extra = {ABOUT: ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra[ABOUT])["images"] == ["1 or more", 3, found.height, found.width]
    own = [node for node in program.graph.nodes if "locap" in str(node.target)]
    assert own == [], "the file needs locap to be read"
    images, sizes = example(4, (found.height, found.width), seed=9)
    outputs = program.module()(images, sizes)
    kept = torch.arange(found.height)[:, None] < sizes[:, 0, None, None]
    kept = kept & (torch.arange(found.width) < sizes[:, 1, None, None])
    other = program.module()(torch.where(kept[:, None], images, 255 - images), sizes)
    assert all(torch.equal(outputs[name], other[name]) for name in outputs), "what lies beyond an image is seen"
    if system == "pix2cap_model":
        cut = [image[:, :h, :w] for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
        with torch.no_grad():  # with the kernels that it has by itself
            padded = model.images(cut, canvas=(found.height, found.width))
            last = model.encode(padded, model.class_texts.ensemble(model.lang_encoder))[0].points[-1]
        torch.testing.assert_close(outputs["class_logits"], last.class_logits, rtol=1e-4, atol=1e-4)
    assert {system for system in SYSTEMS if SYSTEMS[system].vision is not None} == set(SYSTEMS)


def test_a_file_that_computes_something_else_is_not_kept(tiny_pixelllm, tmp_path, monkeypatch):
    class Other(torch.nn.Module):
        def forward(self, images, sizes):
            return {name: images.float().mean() * torch.ones(shape) for name, shape in shapes.items()}

    cfg, model = build("pixelllm_model", tiny_pixelllm)
    with torch.no_grad():
        maps = model.encode(list(example(1, model.canvas, seed=0)[0]))
    shapes = {name: value.shape for name, value in maps.items()}
    program = torch.export.export(Other(), example(1, model.canvas, seed=0))
    monkeypatch.setattr(vision_export, "_traced", lambda module, inputs: (program, False))
    with pytest.raises(CheckpointError, match="does not compute what the system does"):
        export_vision(cfg, model, tmp_path / "vision.pt2")
    assert list(tmp_path.iterdir()) == []


def test_another_ending_is_refused_before_anything_is_computed(tiny_pixelllm, tmp_path):
    cfg, model = build("pixelllm_model", tiny_pixelllm)
    with pytest.raises(UsageError, match=r"vision\.pt2"):
        export_vision(cfg, model, tmp_path / "vision.onnx")


def test_nan_is_a_difference(tmp_path, monkeypatch):
    class Part:
        system = staticmethod(lambda images: {"x": torch.full((1,), float("nan"))})

    class Program:
        def module(self):
            return lambda images, sizes: {"x": torch.zeros(1)}

    monkeypatch.setattr(torch.export, "load", lambda path: Program())
    with pytest.raises(CheckpointError):
        compare(tmp_path, Part, [example(1, (8, 8), seed=0)], 1e-5)
