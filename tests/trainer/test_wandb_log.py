"""Weights & Biases never asks, never stops a run and never makes it wait for long."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from locap.trainer import wandb_log
from locap.trainer.wandb_log import Wandb, _has_login

pytestmark = pytest.mark.fault("N2")


class Service(ModuleType):
    """A stand-in for the package: ``online`` and ``log`` are what these do there."""

    def __init__(self, online=lambda: None, log=lambda: None) -> None:
        super().__init__("wandb")
        self.online, self.on_log = online, log
        self.modes, self.ids, self.logged, self.finished = [], [], [], 0
        self.Settings = lambda **given: SimpleNamespace(**given)
        self.Image = lambda path: path

    def init(self, *, mode, id, **_):
        self.modes.append(mode)
        self.ids.append(id)
        if mode == "online":
            self.online()
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, values, step):
        self.on_log()
        self.logged.append((step, values))

    def _finish(self):
        self.finished += 1


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts a service in the package's place, with a login."""
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_log, "_check_reachable", lambda: None)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))

    def put(service: ModuleType | None) -> ModuleType | None:
        monkeypatch.setitem(sys.modules, "wandb", service)
        return service

    return put


def run(folder, steps=3) -> float:
    """Log some steps; returns the seconds that the caller had to wait."""
    started = time.monotonic()
    log = Wandb(folder, project="p", name="n", config={})
    for step in range(steps):
        log.log("train", step, {"loss": 0.5, "losses": {"a": 1}, "note": "x"})
    log.close()
    return time.monotonic() - started


def fail(*_):
    raise ConnectionError("no route\nto host")


def test_numbers_and_pictures_arrive_in_order(tmp_path, install):
    service = install(Service())
    log = Wandb(tmp_path, project="p", name="n", config={})
    log.log("train", 1, {"loss": 0.5, "losses": {"a": 1}, "note": "x"})
    log.pictures("evaluate", 1, {"0": tmp_path / "0.png"})
    log.close()
    assert service.logged == [
        (1, {"train/loss": 0.5, "train/losses/a": 1}),
        (1, {"evaluate/0": str(tmp_path / "0.png")}),
    ]
    assert (service.modes, service.finished) == (["online"], 1)


def test_a_service_that_fails_is_left_alone_for_the_run(tmp_path, install, caplog):
    service = install(Service(online=fail))
    assert run(tmp_path) < 5
    assert service.modes == ["online", "offline"]
    assert service.ids[0] != service.ids[1], "the real one still holds the first"
    assert [step for step, _ in service.logged] == [0, 1, 2], "nothing that was logged meanwhile is lost"
    assert "cannot be reached (no route to host); this run is stored offline" in caplog.text


def test_a_service_that_hangs_is_left_alone_too(tmp_path, install, monkeypatch, caplog):
    woken = threading.Event()
    service = install(Service(online=lambda: woken.wait(30)))
    monkeypatch.setattr(wandb_log, "START_SECONDS", 0.2)
    assert run(tmp_path) < 5
    assert service.modes == ["online", "offline"]
    assert len(service.logged) == 3
    assert "no answer in time" in caplog.text
    woken.set()
    deadline = time.monotonic() + 5
    while service.finished < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.finished == 2, "the run that came too late is ended"


def test_one_that_dies_is_given_up_with_one_warning(tmp_path, install, caplog):
    install(Service(log=fail))
    assert run(tmp_path, steps=50) < 5
    assert caplog.text.count("Weights & Biases stops: no route to host") == 1


def test_one_that_stops_answering_costs_the_end_a_few_seconds(tmp_path, install, monkeypatch, caplog):
    woken = threading.Event()
    install(Service(log=lambda: woken.wait(30)))
    monkeypatch.setattr(wandb_log, "END_SECONDS", 0.3)
    monkeypatch.setattr(wandb_log, "MOST_QUEUED", 5)
    assert run(tmp_path, steps=100) < 3
    assert caplog.text.count("too slow") == 1
    assert "wandb sync" in caplog.text
    woken.set()


def test_without_the_package_there_is_a_warning(tmp_path, install, caplog):
    install(None)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path) < 5
    assert "Weights & Biases stops" in caplog.text


@pytest.mark.parametrize("mode", [None, "online"])
def test_without_a_login_it_is_offline(tmp_path, install, monkeypatch, mode):
    service = install(Service())
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run(tmp_path)
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    assert not _has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/path")
    run(tmp_path)
    assert service.modes == ["offline", "online"]
    assert len(set(service.ids)) == 1, "the second, resumed, goes on with the first"


def test_a_run_that_ends_first_waits_less(tmp_path, install, monkeypatch):
    woken = threading.Event()
    service = install(Service(online=lambda: woken.wait(30)))
    monkeypatch.setattr(wandb_log, "HURRIED_SECONDS", 0.2)
    assert run(tmp_path) < 5
    assert len(service.logged) == 3
    woken.set()


def test_the_real_one_is_stored_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr(wandb_log, "END_SECONDS", 60.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path)
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20
    while b"train/losses/a" not in stored.read_bytes():  # its service may write a little later
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (tmp_path / "wandb_id.txt").read_text() in stored.name
