"""One object for every system: what it takes, that nothing depends on how it is asked, and what it says to mistakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import locap
from locap.datasets.records import encode_mask
from locap.datasets.shapes import CATEGORIES, Shapes
from locap.inference.asks import Ask
from locap.inference.captioner import Captioner, pick_dtype
from locap.inference.results import Result
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import SYSTEMS, find_system
from locap.utils.config import load_config, save_config
from locap.utils.errors import CheckpointError, DataError, UsageError
from locap.utils.files import write_tensors

SCENES = [Shapes(5, split="test", image_size=(48, 64))[k] for k in range(5)]
HALF = np.zeros((48, 64), bool)
HALF[:, :30] = True
ASKS = [
    Ask("box", (3.0, 4.0, 40.0, 30.5)),
    Ask("text", "star"),
    Ask("point", (50.0, 20.0)),
    Ask("mask", encode_mask(HALF)),
    Ask("box", (20.0, 1.0, 60.0, 47.0)),
]


def _configurations(tiny_pix2cap, tiny_pixelllm) -> dict[str, tuple[list[Path], list[str]]]:
    """Files and overrides of a tiny form of every system; a new one needs its own here."""
    fitting = [str(token) for pair in tiny_pix2cap.FITTING.items() for token in pair]
    shapes = ["COCO.INPUT.MIN_SIZE_TEST", "64", "COCO.INPUT.MAX_SIZE_TEST", "96", "DATASETS.TEST", "[shapes_val]"]
    short = ["MODEL.TEXT_DECODER.MAX_STEPS", "10"]
    return {
        "pix2cap_model": (
            [tiny_pix2cap.PUBLISHED, tiny_pix2cap.HERE / "modeling" / "tiny.yaml"],
            [
                *fitting,
                *shapes,
                "MODEL.DECODER.TEST.OBJECT_MASK_THRESHOLD",
                "0",
                "MODEL.DECODER.TEST.OVERLAP_THRESHOLD",
                "0",
            ],
        ),
        "pixelllm_model": ([tiny_pixelllm.SHIPPED], [*tiny_pixelllm.TINY, *tiny_pixelllm.AIDS, *short]),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_pix2cap, tiny_pixelllm) -> dict[str, Path]:
    """A model folder of every system, as its weights were drawn."""
    configurations, made = _configurations(tiny_pix2cap, tiny_pixelllm), {}
    for name in SYSTEMS:
        files, overrides = configurations[name]
        cfg = load_config(files, overrides, model_schemas=MODEL_SCHEMAS)
        system = find_system(name)
        torch.manual_seed(3)
        model = system.model(cfg, CATEGORIES, system.tokenizer(cfg))
        _lively(model)
        made[name] = tmp_path_factory.mktemp(name)
        save_config(cfg, made[name] / "config.yaml")
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        write_tensors(made[name] / "model.safetensors", tensors)
    return made


def _lively(model: nn.Module) -> None:
    """Let words differ from region to region, as those of an untrained decoder hardly do."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and any(part in name for part in ("captioner", "region_proj", "language", "class_embed")):
            nn.init.normal_(parameter, std=0.3)


@pytest.fixture(scope="module", params=list(SYSTEMS))
def captioner(request, folders: dict[str, Path]) -> Captioner:
    """Every system, loaded."""
    return locap.load(folders[request.param], device="cpu")


@pytest.fixture(scope="module")
def pix2cap(folders: dict[str, Path]) -> Captioner:
    return locap.load(folders["pix2cap_model"], device="cpu")


def said(result: Result) -> list[tuple]:
    """What matters of an answer; masks and boxes of phrases as they are."""
    return [(r.id, r.captions, r.mask, r.category_id, r.points, r.expressions) for r in result]


def told(result: Result) -> list[tuple]:
    """What is said, without geometry that depends on the last bit of a number."""
    return [(r.id, r.captions, r.category_id) for r in result]


def alike(one: Result, other: Result) -> None:
    assert told(one) == told(other)
    for mine, theirs in zip(one.masks(), other.masks(), strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine ^ theirs).mean() < 0.002
    assert [n.caption for n in one.record.narratives] == [n.caption for n in other.record.narratives]


def test_every_system_answers_what_its_record_says(captioner: Captioner):
    assert captioner.takes == find_system(captioner.cfg.MODEL.NAME).takes(captioner.cfg)
    asks = [ask for ask in ASKS if ask.kind in captioner.takes]
    assert asks
    result = captioner.ask(captioner.see(SCENES[0]), asks)
    assert [region.id for region in result] == list(range(1, len(asks) + 1))
    for ask, region in zip(asks, result, strict=True):
        if ask.kind == "box":
            assert region.box_xyxy == ask.value
        if ask.kind == "mask":
            assert region.mask == ask.value
        assert len(region.captions) == (ask.kind != "text")
    assert captioner.categories == CATEGORIES


def test_a_batch_says_what_one_by_one_says(captioner: Captioner):
    items = [(SCENES[0], ASKS), SCENES[1], (SCENES[2].read_image(), ASKS[:2]), SCENES[3], (SCENES[4], ASKS[2:])]
    together = list(captioner.batch(items, batch_size=4))
    for item, result in zip(items, together, strict=True):
        image, asks = item if isinstance(item, tuple) else (item, ())
        alike(result, captioner.ask(captioner.see(image), asks))
    assert [result.record.image_id for result in together] == [0, 1, "image", 3, 4]


def test_images_of_several_sizes_keep_their_answers(captioner: Captioner):
    sizes = [(48, 64), (64, 48), (40, 40), (48, 64)]
    images = [Shapes(1, seed=k, split="test", image_size=size)[0].read_image() for k, size in enumerate(sizes)]
    for image, result in zip(images, captioner.batch(images, batch_size=4), strict=True):
        assert np.array_equal(result.pixels, image)
        alike(result, captioner.ask(captioner.see(image)))


def test_setting_an_image_is_seeing_and_asking(captioner: Captioner):
    boxes = [ask.value for ask in ASKS if ask.kind == "box"]
    stateful = captioner.set_image(SCENES[0]).caption(boxes=boxes, points=[(50, 20)], masks=[HALF])
    asks = [*(Ask("box", box) for box in boxes), ASKS[2], ASKS[3]]
    assert said(stateful) == said(captioner.ask(captioner.see(SCENES[0]), asks))
    assert said(captioner.locate(["star", "sky"])) == said(
        captioner.ask(captioner.see(SCENES[0]), [Ask("text", "star"), Ask("text", "sky")])
    )
    alike(captioner.caption_everything(), captioner.ask(captioner.see(SCENES[0])))


def test_all_questions_in_one_search_are_one_at_a_time(captioner: Captioner):
    seen = captioner.see(SCENES[0])
    together = captioner.ask(seen, ASKS)
    for region, ask in zip(together, ASKS, strict=True):
        (alone,) = captioner.ask(seen, [ask])
        assert (alone.captions, alone.category_id) == (region.captions, region.category_id)


def test_an_image_is_encoded_once(captioner: Captioner, monkeypatch):
    model, calls = captioner.model, []
    encoder = model.backbone if hasattr(model, "backbone") else model.encoder
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    seen = captioner.see(SCENES[0])
    captioner.ask(seen, ASKS)
    captioner.ask(seen)
    list(captioner.stream(seen, ASKS))
    assert len(calls) == 1
    assert len(list(captioner.batch(SCENES[:4], batch_size=4))) == 4
    hook.remove()
    assert len(calls) == 2


def test_threads_that_share_a_captioner_get_their_own_answers(captioner: Captioner):
    alone = [told(captioner.ask(captioner.see(scene), ASKS)) for scene in SCENES[:3]]
    found: dict[int, list] = {}

    def use(k: int) -> None:
        seen = captioner.see(SCENES[k])
        found[k] = [told(captioner.ask(seen, ASKS)) for _ in range(2)]

    threads = [threading.Thread(target=use, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[k] for k in range(3)] == [[answer, answer] for answer in alone]


@pytest.mark.parametrize("asks", [ASKS, ()])
def test_a_stream_ends_with_the_captions(captioner: Captioner, asks):
    seen = captioner.see(SCENES[0])
    last, steps = {}, {}
    for region, text in captioner.stream(seen, asks):
        last[region], steps[region] = text, steps.get(region, 0) + 1
    result = captioner.ask(seen, asks)
    expected = {k: caption for k, caption in enumerate(result.captions) if caption}
    if narratives := [n.caption for n in result.record.narratives if n.caption]:
        expected[-1] = narratives[0]
    assert {k: text for k, text in last.items() if text} == expected
    assert max(steps.values()) > 1


@pytest.mark.parametrize(("system", "search"), [("pix2cap_model", "beam"), ("pixelllm_model", None)])
def test_beams_stream_the_best_so_far(folders, system: str, search: str | None):
    wanted = {"MODEL.TEXT_DECODER.BEAM_SIZE": 3} | ({"MODEL.TEXT_DECODER.BEAM_SEARCH": search} if search else {})
    captioner = locap.load(folders[system], device="cpu", overrides=wanted)
    seen = captioner.see(SCENES[0])
    last = dict(captioner.stream(seen, ASKS[:1]))
    assert last[0] == captioner.ask(seen, ASKS[:1]).captions[0]


@pytest.mark.parametrize("asks", [ASKS, ()])
def test_an_answer_can_be_watched(captioner: Captioner, asks):
    seen, last = captioner.see(SCENES[0]), {}
    result = captioner.ask(seen, asks, lambda changes: last.update(changes))
    assert told(result) == told(captioner.ask(seen, asks))
    assert last == dict(captioner.stream(seen, asks))


def test_what_a_watch_raises_ends_the_writing(captioner: Captioner):
    seen, steps = captioner.see(SCENES[0]), []

    def leave(changes):
        steps.append(changes)
        raise KeyError("left")

    with pytest.raises(KeyError, match="left"):
        captioner.ask(seen, ASKS, leave)
    assert len(steps) == 1
    assert captioner.ask(seen, ASKS).captions


def test_closing_a_stream_ends_the_writing_with_the_next_step(captioner: Captioner, monkeypatch):
    """The model's steps wait until they are let on, so that the stream is closed between two of them."""
    decoder = captioner.model.captioner if hasattr(captioner.model, "captioner") else captioner.model.language
    name = "read" if hasattr(decoder, "read") else "step"
    step, steps, go = getattr(decoder, name), [], threading.Semaphore(3)

    def slow(*arguments):
        go.acquire()
        steps.append(1)
        return step(*arguments)

    monkeypatch.setattr(decoder, name, slow)
    stream = captioner.stream(captioner.see(SCENES[0]), ASKS[:1])
    next(stream)
    threading.Timer(0.3, lambda: go.release(40)).start()
    stream.close()
    assert len(steps) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "locap stream"]
    monkeypatch.undo()
    assert captioner.ask(captioner.see(SCENES[0]), ASKS[:1]).captions  # the lock is free


def test_what_a_stream_meets_is_raised(captioner: Captioner, monkeypatch):
    monkeypatch.setattr(captioner.model, "answer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(captioner.stream(captioner.see(SCENES[0]), ASKS[:1]))


def test_every_form_of_an_image_gives_the_same_answer(pix2cap: Captioner, tmp_path: Path):
    pixels = SCENES[0].read_image()
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels.copy())
    forms = [
        path,
        str(path),
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        pixels,
        pixels / 255,
        pixels.transpose(2, 0, 1),
        tensor,
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1).float() / 255,
        SCENES[0],
    ]
    expected = said(pix2cap.ask(pix2cap.see(forms[0]), ASKS))
    for form in forms[1:]:
        seen = pix2cap.see(form)
        assert np.array_equal(seen.record.image, pixels)
        assert said(pix2cap.ask(seen, ASKS)) == expected


def test_a_picture_stands_upright_as_its_camera_says(pix2cap: Captioner, tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(SCENES[0].read_image()).save(tmp_path / "turned.png", exif=exif)
    turned = np.rot90(SCENES[0].read_image(), -1)
    with Image.open(tmp_path / "turned.png") as opened:
        for form in (tmp_path / "turned.png", opened):
            assert np.array_equal(pix2cap.see(form).record.image, turned)


def test_every_form_of_a_question_gives_the_same_answer(pix2cap: Captioner):
    pix2cap.set_image(SCENES[0])
    boxes, points = [(3.0, 4.0, 40.0, 30.5), (20.0, 1.0, 60.0, 47.0)], [(50, 20), (1.5, 2)]
    masks = np.stack([HALF, ~HALF])
    expected = said(pix2cap.caption(boxes=boxes, points=points, masks=list(masks)))
    assert len(expected) == 6
    for form in (np.array, torch.tensor):
        assert said(pix2cap.caption(boxes=form(boxes), points=form(points), masks=form(masks))) == expected
    runs = [encode_mask(mask) for mask in masks]
    assert said(pix2cap.caption(boxes=boxes, points=points, masks=runs)) == expected
    assert said(pix2cap.caption(boxes=boxes, points=points, masks=masks.astype(np.uint8) * 255)) == expected


def test_words_of_ones_own_take_the_place_of_the_instruction(folders, caplog):
    captioner = locap.load(folders["pixelllm_model"], device="cpu").set_image(SCENES[0])
    usual = captioner.caption(boxes=[ASKS[0].value]).captions
    assert captioner.caption(boxes=[ASKS[0].value], prompt="the object ").captions == usual
    assert captioner.caption(boxes=[ASKS[0].value], prompt="which colour is the star").captions != usual
    whole = captioner.caption(prompt="which colour is the star")
    assert [region.box_xyxy for region in whole] == [(0, 0, 64, 48)]
    assert whole.asks[0].prompt == "which colour is the star"


def test_broken_items_are_told_of_and_left_out(pix2cap: Captioner, tmp_path: Path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    items = [SCENES[0], tmp_path / "broken.jpg", (SCENES[1], [Ask("point", (99.0, 9.0))]), SCENES[2], "gone.png"]
    seen: list[tuple] = []
    results = list(pix2cap.batch(items, batch_size=2, on_error=lambda item, err: seen.append((item, err))))
    assert [result.record.image_id for result in results] == [0, 2]
    assert [item for item, _ in seen] == [items[1], items[2], items[4]]
    messages = [str(err) for _, err in seen]
    assert all(part in text for part, text in zip(("broken.jpg", "lies outside", "gone.png"), messages, strict=True))


def test_results_before_a_broken_item_come_first(pix2cap: Captioner):
    results = pix2cap.batch([SCENES[0], "gone.png", SCENES[1]], batch_size=8)
    assert next(results).record.image_id == 0
    with pytest.raises(DataError, match=r"gone\.png"):
        next(results)


def test_results_before_a_question_that_cannot_be_answered_come_first(pix2cap: Captioner, monkeypatch):
    """Also of its own batch, in which it is found out only when they are answered together."""
    answer = pix2cap.engine.answer

    def fails_at_three(encoded, records, asks, watch=None):
        if any(record.image_id == SCENES[3].image_id for record in records):
            raise UsageError("The box is too small to be seen.")
        return answer(encoded, records, asks, watch)

    monkeypatch.setattr(pix2cap.engine, "answer", fails_at_three)
    results = pix2cap.batch(SCENES)
    assert [next(results).record.image_id for _ in range(3)] == [scene.image_id for scene in SCENES[:3]]
    with pytest.raises(UsageError, match="too small"):
        next(results)
    kept = [result.record.image_id for result in pix2cap.batch(SCENES, on_error=lambda item, err: None)]
    assert kept == [scene.image_id for k, scene in enumerate(SCENES) if k != 3]


def test_a_camera_may_write_its_next_frame_into_the_same_memory(pix2cap: Captioner):
    frame = SCENES[0].read_image().copy()
    seen = pix2cap.see(frame)
    before = pix2cap.ask(seen).pixels.copy()
    frame[:] = 0
    assert np.array_equal(pix2cap.ask(seen).pixels, before)


def test_a_batch_reads_no_more_items_than_it_needs(pix2cap: Captioner):
    taken = []

    def items():
        for scene in SCENES:
            taken.append(scene.image_id)
            yield scene

    results = pix2cap.batch(items(), batch_size=2)
    assert taken == []
    next(results)
    assert taken == [0, 1]


def test_a_model_in_memory_serves_as_well(pix2cap: Captioner):
    again = Captioner.of_model(pix2cap.model, pix2cap.cfg, CATEGORIES)
    assert said(again.set_image(SCENES[0]).caption(boxes=[ASKS[0].value])) == said(
        pix2cap.set_image(SCENES[0]).caption(boxes=[ASKS[0].value])
    )


def test_training_goes_on_after_an_answer(folders, tiny_pix2cap):
    """Class texts kept from inference must not be tensors that autograd refuses."""
    captioner = locap.load(folders["pix2cap_model"], device="cpu")
    captioner.ask(captioner.see(SCENES[0]))
    model = captioner.model.train()
    sum(term.total for term in model(tiny_pix2cap.make_batch([2])).values()).backward()


def test_numbers_of_half_the_length_serve(folders):
    captioner = locap.load(folders["pix2cap_model"], device="cpu", dtype="bf16")
    assert captioner.dtype == torch.bfloat16
    assert len(captioner.ask(captioner.see(SCENES[0]), ASKS)) == len(ASKS)
    assert next(captioner.model.parameters()).dtype == torch.float32
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


NO_IMAGE = "Not an image."
MISTAKES = [
    (lambda c: c.see("https://example.org/cat.jpg"), UsageError, r"not fetched from the network[^$]*download it first"),
    (lambda c: c.see(Path("https://example.org/cat.jpg")), UsageError, "not fetched from the network"),
    (lambda c: c.see("no/such.jpg"), DataError, "no/such.jpg"),
    (lambda c: c.see(b"bytes"), UsageError, r"Not an image[^$]*'bytes'[^$]*a path, a PIL image, a numpy array"),
    (lambda c: c.see(np.zeros((4, 5), np.uint8)), DataError, r"RGB image[^$]*\(4, 5\)[^$]*\(height, width, 3\)"),
    (lambda c: c.see(np.zeros((4, 5, 4), np.uint8)), DataError, r"shape \(4, 5, 4\)"),
    (lambda c: c.see(np.zeros((0, 5, 3), np.uint8)), DataError, r"shape \(0, 5, 3\)"),
    (lambda c: c.see(torch.zeros(1, 3, 4, 5)), DataError, r"shape \(1, 3, 4, 5\)"),
    (lambda c: c.see(np.zeros((4, 5, 3), int)), DataError, r"int64[^$]*uint8, or float from 0 to 1"),
    (lambda c: c.see(np.full((4, 5, 3), 200.0)), DataError, r"from 200 to 200[^$]*pixels / 255"),
    (lambda c: c.see(torch.full((3, 4, 5), -1.0)), DataError, "out of range"),
    (lambda c: c.see(np.full((4, 5, 3), np.nan)), DataError, "out of range"),
    (lambda c: c.caption(), UsageError, r"Nothing is asked[^$]*boxes, points, masks or a prompt"),
    (lambda c: c.locate([]), UsageError, r"Nothing is asked[^$]*captioner.locate"),
    (lambda c: c.locate(" ,."), UsageError, "The phrase is empty"),
    (lambda c: c.caption(boxes=(1, 2, 3, 4)), UsageError, r"Not a list of boxes[^$]*boxes=\[\(x0, y0, x1, y1\)\]"),
    (lambda c: c.caption(boxes=[(1, 2, 3)]), UsageError, r"Not a list of boxes[^$]*\(1, 3\)"),
    (lambda c: c.caption(boxes=[(1, 2, 3, "a")]), UsageError, "Not a list of boxes"),
    (lambda c: c.caption(boxes=[(1, 2, 3, 4), (1, 2)]), UsageError, "Not a list of boxes"),
    (lambda c: c.caption(boxes=[(1, 2, np.nan, 4)]), UsageError, r"Not a place in an image[^$]*4 finite numbers"),
    (lambda c: c.caption(boxes=[(30, 2, 10, 4)]), UsageError, r"corners of the box are exchanged[^$]*box 10 2 30 4"),
    (lambda c: c.caption(boxes=[(10, 2, 10, 4)]), UsageError, "The box has no area"),
    (lambda c: c.caption(boxes=[(10, 2, 65, 4)]), UsageError, r"lies outside the image[^$]*64 wide and 48 high"),
    (lambda c: c.caption(points=[(1, 49)]), UsageError, "The point lies outside the image"),
    (lambda c: c.caption(masks=HALF), UsageError, r"Not a list of masks[^$]*\(48, 64\)[^$]*masks=\[mask\]"),
    (lambda c: c.caption(masks=encode_mask(HALF)), UsageError, "Not a list of masks"),
    (lambda c: c.caption(masks=[HALF * 0.5]), UsageError, r"Not a mask[^$]*masks\[0\][^$]*mask > 0.5"),
    (lambda c: c.caption(masks=[np.zeros_like(HALF)]), UsageError, "The mask is empty"),
    (lambda c: c.caption(masks=[HALF[:20]]), UsageError, r"another size than the image[^$]*64 wide and 20 high"),
    (
        lambda c: c.caption(boxes=[(1, 2, 3, 4)], prompt="what?"),
        UsageError,
        r"takes no prompt[^$]*box, mask, point, text",
    ),
    (lambda c: c.caption(boxes=[(1, 2, 3, 4)], prompt="  "), UsageError, "The prompt is empty"),
    (lambda c: c.batch([], batch_size=0), UsageError, "A batch needs an image"),
]


@pytest.mark.parametrize(("mistake", "kind", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(pix2cap: Captioner, mistake: Callable, kind: type[Exception], message: str):
    pix2cap.set_image(SCENES[0])
    with pytest.raises(kind, match=message):
        mistake(pix2cap)


@pytest.mark.parametrize("value", [("a", 1, 2, 3), None, 5, np.array([0.0, 0, 2, 2]), (1.0, 2.0)])
def test_a_place_that_is_none_is_told(pix2cap: Captioner, value):
    with pytest.raises(UsageError, match="Not a place in an image"):
        pix2cap.check([Ask("box", value)])
    with pytest.raises(UsageError, match="takes no polygon"):
        pix2cap.check([Ask("polygon", value)])


def test_a_question_without_an_image(folders):
    with pytest.raises(UsageError, match=r"There is no image yet[^$]*set_image"):
        locap.load(folders["pix2cap_model"], device="cpu").caption_everything()


def test_loading_says_what_is_missing(folders, tmp_path: Path):
    folder = folders["pix2cap_model"]
    with pytest.raises(UsageError, match=r"a file, not a model folder[^$]*give .*pix2cap_model"):
        locap.load(folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"holds no model: config.yaml is missing[^$]*copy the config.yaml"):
        locap.load(tmp_path)
    body = (folder / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(body)
    with pytest.raises(CheckpointError, match=r"holds no weights[^$]*fix: +put the model.safetensors"):
        locap.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.yaml").write_text(body.replace("NAME: pix2cap_model", "NAME: pix2cup_model"))
    with pytest.raises(UsageError, match=r"no known model[^$]*pix2cup_model[^$]*pix2cap_model"):
        locap.load(tmp_path)
    with pytest.raises(UsageError, match=r"Unknown type of numbers[^$]*fp8[^$]*auto, fp32, bf16, fp16"):
        locap.load(folder, dtype="fp8")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        locap.load(folder, device="cpu", dtype="fp16")
