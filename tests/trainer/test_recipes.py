"""The configurations that come with the package: they load, and PixelLLM's say what was published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from locap.datasets.readers import categories_of
from locap.evaluation.runner import evaluator_class
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import find_system
from locap.trainer.assembly import decayed_layers
from locap.trainer.entries import eval_groups, train_entries
from locap.trainer.optimizer import build_optimizer, build_schedule
from locap.trainer.scoring import SCORED_BY
from locap.utils.config import load_config
from locap.utils.errors import UsageError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PIXELLLM = CONFIGS / "pixelllm"
ADDED = [PIXELLLM / name for name in ("as_published.yaml", "public_weights.yaml")]  # after another file
WHOLE = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "base" and path not in ADDED]
RECIPES = ("trace", "ref", "refseg", "densecap", "trace_ref_densecap_llava", "trace_refseg_densecap_llava")
PARTS = ("encoder.encoders.main", "encoder.encoders.sam", "location_prompts", "prompt_features", "language", "places")
PARTS += ("detector", "masks", "mask_adapter")
SMALL = ("MODEL.BACKBONE.NAME", "timm:eva02_tiny_patch14_224", "MODEL.SAM.SIZE", "base", "MODEL.TEXT_DECODER.TOKENIZER")
SMALL += ("shapes", "MODEL.TEXT_DECODER.VOCAB_SIZE", "143", "MODEL.TEXT_DECODER.NUM_LAYERS", "1")


def load(*files: Path, overrides: tuple[str, ...] = ()):
    return load_config(files, overrides, model_schemas=MODEL_SCHEMAS)


def recipe(name: str, *overrides: str, language: str = "bert"):
    return load(PIXELLLM / language / f"pixel_llm_{language}_{name}.yaml", overrides=overrides)


def built(cfg) -> nn.Module:
    """Build a system without memory for its weights."""
    system = find_system(cfg.MODEL.NAME)
    tokenizer = system.tokenizer(cfg)
    with torch.device("meta"):
        return system.model(cfg, (), tokenizer)


def learning(model: nn.Module) -> dict[str, list[str]]:
    """Return part -> names of what learns in it."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = {part: [name for name in names if name.startswith(part + ".")] for part in PARTS}
    assert sum(map(len, found.values())) == len(names)
    return {part: names for part, names in found.items() if names}


def test_all_published_recipes_are_there():
    names = {f"{language}/pixel_llm_{language}_{name}.yaml" for language in ("bert", "t5") for name in RECIPES}
    assert names == {str(path.relative_to(PIXELLLM)) for path in WHOLE if path.parent.name in ("bert", "t5")}


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_names_data_and_variants_that_exist(path: Path):
    added = ADDED if path.parent.name in ("bert", "t5") else []
    for files in ([path], *([path, another] for another in added)):
        cfg = load(*files)
        for entry in train_entries(cfg):
            categories_of([entry.name])
        for group in eval_groups(cfg):
            (task,) = {entry.task for entry in group}
            assert all(categories_of([entry.name]) is not None for entry in group)
            variants = [cfg.EVAL_VARIANTS[key] for key in (str(group[0]), task) if key in cfg.EVAL_VARIANTS]
            assert set(variants) <= set(evaluator_class(SCORED_BY[task]).variants)


# batch, steps, warm-up, rate, decay, layer decay, text, context, prompts, beams, detections (0: none), masks
PUBLISHED = {
    "trace": (256, 10_000, 250, 5e-5, 0, 1, 128, 8, 1, 4, 0, False),
    "ref": (64, 120_000, 1_000, 5e-5, 0, 1, 40, 40, 16, 3, 0, False),
    "refseg": (64, 60_000, 500, 5e-5, 0, 1, 40, 40, 16, 3, 0, True),
    "densecap": (64, 40_000, 1_000, 1e-4, 0.05, 0.8, 40, 8, 64, 1, 100, False),
    "trace_ref_densecap_llava": (128, 240_000, 2_000, 1e-4, 0.05, 0.8, 128, 32, 16, 4, 32, False),
    "trace_refseg_densecap_llava": (128, 30_000, 250, 1e-4, 0, 1, 128, 32, 16, 4, 32, True),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("language", ["bert", "t5"])
def test_recipes_have_the_published_numbers(name: str, language: str):
    cfg = recipe(name, language=language)
    solver, text, prompts, detector = cfg.SOLVER, cfg.MODEL.TEXT_DECODER, cfg.MODEL.PROMPTS, cfg.MODEL.DETECTOR
    found = (cfg.COCO.TRAIN.BATCH_SIZE_TOTAL, solver.MAX_STEPS, solver.WARMUP_ITERS, solver.BASE_LR)
    found += (solver.WEIGHT_DECAY, solver.LAYER_DECAY, text.MAX_STEPS, prompts.MAX_CONTEXT, prompts.MAX_PROMPTS)
    found += (text.BEAM_SIZE, detector.DETECTIONS if detector.ENABLED else 0, cfg.MODEL.MASKS)
    wanted = list(PUBLISHED[name])
    if (language, name) == ("t5", "densecap"):
        wanted[8] = 32
    assert list(found) == wanted
    assert cfg.COCO.INPUT.IMAGE_SIZE == 384
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert dict(solver.LR_MULTIPLIER) == ({"mask_adapter": 10} if name == "refseg" else {})
    assert language == text.NAME
    if language == "t5":
        assert (text.LORA.RANK, text.LORA.ALPHA, list(text.LORA.TARGETS)) == (32, 64, ["q", "v"])


@pytest.mark.parametrize(("name", "half_way"), [("trace", 2.60e-5), ("densecap", 5.20e-5)])
def test_recipes_have_the_published_schedule(name: str, half_way: float):
    solver = recipe(name).SOLVER
    schedule = build_schedule(solver, solver.MAX_STEPS)
    steps = (0, solver.WARMUP_ITERS, solver.MAX_STEPS // 2)
    rates = [solver.BASE_LR * schedule.factor(step) for step in steps]
    assert rates == pytest.approx([0, solver.BASE_LR, half_way], abs=5e-8)


def test_the_mixtures_are_the_published_ones():
    weights = {name: dict(recipe(name).DATASETS.WEIGHTS) for name in RECIPES}
    assert weights["trace"] == {"caption:coco_captions_train": 1, "trace:ln_coco_train": 2}
    assert list(weights["ref"].values()) == [1, 5, 1]
    assert list(weights["trace_ref_densecap_llava"].values()) == [3, 1, 1, 5, 1, 5, 5]
    for name in RECIPES:
        cfg = recipe(name)
        assert list(weights[name]) in ([], list(cfg.DATASETS.TRAIN))


SEEING, WRITING = ["encoder.encoders.main", "prompt_features"], ["language"]
LEARNING = {
    "trace": [*SEEING, *WRITING, "places"],
    "ref": [*SEEING, *WRITING, "places"],
    "refseg": ["places", "mask_adapter"],
    "densecap": [*SEEING, *WRITING, "detector"],
    "trace_ref_densecap_llava": [*SEEING, *WRITING, "places", "detector"],
    "trace_refseg_densecap_llava": ["mask_adapter"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_learns_is_what_was_published(name: str):
    model = built(recipe(name, *SMALL))
    assert list(learning(model)) == [part for part in PARTS if part in LEARNING[name]]
    resting = not model.encoder.encoders["sam"].encoder.training
    assert resting, "frozen parts rest"


def test_frozen_parts_are_busy_as_published():
    cfg = load(PIXELLLM / "bert" / "pixel_llm_bert_refseg.yaml", ADDED[0], overrides=SMALL)
    assert cfg.MODEL.FROZEN_MODE == "train"
    model = built(cfg)
    assert model.language.training
    assert model.encoder.encoders["sam"].encoder.training


@pytest.fixture
def tiny_t5(tmp_path: Path) -> str:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=143,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=1,
        num_heads=4,
        eos_token_id=3,
        feed_forward_proj="gated-gelu",
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    return str(tmp_path / "t5")


@pytest.mark.parametrize("name", ["trace", "refseg"])
def test_of_t5_only_what_is_added_learns(name: str, tiny_t5: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("peft", reason="LoRA is peft's")
    monkeypatch.setattr("locap.modeling.build_pixelllm.SamEncoder", Idle)
    cfg = recipe(name, *SMALL, "MODEL.TEXT_DECODER.PRETRAINED", tiny_t5, language="t5")
    system = find_system(cfg.MODEL.NAME)
    names = learning(system.model(cfg, (), system.tokenizer(cfg))).get("language", [])
    assert bool(names) == (name == "trace")
    adapted = [name for name in names if "lora_" in name]
    assert len(adapted) == (2 * 2 * 3 if names else 0)
    assert all(".model." not in name for name in names if name not in adapted), "the projection of what is seen"


class Idle(nn.Module):
    """In place of SAM's encoder, whose smallest is large."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.patch, self.out_dim = 16, 256
        self.layer = nn.Linear(1, 1)


def test_recipes_with_layer_decay_give_every_layer_its_rate():
    cfg = recipe("densecap", *SMALL, "MODEL.BACKBONE.DEPTH", "2")
    model = built(cfg)
    groups = build_optimizer(model, cfg.SOLVER, decayed_layers(model, cfg)).param_groups
    rate = {id(parameter): (g["initial_lr"], g["weight_decay"]) for g in groups for parameter in g["params"]}
    body, base = model.encoder.encoders["main"].encoder.body, cfg.SOLVER.BASE_LR
    assert rate[id(body.patch_embed.proj.weight)] == pytest.approx((base * 0.8**3, 0.05))
    assert rate[id(body.blocks[1].norm1.weight)] == pytest.approx((base * 0.8, 0))
    assert rate[id(body.cls_token)] == pytest.approx((base, 0.05))
    assert rate[id(model.language.decoder.words.weight)] == pytest.approx((base, 0.05))


def test_layer_decay_needs_layers():
    cfg = load(PIXELLLM / "pixelllm_shapes.yaml", overrides=("SOLVER.LAYER_DECAY", "0.8"))
    with pytest.raises(UsageError, match="no plain ViT") as caught:
        decayed_layers(built(cfg), cfg)
    assert caught.value.where == "SOLVER.LAYER_DECAY"
    assert decayed_layers(nn.Module(), load(PIXELLLM / "pixelllm_shapes.yaml")) == ()
