"""Trials as a pandas frame, one row each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from autotune.history.columns import flatten, names_of, typed
from autotune.trial import Trial, TrialState

OWN_COLUMNS = (
    "number",
    "state",
    "attempts",
    "cause",
    "worker",
    "device",
    "started_at",
    "ended_at",
    "duration_s",
    "fold",
    "replicate",
)
"""Columns that say something about the trial itself; no metric, parameter or fact takes their names."""


def metric_column(metric: str) -> str:
    """Return the name of the column that holds the campaign's metric."""
    return f"metrics.{metric}" if metric in OWN_COLUMNS else metric


def frame(trials: Sequence[Trial], metric: str) -> pd.DataFrame:
    """Return one row per trial, in order of number.

    Columns: ``number``, ``state``, the campaign's metric, other metrics, parameters (nested ones with dotted names,
    lists as JSON text), facts that are scalars and do not repeat a parameter, ``attempts`` (how many), ``cause`` (of
    the last failure of a failed trial), ``worker`` and ``device`` of the last attempt, ``started_at``, ``ended_at``
    (UTC), ``duration_s`` (of the last attempt), and ``fold``, ``replicate`` where any is not 0.

    Names are plain. Where two things have the same name, the first of these keeps it and the others are called
    ``params.NAME``, ``metrics.NAME`` or ``facts.NAME``: columns of the trial itself, the campaign's metric,
    parameters, other metrics, facts.

    Args:
        trials: Trials of one campaign.
        metric: Name of the campaign's metric.
    """
    ordered = sorted(trials, key=lambda trial: trial.number)
    taken = set(OWN_COLUMNS)
    score = {metric_column(metric): _floats([_score(trial, metric) for trial in ordered])}
    taken.update(score)
    params = _params(ordered, taken)
    metrics = _metrics(ordered, metric, taken)
    facts = _facts(ordered, taken)
    head = {
        "number": pd.Series([trial.number for trial in ordered], dtype="int64"),
        "state": pd.Series([str(trial.state) for trial in ordered], dtype="object"),
    }
    return pd.DataFrame(head | score | metrics | params | facts | _life(ordered))


def _score(trial: Trial, metric: str) -> float | None:
    """Return the score, or what the trial's metrics say of the campaign's metric."""
    if trial.score is not None:
        return trial.score
    return trial.metrics.get(metric, {}).get("value")


def _floats(values: Sequence[float | None]) -> pd.Series[Any]:
    return pd.Series([math.nan if value is None else float(value) for value in values], dtype="float64")


def _free(name: str, kind: str, taken: set[str]) -> str:
    """Return `name`, or ``KIND.NAME`` where it is taken, and take it."""
    while name in taken:
        name = f"{kind}.{name}"
    taken.add(name)
    return name


def _params(trials: Sequence[Trial], taken: set[str]) -> dict[str, pd.Series[Any]]:
    rows = [flatten(trial.params) for trial in trials]
    return {_free(name, "params", taken): typed([row.get(name) for row in rows]) for name in names_of(rows)}


def _metrics(trials: Sequence[Trial], metric: str, taken: set[str]) -> dict[str, pd.Series[Any]]:
    rows = [{name: said.get("value") for name, said in trial.metrics.items()} for trial in trials]
    return {
        _free(name, "metrics", taken): _floats([row.get(name) for row in rows])
        for name in names_of(rows)
        if name != metric
    }


def _facts(trials: Sequence[Trial], taken: set[str]) -> dict[str, pd.Series[Any]]:
    """Return the facts that are scalars, without those that say of each trial what a parameter says."""
    rows = [
        {name: value for name, value in trial.facts.items() if not isinstance(value, (Mapping, list, tuple))}
        for trial in trials
    ]
    params = [flatten(trial.params) for trial in trials]
    columns = {}
    for name in names_of(rows):
        if all(
            name in known and known[name] == row[name] for row, known in zip(rows, params, strict=True) if name in row
        ):
            continue
        columns[_free(name, "facts", taken)] = typed([row.get(name) for row in rows])
    return columns


def _life(trials: Sequence[Trial]) -> dict[str, pd.Series[Any]]:
    """Return the columns about attempts and times."""
    last = [trial.attempts[-1] if trial.attempts else None for trial in trials]
    columns = {
        "attempts": pd.Series([len(trial.attempts) for trial in trials], dtype="int64"),
        "cause": typed([_cause(trial) for trial in trials]),
        "worker": typed([attempt.owner if attempt else None for attempt in last]),
        "device": typed([(attempt.device or None) if attempt else None for attempt in last]),
        "started_at": _times([trial.started_at for trial in trials]),
        "ended_at": _times([trial.ended_at for trial in trials]),
        "duration_s": _floats(
            [_duration_s(attempt.started_at, attempt.ended_at) if attempt else None for attempt in last]
        ),
    }
    if any(trial.fold for trial in trials):
        columns["fold"] = pd.Series([trial.fold for trial in trials], dtype="int64")
    if any(trial.replicate for trial in trials):
        columns["replicate"] = pd.Series([trial.replicate for trial in trials], dtype="int64")
    return columns


def _cause(trial: Trial) -> str | None:
    failure = trial.failure
    if trial.state is not TrialState.FAILED or failure is None or failure.cause is None:
        return None
    return str(failure.cause)


def _times(values: Sequence[datetime | None]) -> pd.Series[Any]:
    return pd.Series(pd.to_datetime(pd.Series(list(values), dtype="object"), utc=True))


def _duration_s(started_at: datetime | None, ended_at: datetime | None) -> float | None:
    if started_at is None or ended_at is None:
        return None
    return (ended_at - started_at).total_seconds()
