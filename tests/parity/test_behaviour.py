"""How Pix2Cap must behave, on a tiny model: what `ELSEWHERE` lists is tested beside its part, the rest is here."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from locap.datasets.batches import Batch
from locap.modeling.build_pix2cap import build_tokenizer
from locap.modeling.pix2cap import Pix2Cap
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.text_decoders.captions import write_captions
from locap.utils.config import load_config
from locap.utils.config_keys import index_keys
from locap.utils.schema import Config

Build = Callable[..., Pix2Cap]
MakeBatch = Callable[..., Batch]
TESTS = Path(__file__).resolve().parents[1]
CONFIGS = TESTS.parent / "configs"
PUBLISHED = CONFIGS / "pix2cap_panoptic_segmentation_captioning.yaml"
QUERIES, CAPTIONER, PIX2CAP = "modeling/test_query_decoder.py", "modeling/test_captioner.py", "modeling/test_pix2cap.py"
LOSSES, PANOPTIC, MODES = "modeling/test_losses.py", "modeling/test_panoptic.py", "modeling/test_segmentation.py"
DEFORM = "ops/test_ms_deform_attn.py"
ELSEWHERE = {
    "objects do not see the class query": (QUERIES, "test_objects_never_see_the_class_query"),
    "the class query sees only itself": (QUERIES, "test_the_class_query_sees_only_itself_and_objects_see_one_another"),
    "a query with an empty mask looks everywhere": (QUERIES, "test_a_query_with_an_empty_mask_looks_everywhere"),
    "cached greedy search is exact": (CAPTIONER, "test_cached_greedy_equals_reading_everything_again"),
    "regions are described independently": (CAPTIONER, "test_a_text_does_not_depend_on_the_other_regions"),
    "no immediate repetition, at most 39 words": (CAPTIONER, "test_no_word_twice_in_a_row_and_no_text_too_long"),
    "the first word may be any": (CAPTIONER, "test_the_first_word_may_repeat_the_start"),
    "a beam is the best of k roll-outs": (CAPTIONER, "test_rollouts_are_the_best_of_k_greedy_texts"),
    "a third of the caption gradient": (
        PIX2CAP,
        "test_caption_gradient_is_scaled_before_the_regions_and_not_in_the_captioner",
    ),
    "FROZEX and MASK_HEAD_ENABLED": (PIX2CAP, "test_frozex_and_mask_head"),
    "the caption loss is a divergence": (LOSSES, "test_caption_loss_is_the_divergence_from_the_smoothed_target"),
    "padding and start are no targets": (PIX2CAP, "test_caption_loss_by_hand"),
    "the class loss is a weighted mean": (LOSSES, "test_class_loss_over_its_count_is_a_weighted_mean"),
    "mask losses are divided by segments": (LOSSES, "test_mask_losses_are_sums_over_masks_of_means_over_points"),
    "panoptic scores must exceed": (PANOPTIC, "test_score_must_exceed_the_threshold_and_no_object_is_left_out"),
    "panoptic overlap": (PANOPTIC, "test_visible_share_is_strict"),
    "stuff merges": (PANOPTIC, "test_stuff_of_one_class_merges_into_the_first_and_things_do_not"),
    "nothing found": (PIX2CAP, "test_nothing_found_is_an_empty_record"),
    "a class query that survives": (PIX2CAP, "test_the_class_query_takes_part_without_a_caption_unless_told_not_to"),
    "instances": (MODES, "test_instances_are_the_best_pairs_of_query_and_class"),
    "semantic scores": (MODES, "test_semantic_scores_sum_over_all_queries"),
    "batches without segments": (PIX2CAP, "test_every_trained_parameter_gets_a_finite_gradient"),
    "deformable attention by hand": (DEFORM, "test_equals_a_loop_over_pixels"),
    "its three gradients": (DEFORM, "test_derivatives_of_values_locations_and_weights"),
    "its precision": (
        "modeling/test_pixel_decoders.py",
        "test_published_deformable_decoder_stays_in_float32_under_autocast",
    ),
    "odd sizes": ("modeling/test_backbones.py", "test_odd_sizes_are_halved_upwards"),
    "the output size": (PIX2CAP, "test_records_at_the_output_size"),
    "every mode": (PIX2CAP, "test_every_mode_fills_its_part_of_the_record"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_tested_beside_its_part(what: str):
    file, name = ELSEWHERE[what]
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_nothing_of_x_decoders_captioning_is_left(build: Build):
    """Its 77 caption queries are parameters of published files without an effect; here they do not exist."""
    names = [name for name, _ in (*build().named_parameters(), *build().named_buffers())]
    assert not [name for name in names if "caping" in name or "self_attn_mask" in name]


def test_a_text_has_at_most_39_words_after_the_start(build: Build):
    model = build("MODEL.TEXT_DECODER.MAX_STEPS", "40").eval()
    with torch.no_grad():
        model.captioner.output.bias[model.tokenizer.end_id] = -1e4
    model.tokenizer.decode = len
    [(words, _)] = write_captions(model.captioner, torch.randn(1, 2, 16), model.tokenizer, model.search)
    assert words == 39


@pytest.mark.parametrize("frozen", [True, False])
def test_the_caption_loss_passes_a_frozen_norm_by(build: Build, make_batch: MakeBatch, frozen: bool):
    model = build("MODEL.DECODER.FROZEX", str(frozen), "MODEL.MASK_HEAD_ENABLED", "true")
    sum(term.total for name, term in model(make_batch([3])).items() if "caption" in name).backward()
    assert (model.decoder.norm.weight.grad is None) == frozen
    for trained in (model.region_proj.weight, model.decoder.cross_attention[0].attn.in_proj_weight):
        assert trained.grad.abs().sum() > 0
    for part in (model.decoder.classifier.class_embed, *model.decoder.mask_embed.parameters()):
        assert part.grad is None or not part.grad.any()


def test_the_published_recipe_trains_106_million_weights():
    """Counted from the parts it trains, without building the rest."""
    from locap.modeling import build_pix2cap as builder

    cfg = load_config([PUBLISHED], ["MODEL.MASK_HEAD_ENABLED", "true"], model_schemas=MODEL_SCHEMAS).MODEL
    with torch.device("meta"):
        decoder, captioner = builder._query_decoder(cfg), builder._captioner(cfg.TEXT_DECODER)
        region_proj = torch.nn.Linear(cfg.DECODER.HIDDEN_DIM, cfg.TEXT_DECODER.OBJECT_FEATURE_SIZE)
    parts = {"captioner.": captioner, "region_proj.": region_proj, "decoder.": decoder}
    sizes = {prefix + name: p.numel() for prefix, part in parts.items() for name, p in part.named_parameters()}
    trained = builder.FROZEX_TRAINED + builder.MASK_HEAD_TRAINED
    assert sum(size for name, size in sizes.items() if name.startswith(trained)) == 106_003_258


@pytest.mark.parametrize(("points", "found"), [(3, 3), (9, 9), (10, 10)])
def test_losses_of_the_published_recipe(build: Build, make_batch: MakeBatch, points: int, found: int):
    model = build("MODEL.DECODER.DEC_LAYERS", "10", "MODEL.DECODER.TOP_DENSECAPTION_LAYERS", str(points))
    masks = {f"loss_mask_{part}_{layer}" for part in ("ce", "bce", "dice") for layer in range(10)}
    assert set(model(make_batch([1]))) == masks | {f"loss_densecaption_{layer}" for layer in range(found)}


def test_long_captions_keep_word_pieces_3_to_40():
    cfg = load_config([PUBLISHED], ["MODEL.TEXT_DECODER.TOKENIZER", "shapes"], model_schemas=MODEL_SCHEMAS)
    tokenizer = build_tokenizer(cfg)
    text = " ".join(["circle", "square", *["red", "blue"] * 18, "small", "large", *["green"] * 10])
    pieces = [tokenizer.encode(word)[1] for word in text.split()]
    assert len(pieces) == 50
    assert tokenizer.encode(text) == [tokenizer.start_id, *pieces[2:40], tokenizer.end_id]


@pytest.mark.parametrize("size", [(100, 130), (33, 64)])
@pytest.mark.parametrize("divisor", ["32", "1"])
def test_maps_come_back_at_the_size_asked_for(build: Build, make_batch: MakeBatch, size: tuple[int, int], divisor: str):
    modes = [token for mode in ("SEMANTIC", "INSTANCE") for token in (f"MODEL.DECODER.TEST.{mode}_ON", "true")]
    model = build("MODEL.DECODER.SIZE_DIVISIBILITY", divisor, *modes).eval()
    batch = Batch([torch.zeros(3, *size, dtype=torch.uint8)], [], ["image"], [(41, 29)])
    [record], [found] = model.predict(batch), model.segment(batch)
    assert record.id_map.shape == (41, 29) == (record.height, record.width)
    assert found.semantic.shape == (12, 41, 29)
    assert found.instances.masks.shape[1:] == (41, 29)


def table_of_switches() -> list[tuple[str, str]]:
    """Return the keys and defaults that configs/README.md states."""
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    return re.findall(r"`((?:MODEL|SOLVER)\.[A-Z_.]+)`(?:: \*\*([^*]+)\*\*)?", text)


def test_the_table_of_switches_states_keys_and_defaults_that_exist():
    schema = index_keys(Config, replace={"MODEL": MODEL_SCHEMAS["pix2cap_model"]})
    stated = table_of_switches()
    assert len(stated) > 15
    for name, default in stated:
        assert name in schema, name
        value = schema[name].default
        shown = {True: "true", False: "false"}.get(value, "1/3" if value == 1 / 3 else str(value))
        assert default in ("", shown), name


def test_the_table_names_every_slip_once():
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (B\d+) \|", text, re.MULTILINE) == [f"B{number}" for number in range(1, 21)]
