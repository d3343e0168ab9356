"""The benchmark program: it runs, it writes, and what it compares does the same work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from locap.datasets.categories import COCO_PANOPTIC
from locap.modeling.benchmarks import __main__ as program
from locap.modeling.benchmarks.measuring import PartMeter, measure
from locap.modeling.benchmarks.original_step import OriginalStep
from locap.modeling.benchmarks.workload import SHAPES, build, draw_batch, keep_segments, never_end

SMALL = ("MODEL.TEXT_DECODER.VOCAB_SIZE", "400", "MODEL.TEXT.PROMPT_TEMPLATES", "bare")
THINGS = {category.id for category in COCO_PANOPTIC if category.is_thing}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging is set up for a whole process; other tests want their own."""
    monkeypatch.setattr(program, "set_up_logging", lambda: None)


def run(tmp_path: Path, command: str, *options: str) -> dict:
    path = tmp_path / "found.json"
    arguments = [command, "--size", "tiny", "--repeats", "1", *options, "--output", str(path), "--overrides", *SMALL]
    assert program.main(arguments) == 0
    return json.loads(path.read_text())


def cost(report: dict, measurement: int, part: str) -> dict:
    return report["measurements"][measurement]["parts"][part]


def test_inference(tmp_path: Path, capsys: pytest.CaptureFixture):
    report = run(tmp_path, "inference", "--kept", "3", "--image-size", "64", "--images", "1")
    assert report["facts"] == {"segments": [3], "wanted": 3, "same captions": [True]}
    ours, slow = report["measurements"]
    for measurement in (ours, slow):
        parts = measurement["parts"]
        assert 0 < sum(part["tflop"] for part in parts.values()) <= measurement["tflop"]
        assert parts["text encoder"]["calls"] == 0
    for part in ("backbone", "pixel decoder", "query decoder"):
        assert cost(report, 0, part)["tflop"] == cost(report, 1, part)["tflop"] > 0
    captioner = [cost(report, index, "captioner")["tflop"] for index in range(2)]
    assert captioner[1] / captioner[0] > 12 / 3 * 10
    assert report["ratios"]["captioner TFLOP"] == pytest.approx(captioner[1] / captioner[0])
    assert "query decoder" in capsys.readouterr().out
    assert report["machine"]["threads"] == 1


def test_captioner(tmp_path: Path):
    report = run(tmp_path, "captioner", "--kept", "2")
    assert report["facts"] == {"regions": [2, 12], "tokens": [39], "same ids": [True]}
    assert report["ratios"]["TFLOP"] > 12 / 2 * 10


def test_class_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAP_CACHE", str(tmp_path / "cache"))
    report = run(tmp_path, "class_texts")
    assert report["facts"] == {"sentences": 134, "same table": True}
    assert cost(report, 0, "text encoder")["calls"] == 0 < cost(report, 1, "text encoder")["calls"]
    assert report["ratios"]["TFLOP of a cold start"] > 3
    assert not (tmp_path / "cache").exists()  # the users' cache is left alone


def test_deformable_encoder(tmp_path: Path):
    report = run(tmp_path, "deformable_encoder", "--image-size", "64", "--images", "1")
    assert [row["name"] for row in report["measurements"]] == ["auto", "reference"]
    assert report["facts"]["greatest difference"] < 1e-4
    assert report["ratios"]["CPU seconds"] > 0


def test_prompted_captions(tmp_path: Path):
    path = tmp_path / "found.json"
    line = ["prompted_captions", "--size", "tiny", "--repeats", "1", "--image-size", "32", "--boxes", "6"]
    assert program.main([*line, "--measured", "3", "--output", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["facts"] == {"boxes": 6, "same texts": "3 of 3"}
    assert report["measurements"][1]["name"] == "box by box (3 of 6, multiplied)"
    for name, least, most in (("image encoders", 5.9, 6.1), ("prompt features", 1, 3)):  # the map is projected once
        ours, slow = (cost(report, index, name) for index in range(2))
        assert ours["calls"] == 1
        assert slow["calls"] == 3
        assert least <= slow["tflop"] / ours["tflop"] <= most
    written = [cost(report, index, "language model")["tflop"] for index in range(2)]
    assert written[0] == pytest.approx(written[1])  # all texts have their full length either way
    assert report["ratios"]["TFLOP"] > 1


def test_training_step(tmp_path: Path):
    report = run(tmp_path, "training_step", "--image-size", "64", "--segments", "3", "--words", "6")
    assert cost(report, 0, "text encoder")["calls"] == 0
    assert cost(report, 1, "text encoder")["calls"] == 1
    assert cost(report, 0, "captioner")["calls"] == 1  # states of all points; their loss needs no logits
    assert cost(report, 1, "captioner")["calls"] == 2 * 4
    for index in range(2):
        assert cost(report, index, "backward")["tflop"] > 0
    assert report["ratios"]["TFLOP"] > 1


def test_a_wrong_key_is_a_users_error(capsys: pytest.CaptureFixture):
    assert program.main(["captioner", "--size", "tiny", "--overrides", "MODEL.NOTHING", "1"]) == 2
    assert "MODEL.NOTHING" in capsys.readouterr().err


def test_the_published_codes_paths_give_the_same_losses_and_gradients():
    model = build("tiny", [], (*SMALL, "MODEL.TEXT_DECODER.DROPOUT", "0", "MODEL.BACKBONE.FOCAL.DROP_PATH_RATE", "0"))
    batch = draw_batch(SHAPES["tiny"], 400)
    found = []
    for step in (model, OriginalStep(model)):
        model.zero_grad()
        terms = step(batch, step_seed=5)
        sum(term.weight * term.total for term in terms.values()).backward()
        found.append((terms, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (ours, gradients), (published, published_gradients) = found
    assert set(ours) == set(published)
    for name, term in ours.items():
        torch.testing.assert_close(term.total, published[name].total, rtol=1e-5, atol=1e-5, msg=name)
        assert term[1:] == published[name][1:]
    for mine, theirs in zip(gradients, published_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_named_segments_survive_and_captions_have_their_full_length():
    model = build("tiny", [], SMALL).eval()
    assert keep_segments(model, 20) == model.num_objects == 12
    never_end(model)
    for record in model.predict(draw_batch(SHAPES["tiny"], 400)):
        assert len(record.regions) == 12
        assert {region.category_id for region in record.regions} <= THINGS
        assert {len(region.captions[0].split()) for region in record.regions} == {39}
        assert record.id_map.all()


def test_calls_inside_others_count_once_and_nothing_stays_behind():
    outer = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    parts = {"outer": (outer, ("forward",)), "first": (outer[0], ("forward",))}
    x = torch.randn(5, 4)
    found, result = measure("both", lambda: (outer(x), outer[0](x)), PartMeter(parts), repeats=2)
    assert found.tflop == pytest.approx((2 * 2 * 5 * 4 * 8 + 2 * 5 * 8 * 2) / 1e12)
    assert found.parts["first"].tflop == pytest.approx(2 * 5 * 4 * 8 / 1e12)
    assert found.parts["outer"].calls == found.parts["first"].calls == 1
    assert torch.equal(result[0], outer(x))
    assert "forward" not in vars(outer)
