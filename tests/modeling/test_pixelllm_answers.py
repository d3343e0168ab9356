"""What PixelLLM answers, task by task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from locap.datasets.batches import BOX_START, IMAGE_POINT, NO_POINT, Batch, PromptTargets
from locap.datasets.records import Record, decode_mask, record_from_json, record_to_json
from locap.modeling.heads.word_locations import points_to_boxes
from locap.modeling.llm.adapter import write_texts
from locap.modeling.pixelllm import PixelLLM
from locap.modeling.region_encoders.prompt_rows import PromptRows, group_prompts

DETECTOR, TEXT = "MODEL.DETECTOR.", "MODEL.TEXT_DECODER."


def answers(model: PixelLLM, batch: Batch) -> list[Record]:
    return model.eval().predict(batch)


def texts(record: Record) -> list:
    said = [region.captions for region in record.regions]
    return [said, [n.caption for n in record.narratives], record.captions, record.conversations]


@pytest.fixture(scope="module")
def model(tiny_pixelllm) -> PixelLLM:
    model = tiny_pixelllm.build(TEXT + "MAX_STEPS", "9").eval()
    with torch.no_grad():  # places that are not all alike
        model.places.mlp.layers[-1].weight.mul_(5)
    return model


@pytest.fixture(scope="module")
def wide(tiny_pixelllm):
    """Scenes of 48 x 80 pixels, of which the canvas of 64 x 64 shows 38 x 64."""
    return tiny_pixelllm.Drawn(size=(48, 80), seed=3)


def test_what_each_task_is_answered_with(model, wide):
    batch = wide.questions("region", "refer", "detect", "trace", "caption", "instruct")
    found = answers(model, batch)
    region, refer, detect, trace, caption, instruct = found
    told = {target.task: target for target in batch.targets}
    assert [(record.image_id, record.height, record.width) for record in found] == [
        (name, 48, 80) for name in batch.image_ids
    ]
    assert [r.id for r in region.regions] == told["region"].region_ids
    assert all(len(r.captions) == 1 and r.caption_score < 0 and r.mask is None for r in region.regions)
    scale = torch.tensor([80 / 64, 48 / 38] * 2)
    boxes = torch.tensor([r.box_xyxy for r in region.regions])
    torch.testing.assert_close(boxes, told["region"].boxes_xyxy * scale)
    assert [r.id for r in refer.regions] == told["refer"].region_ids
    assert all(decode_mask(r.mask).shape == (48, 80) and r.score is not None for r in refer.regions)
    assert all(int(decode_mask(r.mask).sum()) == r.area and not r.captions for r in refer.regions)
    assert [r.id for r in detect.regions] == list(range(1, len(detect.regions) + 1)) != []
    scores = [r.score for r in detect.regions]
    assert scores == sorted(scores, reverse=True)
    assert all(r.box_xyxy and len(r.captions) == 1 and r.caption_score < 0 for r in detect.regions)
    assert len(trace.narratives) == len(told["trace"])
    narrative = trace.narratives[0]
    assert " ".join(word.text for word in narrative.words) == narrative.caption
    assert [(word.start, word.end) for word in narrative.words] == [(k, k + 1) for k in range(len(narrative.words))]
    assert [[point[2] for point in stroke] for stroke in narrative.traces] == [
        [k + 0.5] for k in range(len(narrative.words))
    ]
    assert len(caption.captions) == len(told["caption"])
    assert [[turn.role for turn in talk] for talk in instruct.conversations] == [["user", "assistant"]] * len(
        told["instruct"]
    )
    for record in found:
        assert record_from_json(record_to_json(record)) == record


@torch.no_grad()
def places_of(model: PixelLLM, batch: Batch, rows: PromptRows) -> Tensor:
    maps = model.encode(batch.images)
    states = model.language.states(model.look(maps, rows), rows.context, rows.text)
    return model.locate(maps, rows, states).points


def test_the_box_of_a_phrase_is_where_its_last_word_points(tiny_pixelllm, model, wide):
    batch = wide.questions("refer", "refer")
    found = answers(model, batch)
    for record, piece in zip(found, tiny_pixelllm.split(batch), strict=True):
        (rows,) = group_prompts(piece.targets, pad_id=0, device=torch.device("cpu"), all_rows=True)
        points = places_of(model, piece, rows)
        ends = [row.tolist().index(model.tokenizer.end_id) for row in piece.targets[0].text]
        last = torch.stack([points[k, end - 1] for k, end in enumerate(ends)])[:, None]
        boxes = points_to_boxes(last, torch.ones(len(last), 1, dtype=torch.bool)) * torch.tensor([80 / 64, 48 / 38] * 2)
        cut = torch.minimum(boxes.clamp(min=0), torch.tensor([80.0, 48, 80, 48]))
        torch.testing.assert_close(torch.tensor([r.box_xyxy for r in record.regions]), cut, rtol=1e-4, atol=1e-3)


def test_images_of_a_batch_are_answered_as_alone(tiny_pixelllm, model, wide):
    batch = wide.questions("refer", "region", "detect", "trace", "region", "caption", "detect")
    for together, piece in zip(answers(model, batch), tiny_pixelllm.split(batch), strict=True):
        (alone,) = answers(model, piece)
        assert texts(together) == texts(alone)
        for one, other in zip(together.regions, alone.regions, strict=True):
            assert one.box_xyxy == pytest.approx(other.box_xyxy, abs=1e-3)
            assert one.caption_score == pytest.approx(other.caption_score, abs=1e-4)
            assert one.score == pytest.approx(other.score, abs=1e-4)
            if one.mask:
                assert (decode_mask(one.mask) != decode_mask(other.mask)).mean() < 0.01


def test_beams_place_the_words_of_the_best_text(tiny_pixelllm, wide):
    """What the search kept is what a second reading of its text gives."""
    model = tiny_pixelllm.build(TEXT + "BEAM_SIZE", "3", TEXT + "MAX_STEPS", "7")
    batch = wide.questions("trace", "caption", "", "trace")
    found = answers(model, batch)
    for record, piece in zip(found, tiny_pixelllm.split(batch), strict=True):
        assert texts(record) == texts(answers(model, piece)[0])
    (rows,) = group_prompts(batch.targets[:1], pad_id=0, device=torch.device("cpu"), all_rows=True)
    with torch.no_grad():
        visual = model.look(model.encode(batch.images[:1]), rows)
        best = write_texts(model.language, visual, rows.context, model.prediction.search)
        rows.text = best.tokens
    points = places_of(model, tiny_pixelllm.split(batch)[0], rows)
    narrative = found[0].narratives[0]
    assert narrative.caption == model.tokenizer.decode(best.tokens[0, 1:])
    first = torch.cat([points[0, 1].amin(0), points[0, 1].amax(0)])
    if len(model.tokenizer.decode(best.tokens[0, 1:3]).split()) == 2:  # the first piece is a word
        middle = (first[:2] + first[2:]) / 2 * torch.tensor([80 / 64, 48 / 38])
        torch.testing.assert_close(torch.tensor(narrative.traces[0][0][:2]), middle, rtol=1e-4, atol=1e-3)


def test_images_without_prompts_and_without_objects(tiny_pixelllm, model, wide):
    batch = wide.questions("", "region", "")
    nothing, something, _ = answers(model, batch)
    assert (nothing.regions, bool(something.regions)) == ([], True)
    assert answers(model, Batch.blank(kind=PromptTargets))[0].regions == []
    for task in ("region", "refer", "trace", "caption", "instruct"):
        empty = replace(PromptTargets.blank(64), task=task, size=(38, 64))
        (record,) = answers(model, replace(tiny_pixelllm.split(batch)[0], targets=[empty]))
        assert texts(record) == texts(Record("nothing", 48, 80)), task


def test_nothing_is_detected(tiny_pixelllm, wide):
    blind = tiny_pixelllm.build(DETECTOR + "MIN_SCORE", "1")
    assert [record.regions for record in answers(blind, wide.questions("detect", "detect"))] == [[], []]


def test_an_image_without_detections_beside_one_with(tiny_pixelllm, model, wide, monkeypatch):
    batch, plain = wide.questions("detect", "detect"), model.detect

    def only_the_second(maps, images):
        first, second = plain(maps, images)
        return [replace(first, xyxy=first.xyxy[:0], scores=first.scores[:0]), second]

    monkeypatch.setattr(model, "detect", only_the_second)
    nothing, found = answers(model, batch)
    monkeypatch.undo()
    assert nothing.regions == []
    assert texts(found) == texts(answers(model, tiny_pixelllm.split(batch)[1])[0])


def test_each_image_is_encoded_once_and_each_prompt_read_once(model, wide):
    """However many expressions ask about a whole image, its prompt is one."""
    batch, calls = wide.questions("refer", "refer"), []
    hooks = [model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))]
    hooks.append(model.prompt_features.register_forward_hook(lambda *given: calls.append(len(given[2]))))
    answers(model, batch)
    assert [len(target) > 1 for target in batch.targets] == [True, True]
    assert calls == ["encoder", 2]
    calls.clear()
    answers(model, wide.questions("region"))
    assert calls == ["encoder", len(wide.questions("region").targets[0])]
    for hook in hooks:
        hook.remove()


def test_points_are_prompts_too(tiny_pixelllm, model):
    drawn = tiny_pixelllm.Drawn()
    boxes, points = (drawn.lessons("region", box_rate=rate) for rate in (1.0, 0.0))
    assert set(points.targets[0].prompt_labels.flatten().tolist()) == {IMAGE_POINT, NO_POINT}
    assert boxes.targets[0].prompt_labels[0, 0] == BOX_START
    with torch.no_grad():
        assert model(boxes)["loss_text"].total != model(points)["loss_text"].total
    asked = drawn.questions("region")
    labels = torch.tensor([[IMAGE_POINT, NO_POINT]]).expand(len(asked.targets[0]), 2)
    asked.targets[0] = replace(asked.targets[0], prompt_labels=labels)
    (first,) = answers(model, asked)
    moved = asked.targets[0].prompt_points.clone()
    moved[:, 1] = 7.0  # what stands behind a point is not read
    asked.targets[0] = replace(asked.targets[0], prompt_points=moved)
    assert texts(answers(model, asked)[0]) == texts(first)
    assert len(first.regions) == len(labels)


def test_given_words_are_placed_piece_by_piece(tiny_pixelllm, wide):
    model = tiny_pixelllm.build("MODEL.TRACE_WORDS", "given", TEXT + "MAX_STEPS", "64")
    batch = wide.questions("trace")
    (record,) = answers(model, batch)
    told = batch.targets[0]
    assert [n.caption for n in record.narratives] == told.texts
    for narrative, row in zip(record.narratives, told.text, strict=True):
        pieces = row.tolist().index(model.tokenizer.end_id) - 1
        assert len(narrative.words) == len(narrative.traces) == pieces
        assert all(len(stroke) == 2 for stroke in narrative.traces)  # both corners
    (rows,) = group_prompts(batch.targets, pad_id=0, device=torch.device("cpu"), all_rows=True)
    expected = places_of(model, batch, rows)[0, 1] * torch.tensor([80 / 64, 48 / 38])
    torch.testing.assert_close(torch.tensor(record.narratives[0].traces[0])[:, :2], expected)


def test_captions_in_scores_of_detections(tiny_pixelllm, wide):
    plain, mixed = (
        answers(tiny_pixelllm.build("MODEL.CAPTION_IN_SCORE", value), wide.questions("detect"))[0]
        for value in ("false", "true")
    )
    for one, other in zip(plain.regions, mixed.regions, strict=True):
        assert other.score == pytest.approx((one.score * torch.tensor(one.caption_score).exp().item()) ** 0.5)
