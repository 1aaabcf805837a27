"""How much each parameter matters: permutation importance on random forests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

LEAST = 20
"""With fewer configurations nothing is computed."""

MOST = 1000
"""Of more configurations than so many, so many are used, evenly chosen."""

_FOLDS, _REPEATS, _TREES, _SHUFFLES = 5, 4, 60, 5
_LEAST_EXPLAINED = 0.2
_LEAST_PER_PARAMETER = 5


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much each parameter matters.

    Attributes:
        table: One row per parameter, the most important first: ``parameter, importance, spread, active``. Importance
            is by how much the share of explained variance (R2) of held-out scores falls when the parameter's values are
            shuffled among the configurations that have it, whose share is ``active``; the spread is its standard
            deviation over forests.
        explained: R2 of the forests on configurations that they have not seen, mean over forests.
        used: Number of configurations that were used.
        warning: Why the figures mean little, or nothing.
    """

    table: pd.DataFrame
    explained: float
    used: int
    warning: str = ""


def importance(columns: Mapping[str, Sequence[float]], scores: Sequence[float]) -> Importance:
    """Return the permutation importance of parameters.

    Forests of scikit-learn are fitted to the ranks of the scores, scaled to 0 .. 1: a few very bad configurations would
    otherwise decide everything. Five-fold cross-validation, four times; each importance is measured on the
    configurations that the forest has not seen, as in Breiman, Random Forests (2001), section 10. A parameter that only
    some configurations have (NaN elsewhere) is shuffled among those, so that no impossible configuration is asked for.
    The same input gives the same output.

    Args:
        columns: Parameter -> its values as numbers, one per configuration; NaN where it has none.
        scores: Finite scores.
    """
    names = list(columns)
    values = np.column_stack([np.asarray(columns[name], dtype=float) for name in names]) if names else np.empty((0, 0))
    target = np.asarray(scores, dtype=float)
    if len(target) > MOST:
        kept = np.linspace(0, len(target) - 1, MOST).round().astype(int)
        values, target = values[kept], target[kept]
    reason = _too_little(values, target)
    if reason:
        return Importance(table=_table([], np.empty((0, 0)), np.empty(0)), explained=math.nan, used=len(target),
                          warning=reason)  # fmt: skip
    target = _ranks(target)
    drops, explained = [], []
    for repeat in range(_REPEATS):
        folds = KFold(_FOLDS, shuffle=True, random_state=repeat)
        for number, (train, held_out) in enumerate(folds.split(values)):
            forest = RandomForestRegressor(_TREES, min_samples_leaf=2, max_features=0.7, n_jobs=1,
                                           random_state=repeat * _FOLDS + number)  # fmt: skip
            forest.fit(values[train], target[train])
            explained.append(_explained(target[held_out], forest.predict(values[held_out]), target.var()))
            drops.append(_drops(forest, values[held_out], target[held_out], target.var()))
    active = (~np.isnan(values)).mean(axis=0)
    table, mean = _table(names, np.asarray(drops), active), float(np.mean(explained))
    return Importance(table=table, explained=mean, used=len(target), warning=_doubt(mean, len(target), len(names)))


def _too_little(values: np.ndarray, target: np.ndarray) -> str:
    """Return why nothing can be computed, or nothing."""
    if len(target) < LEAST:
        return f"{len(target)} finished configurations are too few to say which parameter matters; {LEAST} are needed."
    if not values.size:
        return "No parameter is searched: there is nothing to compare."
    if np.ptp(target) == 0:
        return "All scores are the same: no parameter matters here."
    return ""


def _ranks(target: np.ndarray) -> np.ndarray:
    """Return ranks between 0 and 1, equal scores with equal ranks."""
    ranks: np.ndarray = pd.Series(target).rank(method="average").to_numpy()
    return (ranks - 1) / max(len(target) - 1, 1)


def _explained(target: np.ndarray, predicted: np.ndarray, variance: float) -> float:
    return float(1.0 - np.mean((target - predicted) ** 2) / variance)


def _drops(forest: Any, values: np.ndarray, target: np.ndarray, variance: float) -> np.ndarray:
    """Return for each parameter by how much R2 falls when it is shuffled among the rows that have it."""
    rng = np.random.default_rng(0)
    shuffled = np.tile(values, (values.shape[1], _SHUFFLES, 1, 1))  # (parameter, shuffle, row, parameter)
    for column in range(values.shape[1]):
        rows = np.flatnonzero(~np.isnan(values[:, column]))
        for number in range(_SHUFFLES):
            shuffled[column, number, rows, column] = values[rng.permutation(rows), column]
    predicted = forest.predict(shuffled.reshape(-1, values.shape[1])).reshape(shuffled.shape[:3])
    before = np.mean((target - forest.predict(values)) ** 2)
    after = np.mean((target - predicted) ** 2, axis=(1, 2))
    drops: np.ndarray = (after - before) / variance
    return drops


def _table(names: Sequence[str], drops: np.ndarray, active: np.ndarray) -> pd.DataFrame:
    if not names:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in
                             (("parameter", "object"), ("importance", "float64"), ("spread", "float64"),
                              ("active", "float64"))})  # fmt: skip
    table = pd.DataFrame(
        {"parameter": list(names), "importance": drops.mean(axis=0), "spread": drops.std(axis=0, ddof=1),
         "active": active}
    )  # fmt: skip
    return table.sort_values(["importance", "parameter"], ascending=[False, True], ignore_index=True)


def _doubt(explained: float, used: int, parameters: int) -> str:
    """Return why the figures mean little, or nothing."""
    if explained < _LEAST_EXPLAINED:
        return (
            f"The forests explain {max(explained, 0.0):.0%} of held-out scores: too little for these figures to mean "
            "anything."
        )
    if used < _LEAST_PER_PARAMETER * parameters:
        return f"{used} configurations for {parameters} parameters are few: take the order as a hint."
    return ""
