"""How a worker is asked to end; the test moves the time."""

from __future__ import annotations

import threading

import pytest

from workers import stopping
from workers.stopping import StopRequest


class Time:
    """Monotonic time that the test moves."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(stopping, "time", clock)
    return clock


def test_nothing_expires_before_it_is_asked_for(clock: Time) -> None:
    stop = StopRequest(10.0)
    clock.now_s += 1e6
    assert not stop.is_set()
    assert not stop.expired


def test_running_trials_may_go_on_for_the_time_of_grace(clock: Time) -> None:
    stop = StopRequest(10.0)
    stop.set()
    assert stop.is_set()
    assert not stop.expired
    clock.now_s += 9.9
    assert not stop.expired
    clock.now_s += 0.2
    assert stop.expired


def test_asking_again_does_not_give_more_time(clock: Time) -> None:
    stop = StopRequest(10.0)
    stop.set()
    clock.now_s += 9.0
    stop.set()
    clock.now_s += 1.0
    assert stop.expired


def test_without_grace_it_expires_at_once(clock: Time) -> None:
    stop = StopRequest()
    assert not stop.expired
    stop.set()
    assert stop.expired


def test_who_waits_is_woken() -> None:
    stop, woken = StopRequest(10.0), threading.Event()
    thread = threading.Thread(target=lambda: stop.wait(30) and woken.set())
    thread.start()
    stop.set()
    thread.join(30)
    assert woken.is_set()
