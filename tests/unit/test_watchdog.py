"""A training that takes too long, falls silent or stands still; time is an argument."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from autotune.trial import Cause
from workers.watchdog import Verdict, Watchdog, is_stopped


def make(**limits: float | None) -> Watchdog:
    return Watchdog(**{"started_s": 100.0, "frozen_s": 30.0, **limits})  # type: ignore[arg-type]


def test_without_limits_a_training_may_take_for_ever() -> None:
    assert make().look(1e9, stopped=False) is None


@pytest.mark.parametrize(("now_s", "ends"), [(100.0, False), (149.9, False), (150.0, True), (9e9, True)])
def test_trial_limit(now_s: float, ends: bool) -> None:
    found = make(trial_s=50.0).look(now_s, stopped=False)
    expected = Verdict(cause=Cause.TIMEOUT, message="it ran 50 s (limits.trial_s)")
    assert found == (expected if ends else None)


def test_trial_limit_counts_from_the_start_whatever_was_heard() -> None:
    dog = make(trial_s=50.0, silent_s=10.0)
    for now_s in range(101, 150):
        dog.heard(now_s)
        assert dog.look(now_s, stopped=False) is None
    found = dog.look(150.0, stopped=False)
    assert found is not None
    assert "limits.trial_s" in found.message


def test_silence_counts_from_the_start_and_from_each_report() -> None:
    dog = make(silent_s=10.0)
    assert dog.look(109.9, stopped=False) is None
    dog.heard(109.9)
    assert dog.look(119.8, stopped=False) is None
    found = dog.look(119.9, stopped=False)
    assert found == Verdict(cause=Cause.TIMEOUT, message="it sent no report for 10 s (limits.silent_s)")
    assert make(silent_s=10.0).look(110.0, stopped=False) is not None


def test_a_stopped_process_is_lost_after_a_while_and_not_silent() -> None:
    dog = make(silent_s=10.0)
    for now_s in (105.0, 112.0, 134.9):
        assert dog.look(now_s, stopped=True) is None
    found = dog.look(135.0, stopped=True)
    assert found is not None
    assert found.cause is Cause.LOST
    assert "stopped by a signal for 30 s while its worker went on" in found.message


def test_a_process_that_goes_on_is_not_lost() -> None:
    dog = make()
    dog.look(105.0, stopped=True)
    dog.look(130.0, stopped=False)
    assert dog.look(136.0, stopped=True) is None
    assert dog.look(165.9, stopped=True) is None
    assert dog.look(166.0, stopped=True) is not None


def test_a_process_that_goes_on_may_be_silent_anew() -> None:
    """While it was stopped it could not report: that time is not its silence."""
    dog = make(silent_s=10.0)
    dog.look(105.0, stopped=True)
    dog.look(125.0, stopped=True)
    assert dog.look(125.2, stopped=False) is None
    assert dog.look(130.0, stopped=False) is None
    assert dog.look(135.3, stopped=False) is not None


def test_stopped_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            assert not is_stopped(process.pid)
            process.send_signal(signal.SIGSTOP)
            end_s = time.monotonic() + 30
            while not is_stopped(process.pid):
                assert time.monotonic() < end_s
                time.sleep(0.01)
        finally:
            process.kill()
    assert not is_stopped(process.pid)
    assert not is_stopped(None)
    assert not is_stopped(os.getpid())
