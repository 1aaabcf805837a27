"""Product kernels: the density of a group of trials over several parameters together, kept in step with the group.

The logarithm of a kernel at a configuration is a sum over its parameters, and so the product of two vectors: numbers
of the configuration (of a smooth parameter its place, the square of it, and 1; of one with few values, or a choice, a
1 for the value that it has) and numbers of the kernel. All kernels at all candidates are one product of matrices.

Between two proposals few trials come or go, and few kernels change their width: only what changed is computed anew.
"""

from __future__ import annotations

import numpy as np

from autotune.search.columns import Array, Ints
from autotune.search.parzen import FINEST, forgetting, normal_cdf
from autotune.search.ranking import Ranking
from autotune.search.sites import Sites
from autotune.search.table import Table

_TINY = 1e-300
_LEAST_LOG = -700.0  # the exponential of less is no normal number, and takes up to 70 times as long
_ROUNDS = 16  # draws at a time, where the first was outside the range, of which the first inside is taken


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
        self._table, self._sites, self._prior_weight, self._columns = table, sites, prior_weight, columns
        self._numeric: Ints = np.array(numeric, dtype=np.int64)
        self._low, self._high = columns.low[self._numeric], columns.high[self._numeric]
        # Positions among the numeric ones.
        self._is_sited = np.isin(self._numeric, columns.sites)
        self._open: Ints = np.flatnonzero(~self._is_sited)
        self._sited: Ints = np.flatnonzero(self._is_sited)
        self._stepped: Ints = np.flatnonzero(np.isin(self._numeric, columns.stepped))
        is_smooth = np.isin(self._numeric, columns.smooth)
        self._smooth: Ints = np.flatnonzero(is_smooth)
        self._is_smooth = is_smooth.astype(np.float64)
        self._site: Ints = np.searchsorted(columns.sites, self._numeric[self._sited])  # which of all columns of sites

        definitions = [list(columns.choices.values())[k] for k in choices]
        self._choice_spots = [len(columns.sites) + k for k in choices]
        counts = np.array([len(c.options) for c in definitions], dtype=np.int64)
        self._option_counts, self._of_option = counts, np.repeat(np.arange(len(counts)), counts)
        self._option_starts: Ints = np.cumsum(counts) - counts
        self._option_prior: Array = np.array(
            [w for c in definitions for w in c.weights or [1.0 / len(c.options)] * len(c.options)]
        )

        self._log_prior: Array = np.log(np.maximum(self._option_prior, _TINY))

        # Rows of what is kept by kernel: means, widths, the constants of open columns, then the factors of the product
        # of matrices: two of each open column, the sum of their constants, those of values and options, and one of no
        # use.
        d, o = len(numeric), len(self._open)
        # By position: which of the open columns it is, or of those of sites.
        self._which = np.where(self._is_sited, np.cumsum(self._is_sited), np.cumsum(~self._is_sited)) - 1
        sizes = np.array([columns.spots[k] for k in self._site.tolist()], dtype=np.int64)
        starts = 2 * o + 1 + np.cumsum(sizes) - sizes
        self._site_starts: Ints = starts
        self._options_start = 2 * o + 1 + int(sizes.sum())
        self._width = self._options_start + int(counts.sum()) + 1
        values = np.arange(self._sites.edges.shape[1] - 1)
        self._site_rows: Ints = np.where(values < sizes[:, None], starts[:, None] + values, self._width - 1)
        self._kept: Array = np.zeros((2 * d + o + self._width, 64))
        self._reset()

    def _reset(self) -> None:
        """Begin with the prior alone."""
        self._rows: Ints = np.zeros(0, dtype=np.int64)
        self._ranking = Ranking(len(self._numeric))
        self._begin, self._count = 0, 0
        means, sigmas, _ = self._views()
        means[:], sigmas[:] = 0.0, 1.0
        columns = np.arange(len(self._numeric))
        self._compute(columns, np.zeros_like(columns))
        self._weigh()
        self._take_options(slice(0))

    def _views(self) -> tuple[Array, Array, Array]:
        """Return means, widths and factors by kernel; (n_numeric or n_factors, count + 1)."""
        d = len(self._numeric)
        now = self._kept[:, self._begin : self._begin + self._count + 1]
        return now[:d], now[d : 2 * d], now[2 * d + len(self._open) :]

    def update(self, rows: Ints, shares: Array | None = None) -> None:
        """Take these rows of the table, sorted, as the group.

        Args:
            rows: Trials in which all the parameters are active.
            shares: What each trial weighs, 1 in the mean; None: all the same but for linear forgetting.
        """
        self._take(rows)
        if shares is not None:
            self._share(shares)

    def _take(self, rows: Ints) -> None:
        old, n, m = self._rows, len(rows), len(self._rows)
        gone = int(old.searchsorted(rows[0])) if n else m
        stay = m - gone
        slides = bool(stay and stay <= n and (rows[:stay] == old[gone:]).all())
        if slides and n == m and not gone:
            return
        fresh: Ints | slice
        to, fresh = (None, self._slide(rows, gone)) if slides else self._rearrange(rows)
        means, sigmas, _ = self._views()
        means[:, fresh] = self._table.places[rows[fresh]].T[self._numeric]
        sigmas[:, fresh] = np.nan
        if n != m:
            self._weigh()
        places = means[:, :-1]
        met = self._ranking.slide(gone, places) if to is None else self._ranking.change(to, places)
        self._widen(met if min(n, m) >= FINEST - 2.0 else None)
        self._take_options(fresh if n == m else slice(n))

    def _slide(self, rows: Ints, gone: int) -> slice:
        """Take out the oldest kernels and make room for younger ones; return the numbers of these."""
        n, m = len(rows), len(self._rows)
        stay = m - gone
        prior = self._kept[:, self._begin + m].copy()
        self._begin += gone
        if self._begin + n + 1 > self._kept.shape[1]:
            grown = np.zeros((len(self._kept), max(64, 2 * (n + 1))))
            grown[:, :stay] = self._kept[:, self._begin : self._begin + stay]
            self._kept, self._begin = grown, 0
        self._rows, self._count = rows, n
        self._kept[:, self._begin + n] = prior
        return slice(stay, n)

    def _rearrange(self, rows: Ints) -> tuple[Ints, Ints]:
        """Make room for rows, whatever came before.

        Returns:
            The new number of each kernel so far, -1 of those that went, and the numbers of the new ones.
        """
        old, n, m = self._rows, len(rows), len(self._rows)
        at = np.searchsorted(rows, old)
        kept = at < n
        kept[kept] = rows[at[kept]] == old[kept]
        to = np.append(at[kept], n)  # new numbers of the kernels that stay, the prior's last
        source = np.append(np.flatnonzero(kept), m)
        self._move(source, to)
        self._rows, self._count = rows, n
        fresh = np.ones(n, dtype=bool)
        fresh[to[:-1]] = False
        numbers = np.flatnonzero(fresh)
        self._views()[2][:, numbers] = 0.0
        return np.where(kept, at, -1), numbers

    def _move(self, source: Ints, to: Ints) -> None:
        """Move kernels to their new numbers; runs that stay side by side together, and the longest not at all."""
        cuts = np.flatnonzero((to[1:] - to[:-1] != 1) | (source[1:] - source[:-1] != 1)) + 1
        starts, ends = np.array([0, *cuts]), np.array([*cuts, len(to)])
        longest = starts[(ends - starts).argmax()]
        kept, begin, after = self._kept, self._begin, self._kept
        here = int(begin + source[longest] - to[longest])
        if here < 0 or here + to[-1] + 1 > kept.shape[1]:
            n = int(to[-1])
            after, here = np.zeros((len(kept), max(64, 2 * (n + 1)))), n // 4
        by = here + to[starts] - begin - source[starts]
        # What moves left goes first to last, then what moves right last to first: none is overwritten before it moved.
        for k in [*np.flatnonzero(by <= 0).tolist(), *np.flatnonzero(by > 0)[::-1].tolist()]:
            first, last = begin + int(source[starts[k]]), begin + int(source[ends[k] - 1]) + 1
            if by[k] or after is not kept:
                after[:, first + by[k] : last + by[k]] = kept[:, first:last]
        self._kept, self._begin = after, here

    def _widen(self, met: tuple[Ints, Ints] | None) -> None:
        """Bring widths in step, and what follows from them; met: kernels that have other neighbours, None: any."""
        means, sigmas, _ = self._views()
        means, sigmas = means[:, :-1], sigmas[:, :-1]
        finest = 1.0 / min(FINEST, self._count + 2.0)
        if met is None:
            widths = self._ranking.widths(means, finest)
            columns, numbers = np.nonzero(widths != sigmas)
            widths = widths[columns, numbers]
        else:
            columns, numbers = met
            widths = self._ranking.widths(means, finest, columns, numbers)
            changed = np.flatnonzero(widths != sigmas[columns, numbers])
            columns, numbers, widths = columns[changed], numbers[changed], widths[changed]
        sigmas[columns, numbers] = widths
        self._compute(columns, numbers)

    def _compute(self, column: Ints, kernel: Ints) -> None:
        """Compute anew the factors of numeric columns of these kernels."""
        if not len(column):
            return
        means, sigmas, factors = self._views()
        mean, inverse = means[column, kernel], 1.0 / sigmas[column, kernel]
        is_sited = self._is_sited[column]
        open_, sited = np.flatnonzero(~is_sited), np.flatnonzero(is_sited)
        site = self._which[column[sited]]
        edges = self._sites.edges[self._site[site]]
        ends = np.empty(2 * len(open_) + edges.size)
        range_ends, value_ends = ends[: 2 * len(open_)].reshape(2, -1), ends[2 * len(open_) :].reshape(edges.shape)
        here, of_open = column[open_], mean[open_]
        np.subtract(self._high[here], of_open, out=range_ends[0])
        np.subtract(self._low[here], of_open, out=range_ends[1])
        range_ends *= inverse[open_]
        np.subtract(edges, mean[sited, None], out=value_ends)
        value_ends *= inverse[sited, None]
        below = normal_cdf(ends)
        if len(open_):
            inside = below[: len(open_)] - below[len(open_) : 2 * len(open_)]
            self._set_open(here, kernel[open_], of_open, inverse[open_], inside)
        if len(sited):
            cdf = below[2 * len(open_) :].reshape(edges.shape)
            masses = np.maximum(cdf[:, 1:] - cdf[:, :-1], _TINY) / (cdf[:, -1:] - cdf[:, :1])
            factors[self._site_rows[site], kernel[sited, None]] = np.log(masses)
            factors[-1] = 0.0

    def _set_open(self, column: Ints, kernel: Ints, mean: Array, inverse: Array, inside: Array) -> None:
        """Set the factors of open columns; inside: what the untruncated distributions have in the range."""
        _, _, factors = self._views()
        d, o, row = len(self._numeric), len(self._open), self._which[column]
        constants = self._kept[2 * d : 2 * d + o, self._begin :]
        scaled = mean * inverse
        factors[row, kernel] = -0.5 * inverse * inverse
        factors[o + row, kernel] = scaled * inverse
        smooth = self._is_smooth[column] * (np.log(inverse) - 0.5 * scaled * scaled)
        constants[row, kernel] = smooth - np.log(inside)
        factors[2 * o, kernel] = constants[:, kernel].sum(axis=0)

    def _weigh(self) -> None:
        """Compute what depends on the number of kernels alone."""
        n, counts = self._count, self._option_counts
        self._share(forgetting(np.array([float(n)]), n)[0])
        # Probabilities of options: where it is not the trial's own, and the trial's own.
        other = self._option_prior * counts[self._of_option] * (self._prior_weight / (n + 1))
        total = np.bincount(self._of_option, other, len(counts))[self._of_option] + 1.0
        self._other, self._alike = other / total, (other + 1.0) / total
        self._log_other, self._log_alike = np.log(np.maximum(self._other, _TINY))[:, None], np.log(self._alike)
        self._option_draws: Array | None = None

    def _share(self, shares: Array) -> None:
        weights = np.append(shares, self._prior_weight)
        self._weights: Array = weights / weights.sum()
        self._cumulative: Array = np.cumsum(self._weights)[:-1]

    def _take_options(self, trials: Ints | slice) -> None:
        """Set the factors of options of these trials and of the prior."""
        if not len(self._of_option):
            return
        factors = self._views()[2][self._options_start : -1]
        own = self._table.spots[self._rows[trials]].T[self._choice_spots] + self._option_starts[:, None]
        part = np.repeat(self._log_other, own.shape[1], axis=1)
        part[own, np.arange(own.shape[1])] = self._log_alike[own]
        factors[:, trials] = part
        factors[:, -1] = self._log_prior

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Ints]:
        """Return places (count, n_numeric), not yet rounded, and options (count, n_choices)."""
        kernel = self._cumulative.searchsorted(rng.random(count), side="right")
        means, sigmas, _ = self._views()
        x = self._draw_inside(means.T[kernel], sigmas.T[kernel], rng)
        if not len(self._of_option):
            return x, np.zeros((count, 0), dtype=np.int64)
        points = rng.random((count, len(self._option_counts), 1))
        own = np.full((count, len(self._option_counts)), -1)
        is_trial = kernel < self._count
        own[is_trial] = self._table.spots[self._rows[kernel[is_trial]]][:, self._choice_spots]
        return x, (points >= self._draws()[np.arange(own.shape[1]), own]).sum(axis=2)

    def _draw_inside(self, means: Array, sigmas: Array, rng: np.random.Generator) -> Array:
        """Return a draw from each truncated normal distribution; all of shape (count, n_numeric)."""
        x = means + sigmas * rng.standard_normal(means.shape)
        row, column = np.nonzero((x < self._low) | (x >= self._high))
        while len(row):
            many = rng.standard_normal((_ROUNDS, len(row))) * sigmas[row, column] + means[row, column]
            inside = (many >= self._low[column]) & (many < self._high[column])
            first = inside.argmax(axis=0)
            each = np.arange(len(row))
            x[row, column] = many[first, each]
            missing = ~inside[first, each]
            row, column = row[missing], column[missing]
        return x

    def _draws(self) -> Array:
        """Return, by choice and by the kernel's own option (last: the prior's), the cumulative probabilities of all
        options but the last, infinity beyond."""
        if self._option_draws is None:
            most = int(self._option_counts.max())
            found = np.full((len(self._option_counts), most + 1, most), np.inf)
            for k, (start, size) in enumerate(zip(self._option_starts, self._option_counts, strict=True)):
                part = slice(start, start + size)
                shares = np.tile(self._other[part], (size, 1))
                np.fill_diagonal(shares, self._alike[part])
                found[k, :size, : size - 1] = np.cumsum(shares, axis=1)[:, :-1]
                found[k, -1, : size - 1] = np.cumsum(self._option_prior[part])[:-1]
            self._option_draws = found
        return self._option_draws

    def features(self, x: Array, options: Ints) -> Array:
        """Return the numbers of candidates that the product of matrices takes, (count, n_factors); see `log`."""
        found = np.zeros((len(x), self._width))
        o, rows = len(self._open), np.arange(len(x))[:, None]
        if len(self._smooth):
            at = self._which[self._smooth]
            smooth = x[:, self._smooth]
            found[:, at] = smooth * smooth
            found[:, o + at] = smooth
        found[:, 2 * o] = 1.0
        if len(self._sited):
            found[rows, self._site_starts + self._sites.spots(x[:, self._sited], self._site)] = 1.0
        if len(self._of_option):
            found[rows, self._options_start + self._option_starts + options] = 1.0
        return found

    def log(self, x: Array, options: Ints, features: Array | None = None) -> Array:
        """Return the log density (mass where quantised) of candidates, but for a constant of the parameters.

        Args:
            x: Places, (count, n_numeric).
            options: Options, (count, n_choices).
            features: Their `features`, if they are known; they do not depend on the group.
        """
        means, sigmas, factors = self._views()
        total = (self.features(x, options) if features is None else features) @ factors
        for column in self._stepped.tolist():
            low, high = self._columns.round_one(x[:, column], int(self._numeric[column]))
            cdf = normal_cdf((np.stack([high, low])[:, :, None] - means[column]) / sigmas[column])
            total += np.log(np.maximum(cdf[0] - cdf[1], _TINY))
        most = total.max(axis=1, keepdims=True)
        total -= most
        np.maximum(total, _LEAST_LOG, out=total)
        np.exp(total, out=total)
        return np.asarray(np.log(total @ self._weights) + most[:, 0])
