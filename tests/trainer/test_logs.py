"""Numbers of a run: readable at any time, no step twice, and never a reason to stop."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from locap.trainer.logs import JsonLines, TensorBoard, Trackers, Wandb, _has_login


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


def test_wandb_is_stored_offline_and_asks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    run = Wandb(tmp_path, project="p", name="tiny/run_1", config={"SEED": 0})
    run.log("train", 1, {"loss": 0.5, "losses": {"a": 1.0}})
    run.close()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20
    while b"train/losses/a" not in (content := stored.read_bytes()):  # its service may write a little later
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert b"tiny/run_1" in content
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert identity in stored.name
    assert identity.encode() in content


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_without_a_login_is_offline(tmp_path, monkeypatch, mode):
    wandb = pytest.importorskip("wandb")
    modes, ids = [], set()
    monkeypatch.setattr(wandb, "init", lambda mode, id, **_: (modes.append(mode), ids.add(id)))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Wandb(tmp_path, project="p", name="n", config={})
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    assert not _has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/path")
    Wandb(tmp_path, project="p", name="n", config={})
    assert modes == ["offline", "online"]
    assert len(ids) == 1, "the second, resumed, goes on with the first"
