"""Every switch between what the published code does and what it meant changes what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from locap.datasets.batches import Batch
from locap.modeling.layers.frozen import rest_frozen
from locap.modeling.pix2cap import Pix2Cap
from locap.modeling.region_encoders.query_decoder import DecodedQueries
from locap.modeling.text_encoders.class_texts import ClassTexts

Build = Callable[..., Pix2Cap]
MakeBatch = Callable[..., Batch]
DECODER, TEXT = "MODEL.DECODER.", "MODEL.TEXT_DECODER."
DEFORM = ("MODEL.ENCODER.NAME", "transformer_encoder_deform")


@torch.no_grad()
def decode(model: Pix2Cap, batch: Batch) -> DecodedQueries:
    table = nn.functional.normalize(torch.randn(13, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    return model.eval().encode(model.images(batch.images), table)[0]


def losses(model: Pix2Cap, batch: Batch) -> dict[str, Tensor]:
    return {name: term.total for name, term in model(batch).items()}


# B3 and X-Decoder's order: the class query's mask


@pytest.mark.parametrize("switch", [("MASK_CLASS_QUERY", "false"), ("CLASS_MASK_AFTER_POOLING", "true")])
def test_the_class_querys_mask_concerns_its_own_row_only(build: Build, make_batch: MakeBatch, switch):
    batch = make_batch([0])
    before, after = (decode(build(*tokens, seed=5), batch) for tokens in ((), (DECODER + switch[0], switch[1])))
    for a, b in zip(before.points, after.points, strict=True):
        for name in ("hidden", "class_logits", "mask_embed", "boxes_cxcywh"):
            assert torch.equal(getattr(a, name)[:, :-1], getattr(b, name)[:, :-1]), name
    assert not torch.allclose(before.points[-1].mask_embed[:, -1], after.points[-1].mask_embed[:, -1])


def test_an_unmasked_class_query_looks_everywhere(build: Build, make_batch: MakeBatch):
    decoder = build(DECODER + "MASK_CLASS_QUERY", "false").decoder
    level = decoder._level(0, torch.randn(1, 32, 4, 4), torch.randn(1, 24, 16, 16))
    states = torch.zeros(1, 7, 32)
    _, _, blocked = decoder._look(states, states, torch.randn(1, 7, 24), level, torch.zeros(1, 24, 16, 16))
    assert not blocked[:, :, -1].any()
    assert blocked[:, :, :-1].any()


def test_x_decoder_reads_every_mask_from_the_state_that_is_classified(build: Build, make_batch: MakeBatch):
    model = build(DECODER + "CLASS_MASK_AFTER_POOLING", "true")
    point = decode(model, make_batch([0])).points[-1]
    torch.testing.assert_close(point.mask_embed, model.decoder.mask_embed(point.hidden))


# B7: losses at a prediction point


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_box_losses_have_a_limit_of_their_own(build: Build, make_batch: MakeBatch, limit: int):
    switches = (
        DECODER + "DETECTION",
        "true",
        DECODER + "TOP_DENSECAPTION_LAYERS",
        "2",
        DECODER + "TOP_MASK_LAYERS",
        "1",
    )
    found = losses(build(*switches, DECODER + "TOP_DETECTION_LAYERS", str(limit)), make_batch([2]))
    assert [name for name in found if "bbox_box" in name] == [f"loss_bbox_box_{i}" for i in range(min(limit, 4))]
    assert [name for name in found if "mask_ce" in name] == ["loss_mask_ce_0"]
    assert [name for name in found if "caption" in name] == ["loss_densecaption_0", "loss_densecaption_1"]


def test_without_deep_supervision_only_the_last_point_learns(build: Build, make_batch: MakeBatch):
    batch = make_batch([2])
    deep = losses(build(aids=True), batch)
    last = losses(build(DECODER + "DEEP_SUPERVISION", "false", aids=True), batch)
    assert {name for name in deep if name.endswith("_0")} | {"loss_semantic", "loss_words"} == set(last)
    for name, total in last.items():
        torch.testing.assert_close(total, deep[name])


# B10: the background's sentences


@pytest.mark.parametrize("templates", [True, False])
def test_the_background_may_stand_alone(templates: bool):
    texts = ClassTexts(["cat"], lambda rows: rows, ("a {}.", "the {}."), background_templates=templates)
    background = ["a background.", "the background."] if templates else ["background."] * 2
    assert texts.sentences(texts.names) == ["a cat.", "the cat.", *background]


def test_the_backgrounds_sentences_change_its_class_only(build: Build):
    clip = ("MODEL.TEXT.PROMPT_TEMPLATES", "clip", "MODEL.TEXT.CONTEXT_LENGTH", "16")
    tables = []
    for alone in ("true", "false"):
        model = build(*clip, "MODEL.TEXT.BACKGROUND_TEMPLATES", alone)
        nn.init.normal_(model.lang_encoder.token_embedding.weight)
        tables.append(model.class_texts.ensemble(model.lang_encoder))
    torch.testing.assert_close(tables[0][:-1], tables[1][:-1])
    assert not torch.allclose(tables[0][-1], tables[1][-1])


# B12: frozen parts


def test_parts_that_are_wholly_frozen_rest():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    model.append(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2)))
    for frozen in (model[0], model[2][0]):
        frozen.requires_grad_(False)
    rest_frozen(model.train())
    assert [part.training for part in (model, *model, model[0][1], model[1][1])] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert [part.training for part in (*model[2], model[2][0][1])] == [False, True, False]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_frozen_parts_draw_nothing_unless_told_to(build: Build, make_batch: MakeBatch, mode: str):
    noisy = ("MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0.9", "MODEL.BACKBONE.FOCAL.DEPTHS", "[1, 1, 3, 1]")
    model, batch = build(DECODER + "FROZEX", "true", "MODEL.FROZEN_MODE", mode, *noisy), make_batch([2, 2])
    for again in (model, model.eval().train()):  # as built, and after an evaluation
        found = set()
        for seed in range(4):
            torch.manual_seed(seed)
            found.add(float(losses(again, batch)["loss_mask_bce_0"].detach()))
        assert len(found) == 1 if mode == "eval" else len(found) > 1
        assert again.captioner.training
        assert again.backbone.training == (mode == "train")


def test_what_is_trained_keeps_its_noise(build: Build, make_batch: MakeBatch):
    model, batch = build(DECODER + "FROZEX", "true", TEXT + "DROPOUT", "0.5"), make_batch([2, 2])
    found = {float(losses(model, batch)["loss_densecaption_0"].detach()) for _ in range(3)}
    assert len(found) == 3


# Beams


@pytest.mark.parametrize(("search", "rollouts"), [((), True), ((TEXT + "BEAM_SEARCH", "beam"), False)])
def test_beams_are_rollouts_unless_told_otherwise(build: Build, search: tuple[str, ...], rollouts: bool):
    model = build(TEXT + "BEAM_SIZE", "3", *search)
    assert (model.search.beam_size, model.search.rollouts) == (3, rollouts)


# Memory for time


@pytest.mark.parametrize("switch", ["MODEL.BACKBONE.FOCAL.USE_CHECKPOINT", "MODEL.TEXT_DECODER.USE_ACT_CHECKPOINT"])
def test_recomputed_activations_change_no_gradient(build: Build, make_batch: MakeBatch, switch: str):
    noisy = ("MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0.3", TEXT + "DROPOUT", "0.3")
    batch, gradients, saved = make_batch([2, 1]), [], []
    for value in ("false", "true"):
        model, sizes = build(switch, value, *noisy).train(), []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            total = sum(losses(model, batch).values())
        total.backward()
        saved.append(sum(sizes))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert saved[1] < 0.95 * saved[0]


# Norms


@pytest.mark.parametrize("decoder", [(), DEFORM], ids=["fpn", "deformable"])
def test_without_norms_the_convolutions_have_biases(build: Build, make_batch: MakeBatch, decoder):
    model = build("MODEL.ENCODER.NORM", "", *decoder).train()
    names = {name for name, _ in model.pixel_decoder.named_parameters()}
    output, lateral = ("output", "lateral") if decoder else ("outputs.res2", "laterals.res2")
    assert {f"{output}.bias", f"{lateral}.bias"} <= names
    assert not {f"{output}.norm.weight", f"{lateral}.norm.weight"} & names
    assert torch.isfinite(sum(losses(model, make_batch([2])).values()))


def test_pre_norm_reaches_queries_and_encoder(build: Build, make_batch: MakeBatch):
    model, batch = build(DECODER + "PRE_NORM", "true").train(), make_batch([2])
    names = {name for name, _ in model.named_parameters()}
    assert names - {name for name, _ in build().named_parameters()} == {
        f"pixel_decoder.encoder_norm.{kind}" for kind in ("weight", "bias")
    }
    sum(losses(model, batch).values()).backward()
    layer = model.decoder.ffn[-1]
    with torch.no_grad():  # pre-norm: the last norm scales what a branch reads, not what it leaves
        x = torch.randn(1, 7, 32)
        torch.testing.assert_close(layer(x), x + layer.linear2(layer.linear1(layer.norm(x)).relu()))
        deform = build(DECODER + "PRE_NORM", "true", *DEFORM)
    assert not deform.pixel_decoder.encoder[0].ffn.pre_norm
