"""Numbers of a run: readable at any time, no step twice, and never a reason to stop."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from PIL import Image

from locap.trainer.log_values import learning_rates
from locap.trainer.logs import JsonLines, SpikeWatch, TensorBoard, Trackers, open_trackers


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_json_cannot_say_is_null(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = JsonLines(path)
    log.log("train", 1, {"loss": float("nan"), "losses": {"a": float("inf"), "b": 0.5, "ü": 1}, "note": "x"})
    assert lines(path) == [  # before it is closed
        {"event": "train", "step": 1, "loss": None, "losses": {"a": None, "b": 0.5, "ü": 1}, "note": "x"}
    ]
    assert "NaN" not in path.read_text()
    log.close()


def test_resuming_cuts_what_will_be_repeated_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    for step in range(1, 6):
        first.log("train", step, {"loss": step})
    first.close()
    with path.open("a") as file:
        file.write('{"event": "train", "step": 6, "lo')
    second = JsonLines(path, resume_step=3)
    second.log("train", 4, {"loss": 40})
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_tensorboard_writes_events_and_hides_repeated_ones(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step, steps in ((None, (1, 2, 3)), (1, (2,))):
        board = TensorBoard(tmp_path, resume_step=resume_step)
        for step in steps:
            board.log("train", step, {"loss": step / 10, "losses": {"a": 1.0}, "name": "no number", "flag": True})
        board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["train/loss", "train/losses/a"]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


class Broken:
    """A service that is down."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, event, step, values) -> None:
        self.calls += 1
        raise RuntimeError("503")

    def close(self) -> None:
        raise RuntimeError("503")


def test_a_broken_log_is_dropped_and_the_others_go_on(tmp_path, caplog):
    broken, path = Broken(), tmp_path / "metrics.jsonl"
    trackers = Trackers([broken, JsonLines(path)])
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            trackers.log("train", step, {})
    trackers.close()
    Trackers([Broken()]).close()
    assert broken.calls == 1
    assert [line["step"] for line in lines(path)] == [1, 2]
    assert "Broken stops: 503. Training goes on." in caplog.text


def test_pictures_are_named_by_their_place_in_the_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = tmp_path / "evaluations" / "0.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 3), "red").save(picture)
    trackers = open_trackers(tmp_path)
    trackers.pictures("evaluate", 7, {"first": picture})
    trackers.close()
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.pictures("evaluate", 8, {"elsewhere": Path("/other.png")})
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"event": "evaluate", "step": 7, "pictures": {"first": "evaluations/0.png"}},
        {"event": "evaluate", "step": 8, "pictures": {"elsewhere": "/other.png"}},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["evaluate/first"]
    assert (events.Images("evaluate/first")[0].width, events.Images("evaluate/first")[0].height) == (4, 3)


def test_any_text_is_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    log.log("train", 1, {"ids": ["a\u2028b", "\udcff", Path("p")]})
    log.close()
    assert path.read_bytes().count(b"\n") == 1
    assert lines(path)[0]["ids"] == ["a\u2028b", "\udcff", "p"]
    JsonLines(path, resume_step=1).close()
    assert lines(path)[0]["ids"][0] == "a\u2028b"


def test_every_distinct_learning_rate_is_named():
    groups = [
        {"lr": 5e-6, "initial_lr": 1e-5},
        {"lr": 5e-5, "initial_lr": 1e-4},
        {"lr": 5e-5, "initial_lr": 1e-4, "weight_decay": 0.1},
        {"lr": 0.5, "initial_lr": 1.0, "name": "head"},
    ]
    assert list(learning_rates(groups).items()) == [("head", 0.5), ("0.0001", 5e-5), ("1e-05", 5e-6)]


def test_a_spike_is_ten_times_the_usual():
    watch = SpikeWatch(window=20)
    assert not watch.add(0, 1e9, []), "nothing is known yet"
    assert not any(watch.add(step, 1.0 + step % 3, []) for step in range(1, 21))
    assert not watch.add(21, 20.0, [])
    assert watch.add(22, 20.1, [1, 2])
    assert not watch.add(23, float("nan"), [1])
    for step in range(24, 50):
        watch.add(step, 20.0, [])
    assert not watch.add(50, 21.0, []), "a new level is the usual after a while"
