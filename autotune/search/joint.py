"""The multivariate kind of TPE: kernels over whole configurations instead of one model per parameter.

Each trial of a group of trials is one kernel, a product over the parameters; so is the prior. Candidates are whole
configurations, and the best of them has the largest ratio of the two joint densities. Widths and the kernels of
categories are those of Optuna 5 (``_ParzenEstimator``): in each parameter a normal kernel has the larger distance to
its neighbours among the trials as its width, not below 1 / min(100, n + 2) of the range; a category is 1 for the
trial's own and shares out one prior weight over all kernels.

Parameters that are active under the same condition are modelled together, from the trials in which they are, and
apart from those under other conditions (``group=True`` in Optuna).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autotune.search.candidates import Raw
from autotune.search.columns import Array, Columns, Ints
from autotune.search.groups import Groups
from autotune.search.parzen import FINEST, forgetting, normal_cdf
from autotune.search.sites import Sites
from autotune.search.table import Table

MOST = 2000  # latest bad trials that are kernels
_TINY = 1e-300
Kernel = Callable[[Array], Array]


class JointProposer:
    """Proposes decisions from joint densities; the counterpart of `candidates.Proposer`.

    Args:
        table: The trials.
        groups: Their groups, in step with the table.
        prior_weight: Weight of the prior relative to one trial.
        sites: Of the table's columns.
    """

    def __init__(self, table: Table, groups: Groups, prior_weight: float, sites: Sites) -> None:
        self._table, self._sites = table, sites
        self._columns: Columns = table.columns
        bad = np.flatnonzero(groups.bad[: len(table)])
        self._parts = [
            (
                numeric,
                choices,
                _Joint(table, self._rows(groups.good, numeric, choices), numeric, choices, prior_weight, sites),
                _Joint(table, self._rows(bad, numeric, choices)[-MOST:], numeric, choices, prior_weight, sites),
            )
            for numeric, choices in self._columns.parts()
        ]

    def _rows(self, rows: Ints, numeric: list[int], choices: list[int]) -> Ints:
        """Return those rows in which the parameters of a part are active."""
        if numeric:
            return np.asarray(rows[~np.isnan(self._table.places[rows, numeric[0]])])
        return np.asarray(rows[self._table.spots[rows, len(self._columns.sites) + choices[0]] >= 0])

    def propose(self, count: int, rng: np.random.Generator) -> Raw:
        """Return decisions by label, of all parameters, also of those that turn out not to be active.

        Args:
            count: Number of candidates.
            rng: Random numbers.
        """
        columns = self._columns
        places = np.zeros(len(columns.numeric))
        options = np.zeros(len(columns.choices), dtype=np.int64)
        for numeric, choices, good, bad in self._parts:
            x, chosen = good.draw(count, rng)
            best = int(np.argmax(good.log(x, chosen) - bad.log(x, chosen)))
            places[numeric], options[choices] = x[best], chosen[best]
        index, _, _ = columns.round(places[columns.stepped, None])
        spots = [self._sites.spot(k, places[d]) for k, d in enumerate(columns.sites.tolist())]
        return columns.decisions(places, index[:, 0], np.concatenate([np.array(spots, dtype=np.int64), options]))


class _Joint:
    """Density of one group of trials over the parameters of one part; the last kernel is the prior's."""

    def __init__(
        self, table: Table, rows: Ints, numeric: list[int], choices: list[int], prior_weight: float, sites: Sites
    ) -> None:
        columns = table.columns
        self._columns, self._sites = columns, sites
        self._numeric, self._choices = numeric, choices
        n = len(rows)
        weights = forgetting(np.array([float(n)]), n)[0]
        weights = np.append(weights, prior_weight)
        self._weights: Array = weights / weights.sum()
        self._means: Array = np.vstack([table.places[rows][:, numeric], np.zeros((1, len(numeric)))])
        self._sigmas = np.vstack([_widths(self._means[:-1]), np.ones((1, len(numeric)))])
        self._low, self._high = columns.low[numeric], columns.high[numeric]
        own = table.spots[rows][:, [len(columns.sites) + k for k in choices]]
        self._options = [self._shares(own[:, i], choices[i], prior_weight) for i in range(len(choices))]

    def _shares(self, own: Ints, k: int, prior_weight: float) -> Array:
        """Return the probability of each option under each kernel, (n_kernels, n_options)."""
        choice = list(self._columns.choices.values())[k]
        size = len(choice.options)
        prior = np.array(choice.weights or [1.0 / size] * size)
        shares = np.tile(prior * size * prior_weight / (len(own) + 1), (len(own) + 1, 1))
        shares[np.arange(len(own)), own] += 1.0
        shares[-1] = prior
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Ints]:
        """Return places (count, n_numeric), not yet rounded, and options (count, n_choices)."""
        kernel = np.searchsorted(np.cumsum(self._weights)[:-1], rng.random(count), side="right")
        x = np.full((count, len(self._numeric)), np.inf)
        means, sigmas = self._means[kernel], self._sigmas[kernel]
        while True:
            outside = (x < self._low) | (x >= self._high)
            if not bool(outside.any()):
                break
            x = np.where(outside, means + sigmas * rng.standard_normal(x.shape), x)
        options = np.zeros((count, len(self._choices)), dtype=np.int64)
        for i, shares in enumerate(self._options):
            points = rng.random(count)
            cumulative = np.cumsum(shares[kernel], axis=1)[:, :-1]
            options[:, i] = (points[:, None] >= cumulative).sum(axis=1)
        return x, options

    def log(self, x: Array, options: Ints) -> Array:
        """Return the log density (mass where quantised) of candidates."""
        total = np.zeros((len(x), len(self._weights)))
        smooth, steps = self._columns.smooth.tolist(), self._columns.stepped.tolist()
        for i, d in enumerate(self._numeric):
            low, high = self._low[i], self._high[i]
            means, inverse = self._means[:, i], 1.0 / self._sigmas[:, i]
            if np.isfinite(low):
                ends = normal_cdf((np.array([high, low])[:, None] - means) * inverse)
                total -= np.log(ends[0] - ends[1])
            if d in smooth:
                u = (x[:, i, None] - means) * inverse
                total -= 0.5 * u * u + np.log(self._sigmas[:, i])
                continue
            if d in steps:
                z = self._columns.round_one(x[:, i], d)
            else:
                k = int(np.searchsorted(self._columns.sites, d))
                spots = self._sites.spot(k, x[:, i])
                z = self._sites.edges[k, spots], self._sites.edges[k, spots + 1]
            mass = normal_cdf((z[1][:, None] - means) * inverse) - normal_cdf((z[0][:, None] - means) * inverse)
            total += np.log(np.maximum(mass, _TINY))
        for i, shares in enumerate(self._options):
            total += np.log(shares[:, options[:, i]].T)
        most = total.max(axis=1, keepdims=True)
        return np.asarray(np.log(np.exp(total - most) @ self._weights) + most[:, 0])


def _widths(places: Array) -> Array:
    """Return the widths of kernels, shape (n_trials, n_parameters) as the places."""
    n = len(places)
    if n < 2:
        return np.abs(places) + 0.5  # the distance to the farther end of the range
    order = np.argsort(places, axis=0, kind="stable")
    gaps = np.zeros((n + 1, places.shape[1]))
    gaps[1:-1] = np.diff(np.take_along_axis(places, order, axis=0), axis=0)
    found = np.empty_like(places)
    np.put_along_axis(found, order, np.maximum(gaps[:-1], gaps[1:]), axis=0)
    return np.asarray(np.clip(found, 1.0 / min(FINEST, n + 2.0), 1.0))
