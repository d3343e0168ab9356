"""Requests to stop."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from locap.trainer import stopping
from locap.trainer.stopping import StopRequests


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_is_noted_and_nothing_else_happens(name):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.requested()
        assert stop.reason == f"signal {name}"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.fault("A6")
def test_a_second_interruption_stops_at_once():
    def interrupt_twice() -> None:
        with StopRequests():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


@pytest.mark.fault("A7")
def test_a_file_stops_and_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "_SECONDS_BETWEEN_LOOKS", 0.0)
    stop = StopRequests(tmp_path)
    assert not stop.requested()
    (tmp_path / "STOP").touch()
    assert stop.requested()
    assert "STOP" in stop.reason
    stop.obeyed()
    assert not StopRequests(tmp_path).requested()


@pytest.mark.fault("A7")
def test_time_runs_out():
    assert not StopRequests(max_hours=1.0).requested()
    stop = StopRequests(max_hours=0.00001)
    time.sleep(0.05)
    assert stop.requested()
    assert "MAX_HOURS" in stop.reason


def test_a_thread_may_watch_without_signals():
    seen = []

    def watch() -> None:
        with StopRequests() as stop:
            seen.append(stop.requested())

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [False]
