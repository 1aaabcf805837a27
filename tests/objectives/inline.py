"""Objectives for the worker's own process; the tests name them as ``tests.objectives.inline:...``."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, NoReturn

from workers.reporting import Trial, TrialStopped

GO_ON = threading.Event()
"""Set when the objectives that wait may go on."""
STOPPED = threading.Event()
"""Set when `reports_until_told` was told to stop."""


def reports(trial: Trial) -> dict[str, Any]:
    """Report three steps; return x squared and who ran it."""
    for step in range(3):
        trial.report(step, loss=float(step))
    return {"loss": float(trial.params["x"]) ** 2, "n_pid": os.getpid()}


def slow(trial: Trial) -> float:
    """Take some time."""
    time.sleep(0.05)
    return float(trial.params["x"]) ** 2


def fails(trial: Trial) -> NoReturn:
    """Raise."""
    raise ValueError("no such thing")


def leaves(trial: Trial) -> NoReturn:
    """Try to end the process."""
    sys.exit(3)


def no_number(trial: Trial) -> float:
    """Return NaN."""
    return float("nan")


def no_memory(trial: Trial) -> NoReturn:
    """Run out of memory."""
    raise MemoryError


def wrong(trial: Trial) -> dict[str, float]:
    """Return another metric."""
    return {"los": 1.0}


def waits(trial: Trial) -> float:
    """Wait until it may go on."""
    GO_ON.wait(60)
    return float(trial.params["x"]) ** 2


def reports_until_told(trial: Trial) -> float:
    """Report until the trial is taken away."""
    STOPPED.clear()
    try:
        for step in range(10_000):
            trial.report(step, loss=1.0)
            time.sleep(0.01)
    except TrialStopped:
        STOPPED.set()
        raise
    return 0.0
