"""What is done after a while, unless it is stopped."""

from __future__ import annotations

import threading
import time

import pytest

from workers.later import Later


def test_it_is_done_once_and_not_before_its_time() -> None:
    done: list[float] = []
    event = threading.Event()

    def act() -> None:
        done.append(time.monotonic())
        event.set()

    later = Later(0.1, act)
    began_s = time.monotonic()
    later.start()
    assert event.wait(5.0)
    later.now()
    later.stop()
    assert len(done) == 1
    assert done[0] - began_s >= 0.1


def test_what_is_stopped_or_was_never_started_is_not_done() -> None:
    done: list[int] = []
    stopped = [Later(0.5, lambda: done.append(1)) for _ in range(100)]
    for later in stopped:
        later.start()
        later.stop()
        later.now()
    Later(0.0, lambda: done.append(2)).now()
    time.sleep(0.7)
    assert done == []


def test_now_does_it_in_the_calling_thread_and_the_alarm_does_not_repeat_it() -> None:
    threads: list[threading.Thread] = []
    later = Later(0.5, lambda: threads.append(threading.current_thread()))
    later.start()
    later.now()
    time.sleep(0.7)
    assert threads == [threading.current_thread()]


def test_stop_waits_for_what_has_begun() -> None:
    begun, done = threading.Event(), []

    def act() -> None:
        begun.set()
        time.sleep(0.3)
        done.append(1)

    later = Later(0.0, act)
    later.start()
    assert begun.wait(5.0)
    later.stop()
    assert done == [1]


def test_one_that_fails_does_not_keep_the_others_from_being_done(caplog: pytest.LogCaptureFixture) -> None:
    event = threading.Event()

    def fail() -> None:
        raise OSError("disk full")

    failing, other = Later(0.0, fail), Later(0.01, event.set)
    failing.start()
    other.start()
    assert event.wait(5.0)
    assert [getattr(r, "action", "") for r in caplog.records if r.name == "workers.later"] == ["later-error"]


def test_an_earlier_one_does_not_wait_for_a_later_one() -> None:
    slow, event = Later(60.0, lambda: None), threading.Event()
    slow.start()
    time.sleep(0.1)  # the alarm waits for that one now
    Later(0.05, event.set).start()
    assert event.wait(2.0)
    slow.stop()
