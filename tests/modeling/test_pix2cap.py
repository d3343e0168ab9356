"""The whole system: what trains, what its losses are sums of, and what it predicts."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from locap.datasets.batches import Batch
from locap.datasets.records import decode_mask, record_from_json, record_to_json
from locap.modeling.losses.caption import smoothed_caption_loss
from locap.modeling.losses.criterion import SegmentTargets
from locap.modeling.losses.points import SeededPoints
from locap.modeling.matching.hungarian import Match, assign, best_overlap
from locap.modeling.pix2cap import Pix2Cap
from locap.modeling.region_encoders.query_decoder import DecodedQueries, QueryPrediction
from locap.modeling.text_decoders.captions import write_captions
from locap.utils.errors import UsageError

Build = Callable[..., Pix2Cap]
MakeBatch = Callable[..., Batch]
DEFORM = ("MODEL.ENCODER.NAME", "transformer_encoder_deform")
DAVIT = "MODEL.BACKBONE.DAVIT."
VARIANTS = {
    "published": (),
    "deformable": DEFORM,
    "focal_dw": ("MODEL.BACKBONE.NAME", "focal_dw"),
    "davit": (
        *("MODEL.BACKBONE.NAME", "davit", DAVIT + "DIM_EMBED", "[8, 16, 32, 64]", DAVIT + "DEPTHS", "[1, 1, 1, 1]"),
        *(DAVIT + "NUM_HEADS", "[2, 4, 4, 8]", DAVIT + "NUM_GROUPS", "[2, 4, 4, 8]", DAVIT + "DROP_PATH_RATE", "0"),
    ),
    "timm": ("MODEL.BACKBONE.NAME", "timm:resnet18"),
    "deformable timm": (*DEFORM, "MODEL.BACKBONE.NAME", "timm:resnet18"),
}


def objective(model: Pix2Cap, batch: Batch, **kwargs) -> Tensor:
    counts = model.counts(batch)
    return sum(term.weight * term.total / max(counts[term.counted], 1) for term in model(batch, **kwargs).values())


def totals(model: Pix2Cap, batch: Batch) -> dict[str, Tensor]:
    return {name: term.total.detach() for name, term in model(batch).items()}


# Training


@pytest.mark.fault("D4")
@pytest.mark.parametrize("segments", [[0], [0, 0], [3, 0]], ids=["nothing", "nothing twice", "mixed"])
@pytest.mark.parametrize("aids", [False, True], ids=["published", "aids"])
def test_every_trained_parameter_gets_a_finite_gradient(build: Build, make_batch: MakeBatch, segments, aids):
    model = build(aids=aids).train()
    loss = objective(model, make_batch(segments))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_every_variant_lowers_the_loss(build: Build, make_batch: MakeBatch, variant: str):
    model, batch = build(*VARIANTS[variant]).train(), make_batch([3, 2], [(64, 64), (50, 60)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    before = objective(model, batch)
    before.backward()
    optimizer.step()
    assert objective(model, batch) < before


@pytest.mark.parametrize("aids", [False, True], ids=["published", "aids"])
@pytest.mark.parametrize("variant", ["published", "deformable"])
def test_bfloat16_is_finite_both_ways(build: Build, make_batch: MakeBatch, variant: str, aids: bool):
    model, batch = build(*VARIANTS[variant], aids=aids).train(), make_batch([3, 0])
    exact = objective(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(model, batch)
    loss.backward()
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(model.eval().predict(batch)) == 2


def test_names_and_weights_of_the_losses(build: Build, make_batch: MakeBatch):
    losses = build()(make_batch([2]))
    names = {f"loss_mask_{part}_{layer}" for part in ("ce", "bce", "dice") for layer in range(4)}
    assert set(losses) == names | {"loss_densecaption_0", "loss_densecaption_1"}
    weights = {name.rsplit("_", 1)[0]: (term.weight, term.counted) for name, term in losses.items()}
    assert weights == {
        "loss_mask_ce": (2.0, "class_weights"),
        "loss_mask_bce": (5.0, "segments"),
        "loss_mask_dice": (5.0, "segments"),
        "loss_densecaption": (weights["loss_densecaption"][0], "words"),
    }
    aids = build(aids=True)(make_batch([2]))
    boxes = {f"loss_bbox_{part}_{layer}" for part in ("box", "giou") for layer in range(4)}
    assert set(aids) - set(losses) == boxes | {"loss_semantic", "loss_words"}


@pytest.mark.parametrize(("points", "found"), [(0, 0), (3, 3), (10, 4)])
def test_caption_loss_at_the_last_prediction_points(build: Build, make_batch: MakeBatch, points: int, found: int):
    model = build("MODEL.DECODER.TOP_DENSECAPTION_LAYERS", str(points))
    names = [name for name in model(make_batch([2])) if name.startswith("loss_densecaption")]
    assert names == [f"loss_densecaption_{layer}" for layer in range(found)]
    assert all(p.requires_grad == bool(points) for p in model.captioner.parameters())


@pytest.mark.parametrize("aids", [False, True], ids=["published", "aids"])
def test_losses_of_a_batch_are_sums_over_its_images(build: Build, make_batch: MakeBatch, aids: bool):
    model, batch = build(aids=aids).train(), make_batch([3, 0, 5])
    together = totals(model, batch)
    pieces = [
        Batch([image], [target], [i], [size])
        for image, target, i, size in zip(batch.images, batch.targets, batch.image_ids, batch.output_sizes, strict=True)
    ]
    apart = [totals(model, piece) for piece in pieces]
    for name, total in together.items():
        torch.testing.assert_close(total, sum(piece[name] for piece in apart), rtol=1e-5, atol=1e-5, msg=name)
    counts = [model.counts(piece) for piece in pieces]
    for name, count in model.counts(batch).items():
        assert count == pytest.approx(sum(piece[name] for piece in counts)), name


def test_the_order_of_a_batch_changes_nothing(build: Build, make_batch: MakeBatch):
    model, batch = build().train(), make_batch([3, 4])
    swapped = Batch(batch.images[::-1], batch.targets[::-1], batch.image_ids[::-1], batch.output_sizes[::-1])
    for (name, a), b in zip(totals(model, batch).items(), totals(model, swapped).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


def test_counts_are_what_the_losses_sum_over(build: Build, make_batch: MakeBatch):
    model, batch = build(aids=True), make_batch([3, 2, 0], [(64, 64), (40, 50), (32, 32)])
    counts, objects = model.counts(batch), model.num_objects
    assert counts["segments"] == 5
    assert counts["class_weights"] == pytest.approx(5 + 0.1 * (3 * objects - 5))
    ends = [(row == model.tokenizer.end_id).nonzero() for t in batch.targets for row in t.caption_tokens]
    assert counts["words"] == sum(int(end[0]) for end in ends if len(end))  # the end is learnt, the start is not
    positions = 0.0
    for target in batch.targets:
        cells = target.id_map[2::4, 2::4]
        for label, segment in zip(target.labels.tolist(), target.segment_ids.tolist(), strict=True):
            weight = float(model.auxiliary["semantic"].class_weights[label])
            positions += weight * int((cells == segment).sum())
    assert counts["positions"] == pytest.approx(positions)


def test_more_segments_than_queries(build: Build, make_batch: MakeBatch):
    model, batch = build().train(), make_batch([9])
    objective(model, batch).backward()
    assert model.counts(batch)["class_weights"] == model.num_objects


def masks_of(model: Pix2Cap, point: QueryPrediction, decoded: DecodedQueries, image: int) -> Tensor:
    return torch.einsum("qc,chw->qhw", point.mask_embed[image, : model.num_objects], decoded.mask_features[image])


def match(
    model: Pix2Cap, decoded: DecodedQueries, targets: SegmentTargets, points: SeededPoints, layer: int
) -> list[Match]:
    point = decoded.points[-1 - layer]
    masks = [masks_of(model, point, decoded, image) for image in range(len(targets.maps))]
    return assign(
        model.criterion.match_costs(point.class_logits[:, : model.num_objects], masks, targets, points, layer)
    )


def test_losses_are_numbered_from_the_last_prediction_point(build: Build, make_batch: MakeBatch):
    model, batch = build().eval(), make_batch([3, 2])
    losses = model(batch)
    texts = model.class_texts.sampled(model.lang_encoder, np.random.default_rng(0))
    decoded, _ = model.encode(model.images(batch.images), texts)
    targets = SegmentTargets.from_regions(batch.targets, 64, 64)
    points = SeededPoints([target.seed for target in batch.targets], "cpu")
    for layer, point in enumerate(reversed(decoded.points)):
        matches = match(model, decoded, targets, points, layer)
        ce = model.criterion.class_loss(point.class_logits[:, : model.num_objects], targets, matches)
        bce, dice = model.criterion.mask_losses(point, decoded.mask_features, targets, matches, points, layer)
        for part, expected in (("ce", ce), ("bce", bce), ("dice", dice)):
            torch.testing.assert_close(losses[f"loss_mask_{part}_{layer}"].total, expected)


@pytest.mark.parametrize("rule", ["iou", "hungarian"])
def test_caption_loss_by_hand(build: Build, make_batch: MakeBatch, rule: str):
    """Every caption is read alone, without padding, at the query that overlaps or is matched."""
    model = build("MODEL.DECODER.DENSECAPTION_MATCH", rule).eval()
    batch = make_batch([3, 2])
    losses = model(batch)
    images = model.images(batch.images)
    texts = model.class_texts.sampled(model.lang_encoder, np.random.default_rng(0))
    decoded, _ = model.encode(images, texts)
    targets = SegmentTargets.from_regions(batch.targets, 64, 64)
    points = SeededPoints([target.seed for target in batch.targets], "cpu")
    for layer in range(2):
        prediction = decoded.points[-1 - layer]
        pairs = match(model, decoded, targets, points, layer)
        expected = 0.0
        for image, target in enumerate(batch.targets):
            masks = masks_of(model, prediction, decoded, image)
            queries = best_overlap(masks, targets.shrunk(16, 16)[image]).tolist()
            if rule == "hungarian":
                queries = dict(zip(pairs[image][1].tolist(), pairs[image][0].tolist(), strict=True))
            for segment in range(len(target)):
                words = target.caption_tokens[segment]
                words = words[words != 0][None]
                if not words.numel():
                    continue
                seen = torch.stack((prediction.hidden[image, queries[segment]], decoded.global_feature[image]))
                states = model.captioner(model.region_proj(seen)[None], words[:, :-1])
                expected += smoothed_caption_loss(model.captioner.logits(states[0]), words[0, 1:]).sum()
        torch.testing.assert_close(losses[f"loss_densecaption_{layer}"].total, expected, rtol=1e-5, atol=1e-4)


def test_caption_gradient_is_scaled_before_the_regions_and_not_in_the_captioner(build: Build, make_batch: MakeBatch):
    gradients = {}
    for scale in (1.0, 1 / 3):
        model = build("MODEL.DECODER.CAPTION_GRADIENT_SCALE", str(scale)).train()
        sum(term.total for name, term in model(make_batch([3])).items() if "caption" in name).backward()
        gradients[scale] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in ("region_proj.weight", "region_proj.bias", "decoder.norm.weight", "decoder.query_feat.weight"):
        torch.testing.assert_close(3 * gradients[1 / 3][name], gradients[1.0][name], rtol=1e-4, atol=1e-7)
    for name in ("captioner.words.weight", "captioner.region_proj.0.weight"):
        torch.testing.assert_close(gradients[1 / 3][name], gradients[1.0][name])


def test_the_step_seed_draws_the_class_sentences(build: Build, make_batch: MakeBatch):
    model, batch = build("MODEL.TEXT.PROMPT_TEMPLATES", "clip", "MODEL.TEXT.CONTEXT_LENGTH", "16"), make_batch([2])
    torch.nn.init.normal_(model.lang_encoder.token_embedding.weight)
    losses = [float(model(batch, step_seed=seed)["loss_mask_ce_0"].total.detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


# What is trained


@pytest.mark.parametrize(
    ("frozex", "mask_head", "trained"),
    [
        (False, False, None),
        (False, True, None),
        (True, False, {"captioner", "region_proj", "decoder.classifier"}),
        (
            True,
            True,
            {"captioner", "region_proj", "decoder.classifier", "decoder.cross_attention"}
            | {"decoder.self_attention", "decoder.ffn", "decoder.mask_embed"},
        ),
    ],
)
def test_frozex_and_mask_head(build: Build, make_batch: MakeBatch, frozex: bool, mask_head: bool, trained):
    model = build("MODEL.DECODER.FROZEX", str(frozex), "MODEL.MASK_HEAD_ENABLED", str(mask_head)).train()
    objective(model, make_batch([3])).backward()
    found, frozen = set(), set()
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[: 2 if name.startswith("decoder.") else 1])
        (found if parameter.requires_grad else frozen).add(part)
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert frozen == {"decoder.box_embed"} if trained is None else found == trained
    assert not found & frozen


def test_boxes_train_only_when_nothing_is_frozen(build: Build):
    for frozex in (True, False):
        model = build("MODEL.DECODER.DETECTION", "true", "MODEL.DECODER.FROZEX", str(frozex))
        assert model.criterion.weights.boxes == (not frozex)
        assert all(p.requires_grad == (not frozex) for p in model.decoder.box_embed.parameters())


def test_parts_are_fixed_by_name(build: Build):
    model = build("SOLVER.FIX_PARAM", "{backbone: true, captioner: false}", "SOLVER.IGNORE_FIX", "[norms]")
    for name, parameter in model.named_parameters():
        fixed = name.startswith("backbone") and "norms" not in name
        assert parameter.requires_grad == (not fixed and "box_embed" not in name), name


@pytest.mark.fault("H3")
@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [("MODEL.ENCODER.NUM_CLASSES", "133", "12"), ("MODEL.TEXT_DECODER.VOCAB_SIZE", "9", r"\d+")],
)
def test_a_model_that_does_not_fit_its_data_is_refused(build: Build, key: str, value: str, wanted: str):
    with pytest.raises(UsageError, match="does not fit its data") as caught:
        build(key, value)
    assert caught.value.where == key
    assert re.fullmatch(f"--overrides {key} {wanted}", caught.value.fix)


# Prediction


def see_everything(model: Pix2Cap) -> Pix2Cap:
    """Let untrained queries become segments: spread the class texts and lower the thresholds."""
    table = F.normalize(torch.randn(13, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    model.class_texts.ensemble = lambda encoder: table
    model.thresholds = replace(model.thresholds, score=0.0, overlap=0.0)
    return model.eval()


def decide(model: Pix2Cap, labels: list[int]) -> Pix2Cap:
    """Let query i be sure of a class and of the i-th of equal columns; 12 is "no object"."""
    count = len(labels)
    hidden = torch.randn(1, count, 32, generator=torch.Generator().manual_seed(0))
    logits = 20 * F.one_hot(torch.tensor([labels]), 13).float()
    columns = F.one_hot(torch.arange(16) * count // 16, count).t()[None, :, None].expand(-1, -1, 16, -1) * 20.0 - 10
    point = QueryPrediction(hidden, logits, torch.eye(count)[None], torch.zeros(1, count, 4))
    decoded = DecodedQueries([point], columns, torch.zeros(1, 32))
    model.encode = lambda images, texts: (decoded, {"res2": torch.zeros(1, 8, 16, 16)})
    for name, parameter in (*model.captioner.named_parameters(), *model.region_proj.named_parameters()):
        if "norm" not in name:  # an untrained captioner says the same about everything
            torch.nn.init.normal_(parameter, std=0.7)
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_records_at_the_output_size(build: Build, make_batch: MakeBatch, variant: str):
    model = see_everything(build(*VARIANTS[variant]))
    batch = make_batch([0, 0], [(64, 64), (50, 70)])
    batch.output_sizes[1] = (100, 140)
    records = model.predict(batch)
    assert [(record.image_id, record.height, record.width) for record in records] == [(0, 64, 64), (1, 100, 140)]
    regions = [region for record in records for region in record.regions]
    assert regions
    for record in records:
        assert sorted({int(i) for i in set(record.id_map.flatten())} - {0}) == [region.id for region in record.regions]
        for region in record.regions:
            mask = record.id_map == region.id
            assert region.area == mask.sum()
            x0, y0, x1, y1 = (int(side) for side in region.box_xyxy)
            assert mask[y0:y1, x0:x1].sum() == region.area
            assert 0 < region.score <= 1


def test_captions_belong_to_their_segments(build: Build, make_batch: MakeBatch):
    """Describing an image alone gives what describing it among others gives."""
    model = see_everything(build())
    batch = make_batch([0, 0, 0])
    together = model.predict(batch)
    for index in range(3):
        [alone] = model.predict(Batch([batch.images[index]], [], [index], [(64, 64)]))
        assert [region.captions for region in alone.regions] == [region.captions for region in together[index].regions]
        assert (alone.id_map == together[index].id_map).all()


@pytest.mark.parametrize("joint", [False, True])
def test_images_of_several_sizes_are_answered_in_their_order(build: Build, make_batch: MakeBatch, joint: bool):
    sizes = [(64, 64), (70, 60), (50, 60), (96, 64), (64, 128)]
    model = see_everything(build("MODEL.DECODER.TEST.JOINT_PADDING", str(joint)))
    batch = make_batch([0] * 5, sizes)
    together, found = model.predict(batch), model.segment(batch)
    assert [(record.image_id, record.height, record.width) for record in together] == [
        (k, *size) for k, size in enumerate(sizes)
    ]
    alone = [model.predict(batch.select([k]))[0] for k in range(5)]
    same = [bool((one.id_map == other.id_map).all()) for one, other in zip(alone, together, strict=True)]
    assert all(same) != joint
    assert [len(s.queries) for s in found] == [len(record.regions) for record in together]


@pytest.mark.parametrize("taken", [True, False])
def test_the_class_query_takes_part_without_a_caption_unless_told_not_to(build: Build, make_batch: MakeBatch, taken):
    model = decide(build("MODEL.DECODER.CLASS_QUERY_IN_PANOPTIC", str(taken)), [12, 0, 12, 3, 12, 12, 5])
    [record] = model.predict(make_batch([0]))
    categories = [model.categories[label].id for label in (0, 3, 5)]
    assert [region.category_id for region in record.regions] == categories[: 3 if taken else 2]
    assert [len(region.captions) for region in record.regions] == [1, 1, 0][: 3 if taken else 2]
    assert [region.caption_score is None for region in record.regions] == [False, False, True][: 3 if taken else 2]
    assert [region.box_xyxy[0] for region in record.regions] == pytest.approx([10, 28, 55][: 3 if taken else 2], abs=2)


@pytest.mark.parametrize("boxes", [False, True])
def test_every_mode_fills_its_part_of_the_record(build: Build, make_batch: MakeBatch, boxes: bool):
    switches = [f"MODEL.DECODER.TEST.{mode}_ON" for mode in ("SEMANTIC", "INSTANCE", "PANOPTIC")]
    modes = [token for key in switches for token in (key, "true")]
    model = decide(build(*modes, "MODEL.DECODER.DETECTION", str(boxes)), [0, 12, 2, 12, 12, 4, 5])
    batch = make_batch([0], [(64, 64)])
    batch.output_sizes = [(32, 48)]
    [record], [found] = model.predict(batch), model.segment(batch)
    captions = {region.category_id: region.captions for region in record.regions}
    assert len(record.regions) == 4
    assert [region.id for region in record.instances] == list(range(1, len(record.instances) + 1))
    for region, query, label in zip(record.instances, found.instances.queries, found.instances.labels, strict=True):
        assert model.categories[label].is_thing
        assert region.category_id == model.categories[label].id
        assert region.captions == () if query == 6 else len(region.captions) == 1
        assert (region.box_xyxy is not None) == boxes
        assert decode_mask(region.mask).shape == (32, 48)
    best = {region.category_id: region for region in reversed(record.instances)}
    assert all(best[model.categories[k].id].captions == captions[model.categories[k].id] for k in (0, 2, 4))
    assert sum(decode_mask(region.mask).astype(int) for region in record.semantic).tolist() == [[1] * 48] * 32
    assert found.semantic.shape == (12, 32, 48)
    assert record_from_json(record_to_json(record)).instances == record.instances


def test_a_query_is_described_once(build: Build, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch):
    model = decide(build("MODEL.DECODER.TEST.INSTANCE_ON", "true"), [0, 12, 2, 12, 12, 4, 12])
    described = []
    read = model.region_tokens.forward
    monkeypatch.setattr(
        model.region_tokens, "forward", lambda h, g, q, *rest: described.append(q) or read(h, g, q, *rest)
    )
    [record] = model.predict(make_batch([0]))
    [queries] = described
    assert len(set(queries.tolist())) == len(queries) == model.num_objects < len(record.instances)


@pytest.mark.parametrize("mode", ["SEMANTIC", "INSTANCE"])
def test_one_mode_alone(build: Build, make_batch: MakeBatch, mode: str):
    switches = ("MODEL.DECODER.TEST.PANOPTIC_ON", "false", f"MODEL.DECODER.TEST.{mode}_ON", "true")
    [record] = see_everything(build(*switches)).predict(make_batch([0]))
    assert (record.id_map, record.regions) == (None, [])
    assert (record.semantic is None, record.instances is None) == (mode == "INSTANCE", mode == "SEMANTIC")
    with pytest.raises(UsageError, match="all false"):
        build("MODEL.DECODER.TEST.PANOPTIC_ON", "false")


def test_captions_are_those_of_their_queries(build: Build, make_batch: MakeBatch):
    model = decide(build(), [0, 12, 2, 12, 12, 4, 12])
    [record] = model.predict(make_batch([0]))
    decoded, _ = model.encode(None, None)
    for region, query in zip(record.regions, (0, 2, 5), strict=True):
        seen = torch.stack((decoded.points[-1].hidden[0, query], decoded.global_feature[0]))
        [(caption, score)] = write_captions(
            model.captioner, model.region_proj(seen)[None], model.tokenizer, model.search
        )
        assert region.captions == (caption,)
        assert region.caption_score == pytest.approx(score, abs=1e-5)
    assert len({region.captions for region in record.regions}) > 1


def test_captions_are_the_same_however_they_are_made(build: Build, make_batch: MakeBatch):
    found = {}
    for queries, cache in itertools.product(("kept", "all"), (True, False)):
        keys = ("MODEL.TEXT_DECODER.CAPTION_QUERIES", queries, "MODEL.TEXT_DECODER.USE_CACHE", str(cache))
        model = decide(build(*keys), [0, 12, 2, 12, 12, 4, 12])
        read = []
        model.captioner.register_forward_hook(lambda module, inputs, output, read=read: read.append(len(output)))
        [record] = model.predict(make_batch([0]))
        found[queries, cache] = [region.captions for region in record.regions]
        assert len(found[queries, cache]) == 3
        assert read[:1] == ([] if cache else [6 if queries == "all" else 3])  # the cache needs no whole sequence
    assert len({str(texts) for texts in found.values()}) == 1
    assert len(set(found["kept", True])) > 1


def test_nothing_found_is_an_empty_record(build: Build, make_batch: MakeBatch):
    model = build().eval()
    model.thresholds = replace(model.thresholds, score=0.999999)
    [record] = model.predict(make_batch([0]))
    assert record.regions == []
    assert not record.id_map.any()
    assert record.id_map.dtype == "int32"


def test_class_texts_follow_the_weights(build: Build, make_batch: MakeBatch):
    model = build().eval()
    first = model.class_texts.ensemble(model.lang_encoder)
    assert model.class_texts.ensemble(model.lang_encoder) is first
    state = copy.deepcopy(model.state_dict())
    state["lang_encoder.projection"] *= -1
    model.load_state_dict(state)
    torch.testing.assert_close(model.class_texts.ensemble(model.lang_encoder), -first)
    model.lang_encoder.projection.data.mul_(-1)  # unseen by PyTorch's own records
    model.train().eval()
    torch.testing.assert_close(model.class_texts.ensemble(model.lang_encoder), first)


def test_dropout_is_off_in_evaluation(build: Build, make_batch: MakeBatch):
    model = see_everything(build("MODEL.TEXT_DECODER.DROPOUT", "0.5"))
    batch = make_batch([0])
    assert [r.captions for r in model.predict(batch)[0].regions] == [
        r.captions for r in model.predict(batch)[0].regions
    ]
