"""Where the time goes."""

from __future__ import annotations

import time

import pytest

from locap.trainer import meter as meter_module
from locap.trainer.distributed import World
from locap.trainer.meter import MANY_EVENTS, Meter, peak_memory


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; ``clock[0] += 1`` is a second."""
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(meter_module._HostClock, "stamp", staticmethod(lambda: now[0]))
    return now


def spend(meter: Meter, clock: list[float], *parts: tuple[str, float]) -> None:
    for phase, seconds in parts:
        with getattr(meter, phase)():
            clock[0] += seconds


STEP = (("waiting", 1.0), ("forward", 2.0), ("backward", 4.0), ("optimizing", 1.0))


def test_shares_are_of_the_time_that_was_not_aside(clock):
    meter = Meter()
    for _ in range(2):
        spend(meter, clock, *STEP)
        meter.count(8)
        clock[0] += 2
    spend(meter, clock, ("aside", 30.0))
    timing = meter.take(World())
    assert timing.shares == pytest.approx(
        {"data": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.1, "other": 0.2}
    )
    assert timing.data_wait == pytest.approx(0.1)
    assert timing.images_per_second == pytest.approx(16 / 20)
    assert timing.seconds == pytest.approx(50)
    assert (timing.tflops, timing.mfu) == (None, None)
    clock[0] += 1
    assert Meter.take(meter, World()).images_per_second == 0, "it started anew"


def test_images_of_all_ranks(clock):
    world = World(rank=1, size=4)
    meter = Meter(flops_per_image=3e12, peak_tflops=12.0)
    spend(meter, clock, ("waiting", 1.0), ("forward", 1.0))
    meter.count(2)
    guess = meter.take(world)
    assert guess.images_per_second == pytest.approx(4), "as if every rank had as many"
    assert guess.tflops == pytest.approx(3)
    assert guess.mfu == pytest.approx(0.25)
    spend(meter, clock, ("forward", 2.0))
    meter.count(2, everywhere=5)
    meter.count(0, everywhere=1)
    assert meter.take(world).images_per_second == pytest.approx(3)
    spend(meter, clock, ("forward", 2.0))
    meter.count(2)
    summed = meter.take(world, lambda values: [3 * values[0], *[2 * value for value in values[1:]]])
    assert summed.images_per_second == pytest.approx(3)
    assert summed.shares["forward"] == pytest.approx(0.5), "the mean over four ranks"


class Event:
    """An event of a stream that is ``behind`` the host, so that waiting for it would take time."""

    now, done, made, waits = 0.0, 0.0, 0, 0

    def __init__(self) -> None:
        Event.made += 1

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.done

    def synchronize(self) -> None:
        Event.waits += 1
        Event.done = self.at

    def elapsed_time(self, other: Event) -> float:
        assert other.query(), "read before it happened"
        return (other.at - self.at) * 1000


def test_a_streams_phases_are_read_without_waiting():
    meter = Meter(make_event=Event)
    for step in range(10 * MANY_EVENTS):
        for phase, seconds in STEP:
            with getattr(meter, phase)():
                Event.now += seconds
        meter.count(1)
        Event.done = 8.0 * (step - 3)  # the device lags by a few steps
    assert Event.waits == 0
    assert Event.made <= 2 * MANY_EVENTS + 40, "events are used again"
    timing = meter.take(World())
    assert Event.waits == 1
    assert timing.shares == pytest.approx(
        {"data": 0.125, "forward": 0.25, "backward": 0.5, "optimizer": 0.125, "other": 0}
    )
    assert timing.images_per_second == pytest.approx(1 / 8)
    made = Event.made
    with meter.forward():
        Event.now += 1
    assert meter.take(World()).shares["forward"] == pytest.approx(1)
    assert Event.made == made


def test_measuring_costs_next_to_nothing():
    meter = Meter()
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        for _ in range(1000):
            with meter.forward():
                pass
        best = min(best, (time.process_time() - started) / 1000)
    assert best < 5e-6


def test_memory_is_known_without_a_gpu():
    assert 0.01 < peak_memory("cpu") < 1000
