"""Product kernels: the density of a group of trials over several parameters together, kept in step with the group.

Between two proposals few trials come or go, and few kernels change their width. So what the density needs of a kernel
in one parameter is kept until its width there changes: a smooth parameter takes part with two rows of a matrix
product, one of few values with the logarithms of the masses of all its values.
"""

from __future__ import annotations

import numpy as np

from autotune.search.columns import Array, Ints
from autotune.search.parzen import FINEST, forgetting, normal_cdf
from autotune.search.sites import Sites
from autotune.search.table import Table

_TINY = 1e-300


class Kernels:
    """Density of one group of trials over some parameters; the last kernel is the prior's.

    Each trial is a product of one kernel per parameter. Of a numeric one that is a truncated normal distribution at the
    trial's place, as wide as the larger distance to its neighbours among the trials (of a single one: to the farther
    end of the range), not below 1 / min(100, n + 2) of the range nor above all of it; of a choice it is 1 for the
    trial's own option and one prior weight shared out over all kernels.

    What it holds after `update` follows from the rows alone, to the last bit.

    Args:
        table: The trials.
        numeric: Numbers of the numeric columns.
        choices: Numbers of the choices.
        prior_weight: Weight of the prior relative to one trial.
        sites: Of the table's columns.
    """

    def __init__(self, table: Table, numeric: list[int], choices: list[int], prior_weight: float, sites: Sites) -> None:
        columns = table.columns
        self._table, self._sites, self._prior_weight = table, sites, prior_weight
        self._columns = columns
        self._numeric: Ints = np.array(numeric, dtype=np.int64)
        self._low, self._high = columns.low[self._numeric], columns.high[self._numeric]
        self._smooth: Ints = np.flatnonzero(np.isin(self._numeric, columns.smooth))
        self._stepped: Ints = np.flatnonzero(np.isin(self._numeric, columns.stepped))
        self._sited: Ints = np.flatnonzero(np.isin(self._numeric, columns.sites))
        self._site: Ints = np.searchsorted(columns.sites, self._numeric[self._sited])  # which of all columns of sites
        definitions = list(columns.choices.values())
        self._options = [definitions[k] for k in choices]
        self._choice_spots = [len(columns.sites) + k for k in choices]
        self._reset()

    def _reset(self) -> None:
        """Begin with the prior alone."""
        d, most = len(self._numeric), self._sites.edges.shape[1] - 1
        self._rows: Ints = np.zeros(0, dtype=np.int64)
        self._order: Ints = np.zeros((d, 0), dtype=np.int64)
        self._means: Array = np.zeros((d, 1))
        self._sigmas: Array = np.ones((d, 1))
        self._constants: Array = np.zeros((d, 1))
        self._factors: Array = np.zeros((2 * len(self._smooth), 1))
        self._masses: Array = np.zeros((len(self._sited), most, 1))
        self._weights: Array = np.ones(1)
        self._compute(np.ones((d, 1), dtype=bool))

    def update(self, rows: Ints) -> None:
        """Take these rows of the table, sorted, as the group.

        Args:
            rows: Trials in which all the parameters are active.
        """
        if len(rows) == len(self._rows) and bool(np.array_equal(rows, self._rows)):
            return
        n, old = len(rows), self._rows
        to = np.searchsorted(rows, old)
        kept = to < n
        kept[kept] = rows[to[kept]] == old[kept]
        to = np.append(to[kept], n)  # new numbers of the kernels that stay, the prior's last
        source = np.append(np.flatnonzero(kept), len(old))
        fresh = np.ones(n, dtype=bool)
        fresh[to[:-1]] = False
        for name in ("_means", "_sigmas", "_constants", "_factors", "_masses"):
            before = getattr(self, name)
            after = np.full((*before.shape[:-1], n + 1), np.nan)
            after[..., to] = before[..., source]
            setattr(self, name, after)
        self._means[:, :n][:, fresh] = self._table.places[rows[fresh]][:, self._numeric].T
        self._sort(kept, to[:-1], np.flatnonzero(fresh))
        self._rows = rows
        sigmas = np.append(self._widths(), np.ones((len(self._numeric), 1)), axis=1)
        changed = sigmas != self._sigmas
        self._sigmas = sigmas
        self._compute(changed)
        weights = np.append(forgetting(np.array([float(n)]), n)[0], self._prior_weight)
        self._weights = weights / weights.sum()

    def _sort(self, kept: np.ndarray, to: Ints, fresh: Ints) -> None:
        """Find the order of the trials in each column; equal ones in order of time."""
        n = len(to) + len(fresh)
        places = self._means[:, :n]
        if not len(to) or (len(fresh) and fresh[0] < to[-1]):
            self._order = np.argsort(places, axis=1, kind="stable")
            return
        numbers = np.full(len(kept), -1, dtype=np.int64)
        numbers[kept] = to
        known = numbers[self._order]
        known = known[known >= 0].reshape(len(known), len(to))  # as many are left in each column
        nearly = np.append(known, np.broadcast_to(fresh, (len(known), len(fresh))), axis=1)
        again = np.argsort(np.take_along_axis(places, nearly, axis=1), axis=1, kind="stable")
        self._order = np.take_along_axis(nearly, again, axis=1)

    def _widths(self) -> Array:
        """Return the widths of the trials' kernels, (n_numeric, n)."""
        places, n = self._means[:, :-1], self._means.shape[1] - 1
        if n < 2:
            return np.minimum(np.abs(places) + 0.5, 1.0)  # the distance to the farther end of a range
        gaps = np.zeros((len(places), n + 1))
        gaps[:, 1:-1] = np.diff(np.take_along_axis(places, self._order, axis=1), axis=1)
        found = np.empty_like(places)
        np.put_along_axis(found, self._order, np.maximum(gaps[:, :-1], gaps[:, 1:]), axis=1)
        return np.asarray(np.clip(found, 1.0 / min(FINEST, n + 2.0), 1.0))

    def _compute(self, changed: np.ndarray) -> None:
        """Compute anew what is kept of the kernels, in the columns in which they changed."""
        if len(self._stepped) or len(self._smooth):
            for part in (self._smooth, self._stepped):
                which, kernel = np.nonzero(changed[part])
                column = part[which]
                mean, inverse = self._means[column, kernel], 1.0 / self._sigmas[column, kernel]
                ends = normal_cdf((np.stack([self._high[column], self._low[column]]) - mean) * inverse)
                constant = -np.log(ends[0] - ends[1])
                if part is self._smooth:
                    scaled = mean * inverse
                    constant += np.log(inverse) - 0.5 * scaled * scaled
                    self._factors[2 * which, kernel] = -0.5 * inverse * inverse
                    self._factors[2 * which + 1, kernel] = scaled * inverse
                self._constants[column, kernel] = constant
        if len(self._sited):
            which, kernel = np.nonzero(changed[self._sited])
            column = self._sited[which]
            mean, sigma = self._means[column, kernel], self._sigmas[column, kernel]
            cdf = normal_cdf((self._sites.edges[self._site[which]] - mean[:, None]) / sigma[:, None])
            masses = np.maximum(cdf[:, 1:] - cdf[:, :-1], _TINY) / (cdf[:, -1:] - cdf[:, :1])
            self._masses[which, :, kernel] = np.log(masses)
            self._constants[column, kernel] = 0.0

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Ints]:
        """Return places (count, n_numeric), not yet rounded, and options (count, n_choices)."""
        kernel = np.searchsorted(np.cumsum(self._weights)[:-1], rng.random(count), side="right")
        x = np.full((count, len(self._numeric)), np.inf)
        means, sigmas = self._means[:, kernel].T, self._sigmas[:, kernel].T
        while True:
            outside = (x < self._low) | (x >= self._high)
            if not bool(outside.any()):
                break
            x = np.where(outside, means + sigmas * rng.standard_normal(x.shape), x)
        options = np.zeros((count, len(self._options)), dtype=np.int64)
        for i, (own, alike, other, prior) in enumerate(self._shares()):
            points = rng.random(count)
            shares = np.tile(other, (count, 1))
            is_trial = kernel < len(own)
            mine = own[kernel[is_trial]]
            shares[np.flatnonzero(is_trial), mine] = alike[mine]
            shares[~is_trial] = prior
            options[:, i] = (points[:, None] >= np.cumsum(shares, axis=1)[:, :-1]).sum(axis=1)
        return x, options

    def _shares(self) -> list[tuple[Ints, Array, Array, Array]]:
        """Return of each choice the trials' options, an option's probability where it is the trial's own and where it
        is not, and the prior's probabilities."""
        found = []
        for choice, spot in zip(self._options, self._choice_spots, strict=True):
            own = self._table.spots[self._rows, spot]
            size = len(choice.options)
            prior = np.array(choice.weights or [1.0 / size] * size)
            other = prior * size * self._prior_weight / (len(own) + 1)
            total = other.sum() + 1.0
            found.append((own, (other + 1.0) / total, other / total, prior))
        return found

    def log(self, x: Array, options: Ints) -> Array:
        """Return the log density (mass where quantised) of candidates, but for a constant of the parameters.

        Args:
            x: Places, (count, n_numeric).
            options: Options, (count, n_choices).
        """
        total = np.tile(self._constants.sum(axis=0), (len(x), 1))
        if len(self._smooth):
            features = np.empty((len(x), 2 * len(self._smooth)))
            features[:, 1::2] = x[:, self._smooth]
            np.square(features[:, 1::2], out=features[:, ::2])
            total += features @ self._factors
        for i, (column, site) in enumerate(zip(self._sited.tolist(), self._site.tolist(), strict=True)):
            total += self._masses[i, self._sites.spot(site, x[:, column])]
        for column in self._stepped.tolist():
            low, high = self._columns.round_one(x[:, column], int(self._numeric[column]))
            mean, sigma = self._means[column], self._sigmas[column]
            cdf = normal_cdf((np.stack([high, low])[:, :, None] - mean) / sigma)
            total += np.log(np.maximum(cdf[0] - cdf[1], _TINY))
        for i, (own, alike, other, prior) in enumerate(self._shares()):
            logs = np.empty((len(prior), total.shape[1]))
            logs[:, :-1] = np.log(other)[:, None]
            logs[own, np.arange(len(own))] = np.log(alike)[own]
            logs[:, -1] = np.log(prior)
            total += logs[options[:, i]]
        most = total.max(axis=1, keepdims=True)
        total -= most
        np.exp(total, out=total)
        return np.asarray(np.log(total @ self._weights) + most[:, 0])
