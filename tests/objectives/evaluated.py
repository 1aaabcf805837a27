"""An objective that can be benchmarked: a parabola with noise from the trial's seed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workers.reporting import Metric, Result, Trial

default_params = {"x": 0.0}


def train(trial: Trial) -> Result:
    """Return the parabola's value on the part that the search sees."""
    return Result(metrics={"loss": _loss(trial, "validation")}, facts=_parts(trial))


def evaluate(trial: Trial, settings: Mapping[str, Any]) -> Result:
    """Return the value on both parts; waits until the file that ``AUTOTUNE_TEST_GATE`` names exists, if it does."""
    gate = os.environ.get("AUTOTUNE_TEST_GATE")
    trial.report(1, loss=0.0)
    while gate and not Path(gate).exists():
        trial.report(2, loss=0.0)
        time.sleep(0.02)
    metrics = {"loss": _loss(trial, "validation"), "loss_test": _loss(trial, "test")}
    return Result(metrics=metrics, facts={"settings": dict(settings), **_parts(trial)})


def evaluation_settings() -> dict[str, Any]:
    """Return the settings of `evaluate`."""
    return {"noise": 0.1, "flavour": "plain"}


def evaluation_metrics() -> dict[str, dict[str, str]]:
    """Return the metrics of `evaluate`."""
    return {"loss_test": {"mode": "min"}, "loss": {"mode": "min"}}


def save(trial: Trial, folder: Path) -> Result:
    """Write the parameters; the score is that of the search."""
    (folder / "model.txt").write_text(str(trial.params["x"]))
    return train(trial)


def _loss(trial: Trial, part: str) -> Metric:
    noise = np.random.default_rng([trial.seed, len(part)]).normal(0.0, 0.01)
    return Metric(value=(trial.params["x"] - 1.0) ** 2 + noise, se=0.02, split=part, n=100)


def _parts(trial: Trial) -> dict[str, Any]:
    if trial.data is None:
        return {}
    split = trial.data.split
    return {"cells_train": len(split.train), "cells_validation": len(split.validation), "cells_test": len(split.test)}
