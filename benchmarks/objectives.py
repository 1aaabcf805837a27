"""Objectives that benchmarks tune; workers import them by name."""

from __future__ import annotations

import math
from typing import Any


def sine(trial: Any) -> float:
    """Return sin(x): a trial that costs nothing, so that all the time is the service's own."""
    return math.sin(trial.params["x"])
