"""Every tensor of the original has one name here and every one of ours one there, in every configuration."""

from __future__ import annotations

import json

import pytest
import torch

from locap.modeling.checkpoints.adapter import detect
from locap.modeling.checkpoints.key_table import KeyTable
from locap.modeling.pix2cap_layouts import DEFORMABLE, FPN, GRIT, PIX2CAP_LAYOUTS

from .originals import INERT, Names, measured_names, numbered, original_names

DEFORM = ("MODEL.ENCODER.NAME", "transformer_encoder_deform")
FOCAL, DAVIT = "MODEL.BACKBONE.FOCAL.", "MODEL.BACKBONE.DAVIT."
SMALL_DAVIT = (
    *("MODEL.BACKBONE.NAME", "davit", DAVIT + "DIM_EMBED", "[8, 16, 32, 64]", DAVIT + "DEPTHS", "[1, 1, 2, 1]"),
    *(DAVIT + "NUM_HEADS", "[2, 4, 4, 8]", DAVIT + "NUM_GROUPS", "[2, 4, 4, 8]"),
)
D5 = (DAVIT + "PATCH_SIZE", "[7, 3, 3, 3]", DAVIT + "PATCH_PADDING", "[3, 1, 1, 1]")
SAM = ("MODEL.BACKBONE.NAME", "vit", "MODEL.DECODER.SIZE_DIVISIBILITY", "1024")
PRE_NORM = ("MODEL.DECODER.PRE_NORM", "true")
NO_NORM = ("MODEL.ENCODER.NORM", "")
VARIANTS = {
    "measured": (),
    "deformable": DEFORM,
    "deformable, no encoder layer": (*DEFORM, "MODEL.ENCODER.TRANSFORMER_ENC_LAYERS", "0"),
    "deformable, other width": (*DEFORM, "MODEL.ENCODER.CONVS_DIM", "48", "MODEL.DECODER.NHEADS", "2"),
    "fpn, no encoder layer": ("MODEL.ENCODER.TRANSFORMER_ENC_LAYERS", "0"),
    "pre-norm": PRE_NORM,
    "deformable, pre-norm": (*DEFORM, *PRE_NORM),
    "no norm": NO_NORM,
    "deformable, no norm": (*DEFORM, *NO_NORM),
    "davit": SMALL_DAVIT,
    "davit d5, deformable": (*SMALL_DAVIT, *D5, *DEFORM),
    "vit": SAM,
    "vit large, deformable": (*SAM, "MODEL.BACKBONE.VIT.SIZE", "large", *DEFORM),
    "focal_dw": ("MODEL.BACKBONE.NAME", "focal_dw", FOCAL + "FOCAL_LEVELS", "[3, 3, 3, 3]"),
    "pre-norm focal": (FOCAL + "USE_POSTLN", "false", FOCAL + "USE_LAYERSCALE", "false"),
    "pre-norm focal_dw": ("MODEL.BACKBONE.NAME", "focal_dw", FOCAL + "USE_POSTLN", "false"),
    "norm in the modulation": (FOCAL + "USE_POSTLN_IN_MODULATION", "true", FOCAL + "MLP_RATIO", "3.0"),
    "patches": (FOCAL + "USE_CONV_EMBED", "false", FOCAL + "PATCH_NORM", "false"),
    "levels and windows": (FOCAL + "FOCAL_LEVELS", "[2, 3, 4, 1]", FOCAL + "FOCAL_WINDOWS", "[5, 3, 3, 9]"),
    "deep": (FOCAL + "DEPTHS", "[1, 2, 12, 1]", "MODEL.DECODER.DEC_LAYERS", "12"),
    "projected memory": ("MODEL.ENCODER.CONVS_DIM", "96"),
    "enforced projection": ("MODEL.DECODER.ENFORCE_INPUT_PROJ", "true"),
    "mask width": ("MODEL.ENCODER.MASK_DIM", "40", "MODEL.DIM_PROJ", "24", "MODEL.TEXT.WIDTH", "48"),
    "queries and words": ("MODEL.DECODER.NUM_OBJECT_QUERIES", "21", "MODEL.TEXT.CONTEXT_LENGTH", "20"),
    "captioner": ("MODEL.TEXT_DECODER.NUM_LAYERS", "3", "MODEL.TEXT_DECODER.OBJECT_FEATURE_SIZE", "16"),
}


def as_theirs(model: torch.nn.Module) -> Names:
    """Return the model's tensors under their original names; a name that has none fails."""
    state = model.state_dict()
    layout = DEFORMABLE if "pixel_decoder.level_embed" in state else FPN
    names = {name: layout.table.theirs(name) for name in state}
    assert [name for name, theirs in names.items() if theirs is None] == []
    assert len(set(names.values())) == len(names)
    assert all(layout.table.ours(theirs) == name for name, theirs in names.items())
    return {names[name]: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}


def without_inert(names: Names) -> Names:
    return {name: value for name, value in names.items() if name not in INERT}


@pytest.mark.parametrize(("which", "count"), [("full", 1043), ("tiny", 323)])
def test_the_stored_manifests_are_the_measured_ones(which, count, request):
    names = measured_names(which)
    assert len(names) == count
    shared = request.getfixturevalue("shared") / "spec"
    file = shared / ("pix2cap_state_dict.json" if which == "full" else "pix2cap_state_dict_tiny.json")
    if not file.is_file():
        pytest.skip("the measured manifest is absent")
    assert names == {name: (tuple(shape), dtype) for name, (shape, dtype) in json.loads(file.read_text()).items()}


@pytest.mark.parametrize(("which", "count"), [("full", 1043), ("tiny", 323)])
def test_names_shapes_and_dtypes_of_the_original(which, count, make_config, make_model):
    measured = measured_names(which)
    assert len(measured) == count
    tiny = which == "tiny"
    assert original_names(make_config(tiny=tiny)) == measured
    assert as_theirs(make_model(tiny=tiny, device="meta")) == without_inert(measured)


def test_the_numbered_names_of_both_pixel_decoders(make_config):
    for overrides, count in (((), 321), (DEFORM, 325)):
        names = numbered(original_names(make_config(*overrides)))
        assert len(names) == count
        assert names[0] == "backbone.layers.0.blocks.0.gamma_1"
        assert names[-1] == "sem_seg_head.predictor.transformer_self_attention_layers.2.self_attn.out_proj.weight"


def test_parameter_counts(make_config, make_model):
    """The original also counts its caption queries, which nothing reads."""
    unread = {"full": 512 * 512 + 77 * 512, "tiny": 64 * 32 + 77 * 64}
    for which, total in (("full", 408_409_143), ("tiny", 4_091_968)):
        model = make_model("MODEL.MASK_HEAD_ENABLED", "true", tiny=which == "tiny", device="meta")
        assert sum(p.numel() for p in model.parameters()) + unread[which] == total
        if which == "full":
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 106_003_258
            assert sum(p.numel() for p in model.backbone.parameters()) == 205_746_936
            assert sum(p.numel() for p in model.pixel_decoder.parameters()) == 32_193_536
            assert sum(p.numel() for p in model.lang_encoder.parameters()) == 63_428_097
            assert sum(p.numel() for p in model.captioner.parameters()) == 66_985_530


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_has_the_originals_names(overrides, make_config, make_model):
    assert as_theirs(make_model(*overrides, device="meta")) == without_inert(original_names(make_config(*overrides)))


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_a_name_belongs_to_one_row(overrides, make_config):
    """Whatever the order of the rows."""
    names = original_names(make_config(*overrides))
    layout = detect(names, PIX2CAP_LAYOUTS)
    assert layout is (DEFORMABLE if "deform" in " ".join(overrides) else FPN)
    tables = [KeyTable([row]) for row in layout.table.rows]
    for name in without_inert(names):
        (ours,) = filter(None, (table.ours(name) for table in tables))
        assert list(filter(None, (table.theirs(ours) for table in tables))) == [name]


def test_no_row_is_dead(make_config):
    """Together the variants use every row."""
    names = {}
    for overrides in VARIANTS.values():
        found = original_names(make_config(*overrides))
        names.setdefault(detect(found, PIX2CAP_LAYOUTS).name, set()).update(found)
    for layout in (FPN, DEFORMABLE):
        for row in layout.table.rows:
            table = KeyTable([row])
            elsewhere = row in FPN.table.rows and row in DEFORMABLE.table.rows  # of focal_dw, for one
            assert any(map(table.ours, set().union(*names.values()) if elsewhere else names[layout.name])), row


def test_grits_captioner_has_the_rows_of_the_originals():
    renamed = {theirs.replace("roi_heads.", "sem_seg_head.predictor."): ours for theirs, ours in GRIT.table.rows}
    assert renamed.items() <= dict(FPN.table.rows).items()


def test_wildcards_must_agree():
    with pytest.raises(ValueError, match="the wildcards"):
        KeyTable([("a.{}.*", "b.*.{}")])
    table = KeyTable([("a.{}.*", "b{}.*")])
    assert table.ours("a.10.weight") == "b10.weight"
    assert table.theirs("b10.weight") == "a.10.weight"
    assert [table.ours(name) for name in ("a.01.weight", "a.1.weight.x", "xa.1.weight", "a.-1.weight")] == [None] * 4
