"""How long-running processes are asked to end."""

from __future__ import annotations

import os
import signal
import threading

from autotune.processes import stop_on_signals, stop_with_parent


def test_first_signal_stops_and_second_ends_at_once() -> None:
    stop, ended = threading.Event(), []
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(stop, at_once=lambda: ended.append(True)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        assert ended == []
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_for_another_reason_is_not_a_first_signal() -> None:
    stop, ended = threading.Event(), []
    stop.set()  # the parent has gone
    with stop_on_signals(stop, at_once=lambda: ended.append(True)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []


def test_a_parent_that_is_gone_stops_at_once() -> None:
    stop = threading.Event()
    stop_with_parent(stop, os.getppid() + 1_000_000)
    assert stop.wait(10)


def test_a_parent_that_lives_does_not_stop() -> None:
    stop = threading.Event()
    stop_with_parent(stop, os.getppid())
    assert not stop.wait(0.1)
    stop.set()
    stop_with_parent(threading.Event(), None)
