"""What a campaign cost: the table of run times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from autotune.report.tables import dataset
from autotune.store.base import CampaignRecord
from autotune.trial import Trial, TrialState

_MOST_IDLE = timedelta(seconds=10)  # so much of the wall time may pass without a trial, and
_MOST_IDLE_SHARE = 0.05  # this share of it, before the report speaks of it


def run_time(campaign: CampaignRecord, trials: Sequence[Trial]) -> pd.DataFrame:
    """Return one row about data, time, epochs and devices.

    Columns: ``dataset, cells, genes, wall time, device time, average epochs, average epochs to best, number of devices,
    parallel efficiency, max epochs``. What a campaign has no such thing of is None. The wall time (``H:MM:SS``) runs
    from the first start of a trial to the last end, pauses included (see `idle_time`); the device time is that of
    `device_s`; the averages are over finished trials: epochs trained (``n_epochs_run``, else ``n_epochs``) and epochs
    trained to the best state (``n_epochs``; the 2019 study printed this one as its average); devices are different
    (host, device) pairs; the efficiency is device time / wall time / number of devices; the most epochs are what the
    campaign fixes, else the objective's default.

    Args:
        campaign: The campaign.
        trials: Its trials.
    """
    data = campaign.facts.get("data") or {}
    finished = [trial.facts for trial in trials if trial.state is TrialState.FINISHED]
    devices = {(attempt.host, attempt.device) for trial in trials for attempt in trial.attempts if attempt.device}
    row = {
        "dataset": dataset(campaign),
        "cells": data.get("n_cells"),
        "genes": data.get("n_genes"),
        "wall time": wall_time(trials),
        "device time": device_time(trials),
        "average epochs": _mean([facts.get("n_epochs_run", facts.get("n_epochs")) for facts in finished]),
        "average epochs to best": _mean([facts.get("n_epochs") for facts in finished]),
        "number of devices": len(devices) or None,
        "parallel efficiency": _efficiency(trials, len(devices)),
        "max epochs": _max_epochs(campaign),
    }
    return pd.DataFrame({name: pd.Series([value], dtype="object") for name, value in row.items()})


def wall_time(trials: Sequence[Trial]) -> str | None:
    """Return the time from the first start to the last end as ``H:MM:SS``, or None before the first end."""
    span = _span(trials)
    return None if span is None else clock(span[1] - span[0])


def device_time(trials: Sequence[Trial]) -> str | None:
    """Return `device_s` as ``H:MM:SS``, or None where no attempt says on which device it ran."""
    seconds = device_s(trials)
    return None if seconds is None else clock(timedelta(seconds=seconds))


def device_s(trials: Sequence[Trial]) -> float | None:
    """Return the seconds of all attempts at all trials, or None where no attempt says on which device it ran.

    An attempt that shares its device with k - 1 others counts 1/k. One that runs still counts up to the last end of a
    trial. Of a trial with more than 64 attempts only the last 64 are known.

    Args:
        trials: All trials of the campaign.
    """
    span = _span(trials)
    if span is None or not any(attempt.device for trial in trials for attempt in trial.attempts):
        return None
    total = 0.0
    for trial in trials:
        for attempt in trial.attempts:
            if attempt.started_at is not None:
                last = span[1] if attempt.ended_at is None else attempt.ended_at
                total += max(0.0, (last - attempt.started_at).total_seconds()) * attempt.share
    return total


def idle_time(trials: Sequence[Trial]) -> str | None:
    """Return how much of `wall_time` no trial ran, as ``H:MM:SS``; None where that is 10 s or 5%, or less.

    Campaigns that were paused or had no worker for a while have such a time.

    Args:
        trials: All trials of the campaign.
    """
    span = _span(trials)
    if span is None:
        return None
    start, end = span
    busy, reached = timedelta(0), start
    for first, last in sorted(_intervals(trials, end)):
        busy += max(timedelta(0), min(last, end) - max(first, reached))
        reached = max(reached, min(last, end))
    idle = (end - start) - busy
    return clock(idle) if idle > _MOST_IDLE and idle > _MOST_IDLE_SHARE * (end - start) else None


def clock(time: timedelta) -> str:
    """Return a time as ``H:MM:SS``."""
    seconds = max(0, round(time.total_seconds()))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _efficiency(trials: Sequence[Trial], devices: int) -> float | None:
    """Return device time / wall time / devices, or None where one of them is not known or 0."""
    span, seconds = _span(trials), device_s(trials)
    if span is None or seconds is None or not devices:
        return None
    wall_s = (span[1] - span[0]).total_seconds()
    return round(seconds / wall_s / devices, 3) if wall_s > 0 else None


def _mean(values: Sequence[Any]) -> float | None:
    """Return the mean of those that are numbers, to two decimals, or None."""
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return round(sum(numbers) / len(numbers), 2) if numbers else None


def _max_epochs(campaign: CampaignRecord) -> Any:
    """Return the most epochs of a trial: what is fixed, else the default; None where they are searched or unknown."""
    fixed = campaign.spec.get("fixed") or {}
    if "max_epochs" in fixed or "max_epochs" in campaign.space:
        return fixed.get("max_epochs")
    return (campaign.facts.get("settings") or {}).get("max_epochs")


def _span(trials: Sequence[Trial]) -> tuple[datetime, datetime] | None:
    """Return the first start and the last end, or None before the first end."""
    starts = [trial.started_at for trial in trials if trial.started_at is not None]
    ends = [trial.ended_at for trial in trials if trial.ended_at is not None]
    return (min(starts), max(ends)) if starts and ends else None


def _intervals(trials: Sequence[Trial], end: datetime) -> list[tuple[datetime, datetime]]:
    """Return start and end of all attempts (of the trial where it has none); what has not ended lasts until `end`."""
    runs = [
        (run.started_at, run.ended_at) for trial in trials for run in (trial.attempts if trial.attempts else (trial,))
    ]
    return [(first, end if last is None else last) for first, last in runs if first is not None]
