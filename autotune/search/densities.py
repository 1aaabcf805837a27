"""Log density of the bad group at candidates, from the tally where there are many trials, else directly.

All are without constants of the column, which do not matter to the best candidate of a column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from autotune.search.columns import Array, Columns, Ints
from autotune.search.groups import Groups
from autotune.search.parzen import FINEST, Mixture, log_density, log_mass, mixtures, normal_cdf
from autotune.search.sites import Sites
from autotune.search.table import Table
from autotune.search.tally import LEAST, MARGIN, NODES, UNIT

_TAPS = np.arange(-25, 26)  # nodes on either side of a place: 6 widths
_SIGMA = math.sqrt(NODES**2 - 1.0 / 3.0)  # in nodes; the B-spline that spread the observations has variance 1/3
_ALONE = 4096  # observations from which on a column is computed alone
_TINY = 1e-300


class BadDensity:
    """The bad group's density for one proposal.

    Args:
        table: The trials.
        groups: Their groups, in step with it.
        prior_weight: Weight of the prior relative to one observation.
        sites: Of the table's columns.
    """

    def __init__(self, table: Table, groups: Groups, prior_weight: float, sites: Sites) -> None:
        self._columns: Columns = table.columns
        self._table, self._groups, self._tally = table, groups, groups.tally
        self._prior = prior_weight
        self._sites = sites
        self._start, self._slope = self._tally.weights()
        # Unbounded columns and those with few observations are done directly.
        self._direct = np.ones(len(self._columns.numeric), dtype=bool)
        self._direct[self._tally.numeric] = self._tally.count[: len(self._tally.numeric)] < LEAST
        self._wide: tuple[Ints, Array, Array, Array] = (
            np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros(0),
        )  # fmt: skip
        self._weigh()

    def _weigh(self) -> None:
        """Make the weighted histograms, without the wide components."""
        tally, table = self._tally, self._table
        grids = len(tally.grids)
        end = int(tally.starts[grids]) if grids < tally.width else len(tally.ones)
        of_cell = tally.of_cell[end:]
        self._cells: Array = np.empty(len(tally.ones))
        self._cells[end:] = self._start[of_cell] * tally.ones[end:] + self._slope[of_cell] * tally.ranks[end:]
        if grids:
            on_grid = self._cells[:end].reshape(grids, -1)
            np.multiply(tally.ranks[:end].reshape(grids, -1), self._slope[:grids, None], out=on_grid)
            on_grid += tally.ones[:end].reshape(grids, -1) * self._start[:grids, None]
        rows, live = self._groups.latest(len(table))
        cells, weights = tally.spread(table.places[rows], table.spots[rows])
        missing = live * (1.0 - self._start - self._slope * self._groups.blocks.numbers(rows))
        np.add.at(self._cells, cells, weights * missing[:, tally.entry_columns])
        if bool(np.all(self._direct)):
            return
        whose, wide, places, sigmas = tally.wide()
        number = self._groups.blocks.numbers(wide)[np.arange(len(wide)), whose]
        weight = self._start[whose] + self._slope[whose] * number
        weight[number >= tally.count[whose] - 25] = 1.0
        self._take_out(whose, wide, places, weight)
        self._wide = (whose, places, sigmas, weight)

    def _take_out(self, whose: Ints, rows: Ints, places: Array, weight: Array) -> None:
        tally = self._tally
        grids = len(tally.grids)
        on_grid = whose < grids
        cells, parts = tally.spread_one(whose[on_grid], places[on_grid])
        np.subtract.at(self._cells, cells, parts * weight[on_grid, None])
        rest = ~on_grid
        at = tally.starts[whose[rest]] + self._table.spots[rows[rest], whose[rest] - grids]
        np.subtract.at(self._cells, at, weight[rest])

    def log(self, places: Array, low: Array, high: Array) -> Array:
        """Return the log densities of candidates, or log masses where quantised; (n_numeric, n_candidates).

        Those of the columns of sites are missing.

        Args:
            places: Candidates, (n_numeric, n_candidates).
            low: Lower ends of the intervals of candidates in the stepped columns, (n_stepped, n_candidates).
            high: Upper ends.
        """
        columns, grids = self._columns, self._tally.grids
        ends_low, ends_high = places, places
        if len(columns.stepped):
            ends_low, ends_high = np.zeros_like(places), np.zeros_like(places)
            ends_low[columns.stepped], ends_high[columns.stepped] = low, high
        found = np.zeros_like(places)
        if not bool(self._direct[grids].all()):
            values = np.zeros((len(grids), places.shape[1]))
            self._grids(values, places, ends_low, ends_high)
            self._add_wide(values, places, ends_low, ends_high)
            found[grids] = np.log(np.maximum(values, _TINY))
        for mixture, at in self._mixtures(columns.smooth):
            found[at] = log_density(mixture, places[at])
        for mixture, at in self._mixtures(columns.stepped):
            found[at] = log_mass(mixture, ends_low[at], ends_high[at])
        return found

    def site_masses(self) -> Array:
        """Return the mass of each value of the columns of sites, (n_sites, most values)."""
        tally, sites, grids = self._tally, self._sites, len(self._tally.grids)
        cells = np.zeros_like(sites.prior)
        for k in range(len(cells)):
            start, size = int(tally.starts[grids + k]), int(tally.sizes[grids + k])
            cells[k, :size] = self._cells[start : start + size]
        mass = np.einsum("dkv,dv->dk", sites.kernels, cells) + self._prior * sites.prior
        whose, means, sigmas, weights = self._wide
        mine = whose >= grids
        if bool(mine.any()):
            at = whose[mine] - grids
            cdf = normal_cdf((sites.edges[at] - means[mine, None]) / sigmas[mine, None])
            mass += _sums(len(mass), at, weights[mine], cdf[:, 1:] - cdf[:, :-1])
        for mixture, at in self._mixtures(tally.sites):
            which = np.searchsorted(tally.sites, at)
            mass[which] = sites.masses(mixture, which)
        return np.asarray(mass)

    def _grids(self, values: Array, places: Array, low: Array, high: Array) -> None:
        grids = self._tally.grids
        width = int(self._tally.sizes[0])
        cells = self._cells[: width * len(grids)].reshape(len(grids), width) / UNIT
        smooth = self._tally.smooth
        if bool(np.any(smooth)):
            x = places[grids[smooth]]
            u, around, _ = _around(x, cells, np.flatnonzero(smooth))
            np.multiply(u, u, out=u)
            np.multiply(u, -0.5 / _SIGMA**2, out=u)
            np.exp(u, out=u)
            density = np.einsum("dct,dct->dc", u, around) * (NODES * FINEST / _SIGMA)
            values[np.flatnonzero(smooth)] = density + self._prior * np.exp(-0.5 * x * x)
        if not bool(np.all(smooth)):
            fine = np.flatnonzero(~smooth)
            total = np.cumsum(cells, axis=1)
            cdf = []
            for ends in (high[grids[fine]], low[grids[fine]]):
                u, around, first = _around(ends, cells, fine)
                inner = np.einsum("dct,dct->dc", normal_cdf(u / _SIGMA), around)
                cdf.append(inner + total[fine[:, None], first - 1] + self._prior * normal_cdf(ends))
            values[fine] = cdf[0] - cdf[1]

    def _add_wide(self, values: Array, places: Array, low: Array, high: Array) -> None:
        grids = self._tally.grids
        whose, means, sigmas, weights = self._wide
        on_grid = whose < len(grids)
        if not bool(on_grid.all()):
            whose, means, sigmas, weights = whose[on_grid], means[on_grid], sigmas[on_grid], weights[on_grid]
        smooth = self._tally.smooth[whose]
        if bool(smooth.any()):
            u = (places[grids[whose[smooth]]] - means[smooth, None]) / sigmas[smooth, None]
            np.multiply(u, u, out=u)
            np.multiply(u, -0.5, out=u)
            part = np.exp(u, out=u)
            values += _sums(len(values), whose[smooth], weights[smooth] / sigmas[smooth], part)
        if not bool(smooth.all()):
            at, mean, sigma = grids[whose[~smooth]], means[~smooth, None], sigmas[~smooth, None]
            n = high.shape[1]
            cdf = normal_cdf((np.concatenate([high[at], low[at]], axis=1) - mean) / sigma)
            values += _sums(len(values), whose[~smooth], weights[~smooth], cdf[:, :n] - cdf[:, n:])

    def _mixtures(self, columns: Ints) -> Iterator[tuple[Mixture, Ints]]:
        """Yield mixtures, made directly of all observations, of those columns that are done so."""
        waiting = columns[self._direct[columns]]
        if not len(waiting):
            return
        rows = np.flatnonzero(self._groups.bad[: len(self._table)])
        few: list[tuple[int, Array]] = []
        for d in waiting.tolist():
            here = self._table.places[rows, d]
            here = here[~np.isnan(here)]
            if len(here) < _ALONE:
                few.append((d, here))
            else:
                yield mixtures(here[None], self._prior), np.array([d])
        if few:
            yield mixtures(_padded([here for _, here in few]), self._prior), np.array([d for d, _ in few])

    def option_weights(self) -> Array:
        """Return the weights of the options of all choices in the bad group, without the prior's."""
        return self._cells[self._tally.options_start :]


def good_density(table: Table, good: Ints, prior_weight: float) -> Mixture:
    """Return the estimators of the good group."""
    places = table.places[good].T
    if not bool(np.isnan(places).any()):
        return mixtures(places, prior_weight)
    order = np.argsort(np.isnan(places), axis=1, kind="stable")
    return mixtures(np.take_along_axis(places, order, axis=1), prior_weight)


def _sums(count: int, whose: Ints, weights: Array, parts: Array) -> Array:
    """Return weighted sums of rows by whose they are, (count, n)."""
    shares = np.zeros((count, len(parts)))
    shares[whose, np.arange(len(parts))] = weights
    return np.asarray(shares @ parts)


def _padded(arrays: list[Array]) -> Array:
    padded = np.full((len(arrays), max(len(a) for a in arrays)), np.nan)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _around(x: Array, cells: Array, grids: Ints) -> tuple[Array, Array, Ints]:
    """Look around places in histograms.

    Args:
        x: Places, shape (len(grids), n).
        cells: Histograms of all grids, (n_grids, n_nodes).
        grids: Which histogram each row of the places is for.

    Returns:
        Distances, in nodes, to the nodes around each place, what is in those, both (len(grids), n, n_taps), and the
        first of these nodes.
    """
    position = (x + 0.5) * (NODES * FINEST) + MARGIN
    nearest = np.rint(position)
    first = nearest.astype(np.int64) + _TAPS[0]
    rows, step = cells.strides
    shape = (cells.shape[0], cells.shape[1] - len(_TAPS) + 1, len(_TAPS))
    windows = np.lib.stride_tricks.as_strided(cells, shape, (rows, step, step), writeable=False)
    return (position - nearest)[:, :, None] - _TAPS, windows[grids[:, None], first], first
