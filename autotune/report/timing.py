"""Where the time of a campaign's trials went: ``autotune status NAME --timing``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.trial import Attempt, Trial, TrialState

PHASES = {
    "queue": "proposed, until a worker claimed it",
    "server": "wait for the fork server to load libraries and data, once per worker and campaign",
    "start": "claimed, until its process began: fork, checkpoint",
    "load": "objective and data, where they were not loaded already",
    "train": "the objective; without its scores where it tells them apart",
    "score": "scores of the trained model",
    "finish": "from the objective's end until the result is in the store, on its clock",
}
"""Name of each phase -> what it is."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase over the finished trials of a campaign.

    Attributes:
        phase: Its name, one of `PHASES`.
        median_s: Median over trials, seconds.
        p95_s: 95th percentile, seconds.
        total_s: Sum, seconds.
        share: Part of the sum of all phases but ``queue``, in which nothing is occupied; None for that one.
    """

    phase: str
    median_s: float
    p95_s: float
    total_s: float
    share: float | None


def phases(trials: Sequence[Trial]) -> list[Phase]:
    """Return the phases of the finished trials, those aside that no trial tells of.

    Each trial counts with its last attempt; ``queue`` is the wait for the first one.

    Args:
        trials: Trials with their attempts, whole or as `Trials.find` returns them.
    """
    spent: dict[str, list[float]] = {name: [] for name in PHASES}
    for trial in trials:
        if trial.state is TrialState.FINISHED and trial.attempts:
            for name, seconds in _of(trial, trial.attempts[-1]).items():
                spent[name].append(max(0.0, seconds))
    occupied = sum(sum(values) for name, values in spent.items() if name != "queue")
    return [
        Phase(
            phase=name,
            median_s=float(np.median(values)),
            p95_s=float(np.quantile(values, 0.95)),
            total_s=sum(values),
            share=None if name == "queue" or not occupied else sum(values) / occupied,
        )
        for name, values in spent.items()
        if values
    ]


def _of(trial: Trial, last: Attempt) -> dict[str, float]:
    found: dict[str, float] = {}
    first = trial.started_at
    if trial.proposed_at is not None and first is not None:
        found["queue"] = (first - trial.proposed_at).total_seconds()
    timing = last.timing
    run_s, total_s = timing.get("run_s"), timing.get("total_s")
    if run_s is None or total_s is None:
        return found
    load_s, score_s = timing.get("load_s"), timing.get("score_s")
    server_s = timing.get("server_s")
    if server_s is not None:
        found["server"] = server_s
        found["start"] = total_s - run_s - (load_s or 0.0)
    found["train"] = run_s - (score_s or 0.0)
    if load_s is not None:
        found["load"] = load_s
    if score_s is not None:
        found["score"] = score_s
    if last.started_at is not None and last.ended_at is not None:
        found["finish"] = (last.ended_at - last.started_at).total_seconds() - total_s - (server_s or 0.0)
    return found
