"""PixelLLM whole: what trains, what its losses are sums of, and what it answers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config

from locap.datasets.batches import Batch, PromptTargets
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.records import Record
from locap.modeling.backbones.sam_vit import SIZES
from locap.modeling.pixelllm import PixelLLM
from locap.utils.errors import UsageError
from locap.utils.tokenizers import LanguageTokenizer

FEATURES, DETECTOR, TEXT = "MODEL.PROMPT_FEATURES.", "MODEL.DETECTOR.", "MODEL.TEXT_DECODER."
MIXTURE = ("trace", "region", "refer", "detect", "", "refer", "caption", "instruct")
BATCHES = {"mixed": MIXTURE, **{task: (task,) for task in MIXTURE if task}, "no prompts": ("", ""), "blank": None}
BUILDS = {
    "published": {},
    "aids": {"aids": True},
    "grid of boxes only": {"aids": True, "overrides": (FEATURES + "WHOLE_GRID", "0")},
    "grid of images only": {"aids": True, "overrides": (FEATURES + "GRID", "0")},
    "recomputed": {"overrides": (TEXT + "RECOMPUTE", "true")},
    "published prompts": {"overrides": (FEATURES + "PUBLISHED_PROMPTS", "true")},
}


@pytest.fixture(scope="module")
def drawn(tiny_pixelllm: ModuleType):
    return tiny_pixelllm.Drawn()


def build(tiny: ModuleType, *overrides: str, **options) -> PixelLLM:
    return tiny.build(*options.pop("overrides", ()), *overrides, **options)


def objective(model: PixelLLM, batch: Batch) -> Tensor:
    counts = model.counts(batch)
    return sum(term.weight * term.total / max(counts[term.counted], 1) for term in model(batch).values())


def totals(model: PixelLLM, batch: Batch) -> dict[str, Tensor]:
    return {name: term.total.detach() for name, term in model(batch).items()}


def answers(model: PixelLLM, batch: Batch) -> list[Record]:
    return model.eval().predict(batch)


# Training


@pytest.mark.fault("D4")
@pytest.mark.parametrize("kind", BUILDS)
def test_every_trained_parameter_gets_a_finite_gradient_from_any_batch(tiny_pixelllm, drawn, kind: str):
    """Processes wait for each other's gradients, whatever their images teach."""
    model = build(tiny_pixelllm, **BUILDS[kind])
    for name, tasks in BATCHES.items():
        model.zero_grad()
        loss = objective(model, Batch.blank(kind=PromptTargets) if tasks is None else drawn.lessons(*tasks))
        loss.backward()
        trained = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
        assert [key for key, grad in trained.items() if grad is None] == [], name
        assert all(torch.isfinite(grad).all() for grad in trained.values()), name
        assert bool(loss > 0) == bool(tasks and any(tasks)), name
        if not loss:
            assert not any(grad.any() for grad in trained.values()), name


@pytest.mark.parametrize("kind", ["published", "aids"])
def test_losses_of_a_batch_are_sums_over_its_images(tiny_pixelllm, drawn, kind: str):
    model, batch = build(tiny_pixelllm, **BUILDS[kind]), drawn.lessons(*MIXTURE, max_prompts=4)
    together, apart = totals(model, batch), [totals(model, piece) for piece in tiny_pixelllm.split(batch)]
    for name, total in together.items():
        torch.testing.assert_close(total, sum(part[name] for part in apart), rtol=1e-5, atol=1e-5, msg=name)
    counts = [model.counts(piece) for piece in tiny_pixelllm.split(batch)]
    for name, count in model.counts(batch).items():
        assert count == pytest.approx(sum(part[name] for part in counts)), name
    turned = Batch(*(getattr(batch, field.name)[::-1] for field in fields(batch)))
    for name, total in totals(model, turned).items():
        torch.testing.assert_close(total, together[name], rtol=1e-5, atol=1e-5, msg=name)


def test_counts_are_what_the_losses_sum_over(tiny_pixelllm, drawn):
    batch = drawn.lessons("refer", "trace", "detect", "")
    refer, trace, detect, _ = batch.targets
    model = tiny_pixelllm.build()
    counts, end = model.counts(batch), model.tokenizer.end_id
    lengths = [int((row == end).nonzero()[0]) for target in (trace, detect) for row in target.text]
    assert counts["words"] == sum(lengths)  # the end is learnt, the beginning is given
    assert counts["traced"] == trace.word_boxes.any(-1).sum()
    assert counts["boxes"] == counts["masks"] == len(refer)
    assert counts["pictures"] == 4
    assert (counts["detecting"], counts["peaks"] >= len(detect)) == (1, True)
    names = {term.counted for term in model(batch).values()}
    assert names <= set(counts)


def test_rows_that_teach_nothing_change_nothing(tiny_pixelllm, drawn):
    batch, model = drawn.lessons("region", "refer"), tiny_pixelllm.build()
    target = batch.targets[0]
    silent = replace(target, learns=torch.zeros_like(target.learns))
    batch.targets[0] = silent
    for name, total in totals(model, batch).items():
        torch.testing.assert_close(total, totals(model, tiny_pixelllm.split(batch)[1])[name], msg=name)
    assert totals(model, tiny_pixelllm.split(batch)[0])["loss_text"] == 0


def test_padding_of_texts_contexts_and_prompts_changes_nothing(tiny_pixelllm, drawn):
    batch, model = drawn.lessons("region", "refer", "trace"), tiny_pixelllm.build()
    before = totals(model, batch)
    grown = [
        replace(
            target,
            text=nn.functional.pad(target.text, (0, 5)),
            context=nn.functional.pad(target.context, (0, 3)),
            word_boxes=nn.functional.pad(target.word_boxes, (0, 0, 0, 5)),
        )
        for target in batch.targets
    ]
    after = totals(model, replace(batch, targets=grown))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5, msg=name)


def test_bfloat16_is_finite_both_ways(tiny_pixelllm, drawn):
    model, batch = tiny_pixelllm.build(aids=True), drawn.lessons(*MIXTURE)
    exact = objective(model, batch).detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(model, batch)
    loss.backward()
    torch.testing.assert_close(loss.detach().float(), exact, rtol=0.05, atol=0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(answers(model, drawn.questions("refer", "detect", "trace"))) == 3


@pytest.mark.parametrize("aids", [False, True], ids=["published", "aids"])
def test_what_stays_on_the_host_meets_nothing_of_the_device(tiny_pixelllm, drawn, monkeypatch, aids: bool):
    """Tensors without values stand for those of a GPU; the detector's choices need values."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = tiny_pixelllm.build(DETECTOR + "ENABLED", "false", aids=aids).to("meta")
    with fx_config.patch(meta_nonzero_assume_all_nonzero=True):
        losses = model(drawn.lessons("trace", "region", "refer", "detect", "").to("meta"))
    assert {term.total.device.type for term in losses.values()} == {"meta"}
    sum(term.total for term in losses.values()).backward()


def test_it_learns_words_places_boxes_and_masks_of_a_few_scenes(tiny_pixelllm, drawn):
    """Not to perfection, which takes longer: each of its losses falls by its own signal."""
    model = tiny_pixelllm.build(TEXT + "INIT_STD", "0.1", DETECTOR + "ENABLED", "false")
    batch = drawn.lessons("trace", "refer", "region")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    means = []
    for _ in range(40):
        counts, terms = model.counts(batch), model(batch)
        means.append({name: float(term.total.detach()) / counts[term.counted] for name, term in terms.items()})
        optimizer.zero_grad()
        objective_of = sum(term.weight * term.total / counts[term.counted] for term in terms.values())
        objective_of.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    falls = {name: means[-1][name] / first for name, first in means[0].items()}
    assert falls["loss_text"] < 0.6, falls
    assert falls["loss_trace"] < 0.5, falls
    assert falls["loss_box"] < 0.5, falls
    assert falls["loss_mask"] < 0.8, falls


# Frozen parts


@pytest.fixture
def published_keys(monkeypatch, tmp_path) -> list[str]:
    """EVA-02 beside a frozen SAM, T5 with low-rank matrices from a folder: the published frame at a tiny size."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces = [word for word in (FOLDER / "vocab.txt").read_text().split() if word.isalnum() and len(word) > 1]
    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz.,?"]
    tokens = [*special, *(("▁" + word, -1.0) for word in pieces), *letters]
    T5Tokenizer(vocab=tokens, extra_ids=0).save_pretrained(tmp_path)
    sizes = {"vocab_size": 142, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj="gated-gelu")).save_pretrained(tmp_path)
    monkeypatch.setitem(SIZES, "base", (16, 4, 2))
    keys = "BACKBONE.NAME timm:eva02_large_patch14_224.mim_m38m BACKBONE.DIM 32 BACKBONE.DEPTH 1 BACKBONE.HEADS 2"
    keys += " SAM.SIZE base PROMPT_FEATURES.PROMPT_DIM 256 MASK_HEAD.FROZEN true TEXT_DECODER.NAME t5"
    keys += f" TEXT_DECODER.PRETRAINED {tmp_path} TEXT_DECODER.TOKENIZER {tmp_path} TEXT_DECODER.LORA.RANK 2"
    return [f"MODEL.{word}" if k % 2 == 0 else word for k, word in enumerate(keys.split())]


@pytest.fixture
def published_tiny(tiny_pixelllm, published_keys, tmp_path) -> tuple[PixelLLM, LanguageTokenizer]:
    return tiny_pixelllm.build(*published_keys), LanguageTokenizer.from_pretrained(tmp_path, 64)


def test_frozen_parts_rest_and_get_no_gradient(tiny_pixelllm, published_tiny):
    model, words = published_tiny
    batch = tiny_pixelllm.Drawn(words).lessons("trace", "region", "refer", "detect", "")
    objective(model, batch).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(p.grad is None for name, p in model.named_parameters() if name in frozen)
    assert [n for n, p in model.named_parameters() if n not in frozen and p.grad is None] == []
    for part in ("encoder.encoders.sam.", "location_prompts.", "masks.", "language.model.shared"):
        assert any(name.startswith(part) for name in frozen), part
        assert not any(
            name.startswith(part) and "lora" not in name for name, p in model.named_parameters() if p.grad is not None
        )
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"encoder", "prompt_features", "language", "places", "detector", "mask_adapter"}
    assert any("lora_A" in name for name, p in model.named_parameters() if p.requires_grad)
    sam, masks = model.encoder.encoders["sam"].encoder, model.masks
    assert not any(part.training for frame in (sam, masks, model.location_prompts) for part in frame.modules())
    assert model.encoder.encoders["main"].training


def test_frozen_features_are_the_same_in_training_and_evaluation(tiny_pixelllm, published_tiny):
    model, words = published_tiny
    images = tiny_pixelllm.Drawn(words).lessons("trace", "refer").images
    with torch.no_grad():
        training = model.train().encode(images)["sam"]
        assert torch.equal(training, model.train().encode(images)["sam"])
        assert torch.equal(training, model.eval().encode(images)["sam"])


def test_t5_answers(tiny_pixelllm, published_tiny):
    model, words = published_tiny
    asked = tiny_pixelllm.Drawn(words, size=(48, 80)).questions("trace", "region", "refer", "detect", "caption")
    trace, region, refer, detect, caption = answers(model, asked)
    assert len(region.regions) == len(asked.targets[1]) == sum(bool(r.captions) for r in region.regions)
    assert refer.regions[0].mask["size"] == [48, 80]
    assert len(trace.narratives) == len(asked.targets[0]) > 0
    assert len(detect.regions) <= 4
    assert len(caption.captions) == len(asked.targets[4])
    apart = [answers(model, piece)[0] for piece in tiny_pixelllm.split(asked)]
    together = (trace, region, refer, detect, caption)
    assert [said(record) for record in apart] == [said(record) for record in together]


def said(record: Record) -> list:
    return [[r.captions for r in record.regions], [n.caption for n in record.narratives], record.captions]


def test_a_frozen_name_is_frozen(tiny_pixelllm, drawn):
    model = tiny_pixelllm.build("SOLVER.FIX_PARAM", "{places: true, encoder.: true}")
    objective(model, drawn.lessons("trace")).backward()
    found = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None and "mask_mlps" not in name}
    assert found == {"places", "encoder"}


# Building


@pytest.mark.fault("H3")
def test_a_vocabulary_of_another_size_is_told(tiny_pixelllm):
    with pytest.raises(UsageError, match="vocabulary") as caught:
        tiny_pixelllm.build(TEXT + "VOCAB_SIZE", "99")
    assert caught.value.fix.endswith("VOCAB_SIZE 143")


def test_words_that_a_language_model_lacks_are_told(tiny_pixelllm, published_keys):
    with pytest.raises(UsageError, match="does not know all words") as caught:
        tiny_pixelllm.build(*published_keys, TEXT + "TOKENIZER", "shapes")
    assert caught.value.allowed.startswith("at most 142")


def test_what_is_to_be_found_needs_a_detector(tiny_pixelllm):
    keys = ("DATASETS.TEST", "[region:shapes_val, detect:shapes_val]", DETECTOR + "ENABLED")
    with pytest.raises(UsageError, match="detect:shapes_val"):
        tiny_pixelllm.build(*keys, "false")
    assert tiny_pixelllm.build(*keys, "true").detector is not None


def test_parts_that_are_switched_off_are_not_there(tiny_pixelllm, drawn):
    model = tiny_pixelllm.build("MODEL.MASKS", "false", DETECTOR + "ENABLED", "false")
    assert (model.masks, model.mask_adapter, model.detector) == (None,) * 3
    losses = model(drawn.lessons("refer", "detect"))
    assert set(losses) == {"loss_text", "loss_trace", "loss_box"}
    assert set(model.counts(drawn.lessons("refer"))) >= {term.counted for term in losses.values()}
    (record,) = answers(model, drawn.questions("refer"))
    assert all(region.mask is None and region.box_xyxy for region in record.regions)


def test_weights_are_the_configured_ones(tiny_pixelllm, drawn):
    keys = {"TEXT": 2, "TRACE": 3, "BOX": 4, "GIOU": 5, "MASK": 6, "QUALITY": 7, "DETECTION": 0.5, "WORDS": 8}
    names = [word for name, weight in keys.items() for word in (f"MODEL.LOSS.{name}", str(weight))]
    found = {name: term.weight for name, term in tiny_pixelllm.build(*names)(drawn.lessons("refer")).items()}
    detector = {"loss_heat": 0.25, "loss_reach": 0.5, "loss_objects": 0.5, "loss_deltas": 0.5}
    others = {"loss_text": 2, "loss_trace": 3, "loss_box": 4, "loss_giou": 5, "loss_mask": 6, "loss_quality": 7}
    assert found == {**detector, **others, "loss_words": 8}


def test_the_system_stays_short():
    path = Path(__file__).resolve().parents[2] / "modeling" / "pixelllm.py"
    assert len(path.read_text().splitlines()) <= 300
