"""The scVI workload with a note of when each trial's process began, took its first step, and ended.

To save time only 20 000 cells of a part are scored. Training reads all cells of its parts; the rest of the counts is
read once at the end of each trial, so that all of them are in memory.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import scvi.train

import workers.workloads.scvi.training  # noqa: F401 - loaded once, before trials are forked
from workers.reporting import Result, Trial
from workers.workloads.registry import get_workload
from workers.workloads.scvi import scores

_SCORED = 20_000
_AT_ONCE = 1 << 22
_score_part = scores.score_part


def _score_some(model: Any, positions: Any, split: str, **settings: Any) -> Any:
    return _score_part(model, positions[:_SCORED], split, **settings)


scores.score_part = _score_some


def train(trial: Trial) -> Result:
    """Train as the workload does."""
    note("started", trial.number)
    step = scvi.train.TrainingPlan.training_step

    def first(plan: Any, *arguments: Any, **named: Any) -> Any:
        note("first step", trial.number)
        scvi.train.TrainingPlan.training_step = step
        return step(plan, *arguments, **named)

    scvi.train.TrainingPlan.training_step = first
    try:
        return get_workload("scvi").run(trial)
    finally:
        for array in (trial.data.cells.counts.data, trial.data.cells.counts.indices):
            for start in range(0, len(array), _AT_ONCE):
                array[start : start + _AT_ONCE].max()
        note("ended", trial.number)


def note(what: str, number: int) -> None:
    """Append a line to the file of notes; in one write, so that lines of several processes stay whole."""
    line = json.dumps({"what": what, "number": number, "pid": os.getpid(), "s": time.monotonic()}) + "\n"
    with Path(os.environ["BIG_DATA_NOTES"]).open("a") as file:
        file.write(line)
