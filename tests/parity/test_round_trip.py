"""Original layout -> ours -> original layout, byte for byte; and every way such weights come in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from locap import entry
from locap.modeling.checkpoints.adapter import detect, to_ours
from locap.modeling.checkpoints.loader import find_weights, load_weights
from locap.modeling.pix2cap_layouts import DEFORMABLE, FPN, PIX2CAP_LAYOUTS, to_original
from locap.trainer.checkpoint import model_tensors
from locap.utils.errors import CheckpointError

from .originals import CAPTIONER, INERT, PREDICTOR, grit_file, measured_names, original_file, original_names
from .test_manifests import DEFORM, NO_NORM, PRE_NORM, SAM, SMALL_DAVIT

VARIANTS = {
    "measured": (),
    "deformable": DEFORM,
    "focal_dw": ("MODEL.BACKBONE.NAME", "focal_dw"),
    "davit": SMALL_DAVIT,
    "pre-norm, no norm": (*PRE_NORM, *NO_NORM),
    "projected": ("MODEL.ENCODER.CONVS_DIM", "96", "MODEL.DECODER.NUM_OBJECT_QUERIES", "7"),
}
SIZES = {"num_classes": 133, "no_object_weight": 0.1}


def assert_same_bytes(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.fixture(scope="module")
def tiny(original):
    return original()


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_through_a_model_and_back(overrides, original, tmp_path):
    """File of the original -> model -> our checkpoint -> export, the unread tensors from the original file."""
    theirs = original(*overrides)
    layout = DEFORMABLE if overrides == DEFORM else FPN
    assert theirs.report.layout == layout.name
    assert len(theirs.report.loaded) == len(theirs.names) - len(INERT)
    assert set(theirs.report.inert) == set(INERT)
    save_file(model_tensors(theirs.model), tmp_path / "model.safetensors")
    ours = load_file(tmp_path / "model.safetensors")
    assert not [name for name in ours if name.startswith(("sem_seg_head", "criterion"))]
    assert_same_bytes(to_original(ours, like=theirs.tensors, **SIZES), theirs.tensors)


def test_the_full_manifest():
    """By name: one number per tensor, expanded to its shape, so that the 1043 of them need no memory."""
    theirs = {
        name: torch.tensor(number, dtype=getattr(torch, dtype) if dtype == "bool" else torch.float32).expand(shape)
        for number, (name, (shape, dtype)) in enumerate(measured_names("full").items())
    }
    words = CAPTIONER + "textual.embedding.words.weight"
    theirs[CAPTIONER + "textual.output.weight"] = theirs[words]
    found = to_ours(theirs, PIX2CAP_LAYOUTS, lambda name: False)
    assert (found.layout, found.ignored, set(found.inert)) == (FPN, [], set(INERT))
    assert len(found.tensors) == 1039
    del found.tensors["captioner.output.weight"]  # our files hold a shared tensor once
    back = to_original(found.tensors, like=theirs, **SIZES)
    assert back.keys() == theirs.keys()
    assert len(back) == 1043
    assert [name for name in theirs if back[name] is not theirs[name]] == []


def test_what_the_original_never_reads_is_made_anew(tiny):
    ours = model_tensors(tiny.model)
    made = to_original(ours, **SIZES)
    assert {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in made.items()} == tiny.names
    for name in (PREDICTOR + "self_attn_mask", "criterion.empty_weight"):
        assert torch.equal(made[name], tiny.tensors[name])
    assert made[PREDICTOR + "caping_embed"].std().item() == pytest.approx(0.02, rel=0.1)
    assert made[PREDICTOR + "pos_embed_caping.weight"].std().item() == pytest.approx(1, rel=0.1)
    again = to_original(ours, **SIZES)
    assert all(torch.equal(again[name], tensor) for name, tensor in made.items()), "the draw is not the same"


@pytest.mark.parametrize(
    ("prefix", "nest"),
    [
        *((prefix, None) for prefix in ("module.", "model.", "module.model.", "_orig_mod.")),
        *(("", nest) for nest in ("model", "state_dict", "model_state_dict")),
        *((prefix, "module") for prefix in ("model.", "module.model.")),  # the trainer's resume file
    ],
)
def test_prefixed_and_nested_files(tiny, make_model, tmp_path, prefix, nest):
    content = {prefix + name: tensor for name, tensor in tiny.tensors.items()}
    states = {"optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {"last_epoch": 3}, "amp_state": None}
    torch.save({nest: content, **states} if nest else content, tmp_path / "w.pt")
    model = make_model()
    report = load_weights(model, tmp_path / "w.pt")
    assert (len(report.loaded), len(report.inert), report.missing) == (319, 4, [])
    assert_same_bytes(model_tensors(model), model_tensors(tiny.model))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_every_kind_of_file(tiny, make_model, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in tiny.tensors.items()}, path)
    else:
        torch.save(tiny.tensors, path)
    model = make_model()
    load_weights(model, path)
    assert_same_bytes(model_tensors(model), model_tensors(tiny.model))


@pytest.mark.parametrize("tied", ["embedding.words.weight", "output.weight"])
def test_one_of_the_tied_names_is_enough(tiny, make_model, tmp_path, tied):
    tensors = dict(tiny.tensors)
    del tensors[f"{CAPTIONER}textual.{tied}"]
    torch.save(tensors, tmp_path / "w.pt")
    model = make_model()
    assert load_weights(model, tmp_path / "w.pt").missing == []
    assert_same_bytes(model_tensors(model), model_tensors(tiny.model))


def test_folders_of_the_original_trainer(tmp_path):
    for tag in ("00000569", "00001138"):
        for name in ("module_training_states.pt", "model_state_dict.pt"):
            (tmp_path / tag / "default").mkdir(parents=True, exist_ok=True)
            (tmp_path / tag / "default" / name).touch()
    newest = tmp_path / "00001138" / "default"
    assert find_weights(tmp_path) == find_weights(tmp_path / "00001138") == newest / "model_state_dict.pt"
    (newest / "model_state_dict.pt").unlink()
    assert find_weights(tmp_path / "00001138") == newest / "module_training_states.pt"


def test_the_layout_is_told_from_the_names(tiny):
    def layout(names):
        return detect(names, PIX2CAP_LAYOUTS)

    assert layout(tiny.names) is FPN
    assert layout(f"module.model.{name}" for name in tiny.names) is FPN
    assert layout(name for name in tiny.names if name.startswith("backbone.")) is FPN
    assert layout(grit_file(tiny.tensors)["model"]).name == "original GRiT"
    assert layout(tiny.model.state_dict()) is None


@pytest.mark.parametrize("backbone", [SMALL_DAVIT, SAM], ids=["davit", "vit"])
def test_the_layout_of_other_backbones(backbone, make_config, make_model):
    names, ours = original_names(make_config(*backbone)), make_model(*backbone, device="meta").state_dict()
    for prefix in ("", "module.model."):
        assert detect([prefix + name for name in names], PIX2CAP_LAYOUTS) is FPN
        assert detect([prefix + name for name in names if name.startswith("backbone.")], PIX2CAP_LAYOUTS) is FPN
        assert detect([prefix + name for name in ours], PIX2CAP_LAYOUTS) is None
        found = to_ours({prefix + name: torch.empty(0) for name in names}, PIX2CAP_LAYOUTS, lambda name: False)
        assert found.tensors.keys() == ours.keys()
        assert set(found.inert) == set(INERT)


def refused(model, path: Path, tensors: dict[str, Tensor], **options) -> str:
    torch.save(tensors, path)
    before = model_tensors(model)["region_proj.weight"].clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path, **options)
    assert torch.equal(before, model_tensors(model)["region_proj.weight"]), "weights were written"
    return str(caught.value)


def test_weights_of_another_configuration_are_refused(tiny, make_config, make_model, tmp_path):
    model, path = make_model(), tmp_path / "w.pt"
    queries = original_file(original_names(make_config("MODEL.DECODER.NUM_OBJECT_QUERIES", "7")))
    message = refused(model, path, queries)
    assert "2 of another shape (file -> model): decoder.query_embed.weight (7, 64) -> (13, 64)" in message
    assert "give the configuration that the weights were trained with" in message
    message = refused(model, path, original_file(original_names(make_config(*DEFORM))))
    assert "missing" in message
    assert "pixel_decoder.laterals" in message
    assert "unexpected" in message
    assert "combine" not in message
    message = refused(model, path, tiny.tensors | {PREDICTOR + "who.knows": torch.zeros(1)})
    assert f"1 unexpected: {PREDICTOR}who.knows" in message
    lacking = {name: tensor for name, tensor in tiny.tensors.items() if not name.startswith("backbone.layers.2.")}
    assert "missing: backbone.stages (40), backbone.downsamples (4)" in refused(model, path, lacking)


def test_an_export_needs_a_whole_model_without_extras(tiny, make_model):
    ours = model_tensors(tiny.model)
    with pytest.raises(CheckpointError, match="not the weights of a whole Pix2Cap") as caught:
        to_original({name: t for name, t in ours.items() if not name.startswith("decoder.query")}, **SIZES)
    assert "decoder.query_feat.weight" in caught.value.value
    aided = make_model("MODEL.DECODER.MASK_POOLED_QUERIES", "true", "MODEL.DECODER.SEMANTIC_AUX_WEIGHT", "1")
    with pytest.raises(CheckpointError, match="has no place for some tensors") as caught:
        to_original(model_tensors(aided), **SIZES)
    assert "decoder.pooled_proj.weight" in caught.value.value
    with pytest.raises(CheckpointError, match="holds none of the tensors"):
        to_original(ours, like=ours, **SIZES)
    with pytest.raises(CheckpointError, match="is of another size") as caught:
        to_original(ours, num_classes=80, no_object_weight=0.1, like=tiny.tensors)
    assert caught.value.where == "criterion.empty_weight"


@pytest.fixture
def export(make_config, tmp_path, capfd):
    """Run ``entry.py export`` on a run folder: exit code, message."""
    from locap.utils.config import save_config

    def run(weights: dict[str, Tensor], *options: object) -> tuple[int, str]:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_config(make_config("RESUME_FROM", str(tmp_path / "run")), tmp_path / "run" / "config.yaml")
        save_file(weights, tmp_path / "run" / "model.safetensors")
        code = entry.main(["export", "--model", str(tmp_path / "run"), "--to", "original", *map(str, options)])
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_the_command_writes_what_the_original_reads(tiny, export, tmp_path, name):
    code, message = export(model_tensors(tiny.model), "--like", tiny.path, "--output", tmp_path / name)
    assert code == 0, message
    assert f"written: {tmp_path / name}" in message
    if name.endswith(".pt"):
        written = torch.load(tmp_path / name, weights_only=True)
        words = written[CAPTIONER + "textual.embedding.words.weight"]
        assert words.data_ptr() == written[CAPTIONER + "textual.output.weight"].data_ptr(), "no longer one tensor"
    else:
        written = load_file(tmp_path / name)
    assert_same_bytes(written, tiny.tensors)


def test_the_command_refuses_like_any_other(tiny, export, tmp_path):
    ours = model_tensors(tiny.model)
    code, message = export(ours | {"auxiliary.semantic.proj.weight": torch.zeros(1)}, "--output", tmp_path / "out.pt")
    assert code == 4
    assert "auxiliary.semantic.proj.weight" in message
    code, message = export(ours, "--output", tmp_path / "out.onnx")
    assert code == 4
    assert ".safetensors, .pt, .pth" in message
    code, message = export(ours, "--like", tmp_path / "gone.pt", "--output", tmp_path / "out.pt")
    assert code == 4
    assert "gone.pt" in message
    assert not (tmp_path / "out.pt").exists()
