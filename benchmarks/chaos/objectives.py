"""Objectives of the chaos campaigns: a plain function of parameters and seed, so that every result can be checked."""

from __future__ import annotations

import math
import os
import random
import time
from pathlib import Path
from typing import Any

STEPS = 8
"""Number of reports of a trial."""

SPACE: dict[str, Any] = {
    "x": {"float": [-2.0, 2.0]},
    "rate": {"log_float": [1e-4, 1.0]},
    "layers": {"int": [1, 4]},
}


def descent(trial: Any) -> dict[str, float]:
    """Return the loss after `STEPS` reported steps; it takes between ``least_s`` and ``most_s`` seconds.

    A file named by the process id, in ``folder``, says which trial and attempt the process is.
    """
    folder = trial.params.get("folder")
    if folder is not None:
        (Path(folder) / str(os.getpid())).write_text(f"{trial.number} {trial.attempt}")
    draw = random.Random(trial.seed)
    pause_s = draw.uniform(trial.params["least_s"], trial.params["most_s"]) / STEPS
    bottom = trial.params["x"] ** 2 + math.log10(trial.params["rate"] / 0.01) ** 2 + 0.1 * trial.params["layers"]
    loss = math.inf
    for step in range(1, STEPS + 1):
        time.sleep(pause_s)
        loss = bottom + math.exp(-step) + 0.01 * draw.random()
        trial.report(step, loss=loss)
    return {"loss": loss}
