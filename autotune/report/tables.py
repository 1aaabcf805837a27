"""Tables of a campaign, as pandas frames in full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Any

import pandas as pd

from autotune.errors import InputError
from autotune.history import flatten, typed
from autotune.report.ranking import Entry, rank
from autotune.store.base import CampaignRecord
from autotune.trial import Trial, TrialState

KNOWN_PARAMS = ("n_layers", "n_hidden", "n_latent", "reconstruction_loss", "gene_likelihood", "dropout_rate", "lr")
"""Parameters that come first, in this order, and are columns also where the campaign fixes them."""

SHOWN_FACTS = ("n_epochs", "n_params")
"""Facts of a trial that are columns after the parameters."""

RUN_INDEX = "run index"
NOTHING = "No trial has ended yet: there is nothing to rank."

_MOST_IDLE = timedelta(seconds=10)  # so much of the wall time may pass without a trial, and
_MOST_IDLE_SHARE = 0.05  # this share of it, before the report speaks of it


def ranking(campaign: CampaignRecord, trials: Sequence[Trial]) -> pd.DataFrame:
    """Return all configurations that count, best first; the row label is the rank, 1, 2, ...

    Columns: the campaign's metric, parameters (`KNOWN_PARAMS` first, then in the order of the space), ``n_epochs`` and
    ``n_params`` where trials have them, and ``run index``, the number of the trial. A parameter whose name is taken by
    another column is called ``params.NAME``. Settings that the campaign fixes are no columns, except `KNOWN_PARAMS`.

    Args:
        campaign: The campaign.
        trials: Its trials.
    """
    entries = rank(trials, campaign.metric["mode"])
    metric = campaign.metric["name"]
    facts = [name for name in SHOWN_FACTS if any(entry.facts.get(name) is not None for entry in entries)]
    columns: dict[str, pd.Series[Any]] = {metric: pd.Series([entry.score for entry in entries], dtype="float64")}
    taken = {metric, RUN_INDEX, *facts}
    fixed = flatten(campaign.spec.get("fixed") or {})
    for name in _param_names(campaign, entries, fixed):
        values = [entry.params.get(name, fixed.get(name)) for entry in entries]
        if name in facts and all(e.facts.get(name) == v for e, v in zip(entries, values, strict=True)):
            continue
        label = name
        while label in taken:
            label = f"params.{label}"
        taken.add(label)
        columns[label] = typed(values)
    for name in facts:
        if name != metric:
            columns[name] = typed([entry.facts.get(name) for entry in entries])
    columns[RUN_INDEX] = pd.Series([entry.number for entry in entries], dtype="int64")
    table = pd.DataFrame(columns)
    table.index = pd.RangeIndex(1, len(table) + 1, name="rank")
    return table


def best_and_worst(
    campaign: CampaignRecord, trials: Sequence[Trial], best: int = 10, worst: int = 10
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the first and the last rows of `ranking`; no row is in both.

    Where there are at most ``best + worst`` rows, the first table has them all and the second one is empty.

    Args:
        campaign: The campaign.
        trials: Its trials.
        best: Number of best configurations.
        worst: Number of worst configurations.

    Raises:
        InputError: If a number is negative.
    """
    return cut(ranking(campaign, trials), best, worst)


def cut(table: pd.DataFrame, best: int, worst: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the best and worst rows of a ranking, as `best_and_worst` does."""
    for name, number in (("best", best), ("worst", worst)):
        if number < 0:
            raise InputError(f"{name} {number} is negative; use 0 or more")
    if len(table) <= best + worst:
        return table, table.iloc[len(table) :]
    return table.iloc[:best], table.iloc[len(table) - worst :]


def _param_names(campaign: CampaignRecord, entries: Sequence[Entry], fixed: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters that are columns, in order."""
    found = dict.fromkeys(name for entry in entries for name in entry.params)
    searched = [
        name
        for name in found
        if name not in fixed or any(entry.params.get(name, fixed[name]) != fixed[name] for entry in entries)
    ]
    known = [name for name in KNOWN_PARAMS if name in found or (entries and name in fixed)]
    place = {name: i for i, name in enumerate(flatten(campaign.space))}
    roots = {name: i for i, name in enumerate(campaign.space)}

    def position(name: str) -> tuple[int, int]:
        root = roots.get(name, roots.get(name.split(".")[0], len(roots)))
        return root, place.get(name, len(place))

    return known + sorted((name for name in searched if name not in known), key=position)


def run_time(campaign: CampaignRecord, trials: Sequence[Trial]) -> pd.DataFrame:
    """Return one row: ``dataset, cells, genes, wall time, average epochs, number of devices, max epochs``.

    What a campaign has no such thing of is None. The wall time (``H:MM:SS``) runs from the first start of a trial to
    the last end, pauses included (see `idle_time`); the average is over the ``n_epochs`` of finished trials; devices
    are different (host, device) pairs; the most epochs are what the campaign fixes, else the objective's default.

    Args:
        campaign: The campaign.
        trials: Its trials.
    """
    data = campaign.facts.get("data") or {}
    epochs = [trial.facts.get("n_epochs") for trial in trials if trial.state is TrialState.FINISHED]
    numbers = [float(value) for value in epochs if isinstance(value, (int, float)) and not isinstance(value, bool)]
    devices = {(attempt.host, attempt.device) for trial in trials for attempt in trial.attempts if attempt.device}
    row = {
        "dataset": dataset(campaign),
        "cells": data.get("n_cells"),
        "genes": data.get("n_genes"),
        "wall time": wall_time(trials),
        "average epochs": sum(numbers) / len(numbers) if numbers else None,
        "number of devices": len(devices) or None,
        "max epochs": _max_epochs(campaign),
    }
    return pd.DataFrame({name: pd.Series([value], dtype="object") for name, value in row.items()})


def is_simulated(campaign: CampaignRecord) -> bool:
    """Return whether the campaign's data are simulated."""
    return bool((campaign.facts.get("data") or {}).get("simulated"))


def dataset(campaign: CampaignRecord) -> str | None:
    """Return the name of the data, or of its file, with ``(simulated)`` where it is; None without data."""
    data = campaign.facts.get("data") or {}
    name = data.get("name") or (PurePath(data["path"]).name if data.get("path") else None)
    if is_simulated(campaign):
        return f"{name or 'unnamed'} (simulated)"
    return str(name) if name else None


def wall_time(trials: Sequence[Trial]) -> str | None:
    """Return the time from the first start to the last end as ``H:MM:SS``, or None before the first end."""
    span = _span(trials)
    return None if span is None else _clock(span[1] - span[0])


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
    return _clock(idle) if idle > _MOST_IDLE and idle > _MOST_IDLE_SHARE * (end - start) else None


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


def _clock(time: timedelta) -> str:
    """Return a time as ``H:MM:SS``."""
    seconds = max(0, round(time.total_seconds()))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
