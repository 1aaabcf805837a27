"""Candidates drawn from the density of the good trials, and the best of them by its ratio to that of the bad ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autotune.search.columns import Array, Columns, Ints
from autotune.search.densities import BadDensity, good_density
from autotune.search.groups import Groups
from autotune.search.parzen import Mixture, draw, log_density, log_mass
from autotune.search.sites import Sites
from autotune.search.table import Table

Raw = dict[str, int | float]
_TINY = 1e-300


class GoodDensity:
    """The good group's density; it changes only when the group does.

    Args:
        table: The trials.
        good: Rows of the good group.
        prior_weight: Weight of the prior relative to one observation.
        sites: Of the table's columns.

    Attributes:
        smooth: Estimators of the smooth columns.
        stepped: Those of the stepped columns.
        both: Those of both, in order of the columns.
        spots: Weights of all values of the columns of sites, then of all options.
    """

    def __init__(self, table: Table, good: Ints, prior_weight: float, sites: Sites) -> None:
        columns = table.columns
        mixture = good_density(table, good, prior_weight)
        self.smooth, self.stepped = _part(mixture, columns.smooth), _part(mixture, columns.stepped)
        self.both = _part(mixture, columns.open)
        told = table.spots[good, len(columns.sites) :]
        options = np.bincount((told + sites.option_starts)[told >= 0], minlength=len(sites.option_prior))
        masses = sites.flat(sites.masses(_part(mixture, columns.sites)))
        self.spots = Spots(np.concatenate([masses, options + prior_weight * sites.option_prior]), columns.spots)


class Spots:
    """Categorical distributions, all in one row.

    Args:
        weights: Of all categories, one distribution after the other.
        sizes: Number of categories of each.
    """

    def __init__(self, weights: Array, sizes: list[int]) -> None:
        self.log: Array = np.log(np.maximum(weights, _TINY))
        ends = np.cumsum(np.array(sizes, dtype=np.int64))
        self._starts: Ints = ends - np.array(sizes, dtype=np.int64)
        self._rows: Ints = np.arange(len(sizes))
        self._first, self._last = self._starts[:, None], ends[:, None] - 1
        total = np.add.reduceat(weights, self._starts) if sizes else weights
        self._cumulative = np.cumsum(weights / np.repeat(total, sizes))

    def best(self, score: Array, count: int, rng: np.random.Generator) -> Ints:
        """Return the best of ``count`` draws of each distribution.

        Args:
            score: Score of all categories.
            count: Number of draws.
            rng: Random numbers.
        """
        rows = self._rows
        at = np.searchsorted(self._cumulative, rng.random((len(rows), count)) + rows[:, None], side="right")
        np.minimum(np.maximum(at, self._first, out=at), self._last, out=at)
        return np.asarray(at[rows, np.argmax(score[at], axis=1)] - self._starts)


class Proposer:
    """Proposes decisions, each parameter on its own as ``hyperopt.tpe.suggest`` does.

    Values of parameters that have few of them are drawn as categories, with the masses that the truncated mixture
    gives them: that is the same distribution.

    Args:
        table: The trials.
        groups: Their groups, in step with the table.
        prior_weight: Weight of the prior relative to one observation.
        sites: Of the table's columns.
        good: The good group's density, if it is known from before.
    """

    def __init__(
        self, table: Table, groups: Groups, prior_weight: float, sites: Sites, good: GoodDensity | None = None
    ) -> None:
        self._columns = table.columns
        self._bad = BadDensity(table, groups, prior_weight, sites)
        self.good = good if good is not None else GoodDensity(table, groups.good, prior_weight, sites)
        options = self._bad.option_weights() + prior_weight * sites.option_prior
        bad = np.concatenate([sites.flat(self._bad.site_masses()), options])
        self._spot_score = self.good.spots.log - np.log(np.maximum(bad, _TINY))

    def propose(self, count: int, rng: np.random.Generator) -> Raw:
        """Return decisions by label, of all parameters, also of those that turn out not to be active.

        Args:
            count: Number of candidates per parameter.
            rng: Random numbers.
        """
        columns = self._columns
        spots = self.good.spots.best(self._spot_score, count, rng)
        places = np.zeros((len(columns.numeric), count))
        index = low = high = places[:0]
        score = np.zeros_like(places)
        if len(columns.open):
            places[columns.open] = draw(self.good.both, columns.open_low, columns.open_high, count, rng)
            if len(columns.smooth):
                score[columns.smooth] = log_density(self.good.smooth, places[columns.smooth])
            if len(columns.stepped):
                index, low, high = columns.round(places[columns.stepped])
                score[columns.stepped] = log_mass(self.good.stepped, low, high)
            score -= self._bad.log(places, low, high)
        best = np.argmax(score, axis=1)
        chosen = places[np.arange(len(best)), best]
        return columns.decisions(chosen, index[np.arange(len(index)), best[columns.stepped]], spots)


def active(columns: Columns, decided: Mapping[str, int | float]) -> Raw:
    """Return those of all decisions that are active, parents before children."""
    found: Raw = {}
    for label, condition in columns.conditions.items():
        if condition is None or found.get(condition[0]) == condition[1]:
            found[label] = decided[label]
    return found


def _part(mixture: Mixture, columns: Ints) -> Mixture:
    return Mixture(*(part[columns] for part in mixture))
