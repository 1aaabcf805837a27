"""Tables of a campaign, as pandas frames in full precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
CAUSE = "cause"
NOTHING = "No trial has ended yet: there is nothing to rank."


def ranking(campaign: CampaignRecord, trials: Sequence[Trial]) -> pd.DataFrame:
    """Return all configurations that count, best first; the row label is the rank, 1, 2, ...

    Columns: the campaign's metric, the further ones that it names, parameters (`KNOWN_PARAMS` first, then in the order
    of the space), ``n_epochs`` and ``n_params`` where trials have them, ``run index``, the number of the trial, and
    where any was pruned or failed for a known reason ``cause``. A parameter whose name is taken by another column is
    called ``params.NAME``. Settings that the campaign fixes are no columns, except `KNOWN_PARAMS`.

    Args:
        campaign: The campaign.
        trials: Its trials.
    """
    entries = rank(trials, campaign.metric["mode"])
    metric = campaign.metric["name"]
    facts = [name for name in SHOWN_FACTS if any(entry.facts.get(name) is not None for entry in entries)]
    columns: dict[str, pd.Series[Any]] = {metric: pd.Series([entry.score for entry in entries], dtype="float64")}
    for name in scores_of(campaign)[1:]:
        values = [math.nan if entry.state is TrialState.FAILED else entry.metrics.get(name) for entry in entries]
        columns[name] = pd.Series([math.nan if v is None else v for v in values], dtype="float64")
    facts = [name for name in facts if name not in columns]
    taken = {*columns, RUN_INDEX, CAUSE, *facts}
    fixed = flatten(campaign.spec.get("fixed") or {})
    for name in parameter_names(campaign, entries):
        values = [entry.params.get(name, fixed.get(name)) for entry in entries]
        if name in facts and all(e.facts.get(name) == v for e, v in zip(entries, values, strict=True)):
            continue
        label = name
        while label in taken:
            label = f"params.{label}"
        taken.add(label)
        columns[label] = typed(values)
    for name in facts:
        columns[name] = typed([entry.facts.get(name) for entry in entries])
    columns[RUN_INDEX] = pd.Series([entry.number for entry in entries], dtype="int64")
    if any(entry.cause for entry in entries):
        columns[CAUSE] = typed([entry.cause for entry in entries])
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
    """Return the best and worst rows of a ranking, as `best_and_worst` does; ``cause`` only where a row has one."""
    for name, number in (("best", best), ("worst", worst)):
        if number < 0:
            raise InputError(f"{name} {number} is negative; use 0 or more")
    if len(table) <= best + worst:
        return table, table.iloc[len(table) :]
    return _needed(table.iloc[:best]), _needed(table.iloc[len(table) - worst :])


def _needed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without a column of causes that says nothing about them."""
    if CAUSE in table.columns and table[CAUSE].isna().all():
        return table.drop(columns=CAUSE)
    return table


def parameter_names(campaign: CampaignRecord, entries: Sequence[Entry]) -> list[str]:
    """Return the flat names of the parameters that are columns, in order; see `ranking`."""
    fixed = flatten(campaign.spec.get("fixed") or {})
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


def scores_of(campaign: CampaignRecord) -> list[str]:
    """Return the metrics that are columns: the one that is optimised, then the others that the campaign names."""
    others = campaign.spec.get("metrics") or ()
    return list(dict.fromkeys([campaign.metric["name"], *(str(name) for name in others)]))


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
