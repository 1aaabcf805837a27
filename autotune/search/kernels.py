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
from autotune.search.ranking import SINGLY, Ranking
from autotune.search.sites import Sites
from autotune.search.table import Table

_TINY = 1e-300
_ROUNDS = 8  # draws at a time of which the first that lies in the range is taken


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

        # Rows of what is kept by kernel: means, widths, then the factors of the product of matrices, and one of no use.
        d, o = len(numeric), len(self._open)
        self._square = np.cumsum(~self._is_sited) - 1  # first factor of an open column, by position
        sizes = np.array([columns.spots[k] for k in self._site.tolist()], dtype=np.int64)
        starts = 3 * o + np.cumsum(sizes) - sizes
        self._site_starts: Ints = starts
        self._options_start = 3 * o + int(sizes.sum())
        self._width = self._options_start + int(counts.sum()) + 1
        values = np.arange(self._sites.edges.shape[1] - 1)
        self._site_rows: Ints = np.where(values < sizes[:, None], starts[:, None] + values, self._width - 1)
        self._kept: Array = np.zeros((2 * d + self._width, 64))
        self._reset()

    def _reset(self) -> None:
        """Begin with the prior alone."""
        self._rows: Ints = np.zeros(0, dtype=np.int64)
        self._ranking = Ranking(len(self._numeric))
        self._begin, self._count = 0, 0
        means, sigmas, _ = self._views()
        means[:], sigmas[:] = 0.0, 1.0
        self._compute(np.ones((len(self._numeric), 1), dtype=bool))
        self._weigh()
        self._take_options(0)

    def _views(self) -> tuple[Array, Array, Array]:
        """Return means, widths and factors by kernel; (n_numeric or n_factors, count + 1)."""
        d = len(self._numeric)
        now = self._kept[:, self._begin : self._begin + self._count + 1]
        return now[:d], now[d : 2 * d], now[2 * d :]

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
        if stay and stay <= n and bool((rows[:stay] == old[gone:]).all()):
            if n == m and not gone:
                return
            first = self._slide(rows, gone)
        else:
            self._rearrange(rows)
            first = 0
        _, sigmas, _ = self._views()
        widths = self._ranking.widths(1.0 / min(FINEST, n + 2.0))
        changed = np.zeros(sigmas.shape, dtype=bool)
        np.not_equal(widths, sigmas[:, :-1], out=changed[:, :-1])
        sigmas[:, :-1] = widths
        self._compute(changed)
        if n != m:
            self._weigh()
            first = 0
        self._take_options(first)

    def _slide(self, rows: Ints, gone: int) -> int:
        """Take out the oldest kernels and add younger ones; return the number of the first new one."""
        n, m = len(rows), len(self._rows)
        stay = m - gone
        prior = self._kept[:, self._begin + m].copy()
        self._begin += gone
        if self._begin + n + 1 > self._kept.shape[1]:
            grown = np.zeros((len(self._kept), max(64, 2 * (n + 1))))
            grown[:, :stay] = self._kept[:, self._begin : self._begin + stay]
            self._kept, self._begin = grown, 0
        self._rows, self._count = rows, n
        means, sigmas, _ = self._views()
        self._kept[:, self._begin + n] = prior
        means[:, stay:n] = self._table.places[rows[stay:]].T[self._numeric]
        sigmas[:, stay:n] = np.nan
        self._rank(np.arange(m) - gone, np.arange(stay, n))
        return stay

    def _rank(self, to: Ints, fresh: Ints) -> None:
        """Put the trials in order; to: new number by old one, negative of those that went; fresh: the new ones."""
        means = self._views()[0][:, :-1]
        if len(fresh) > SINGLY or len(fresh) == means.shape[1]:
            self._ranking.renew(means)
        else:
            self._ranking.change(to, fresh, means[:, fresh])

    def _rearrange(self, rows: Ints) -> None:
        """Take in rows, whatever came before."""
        old, n, m = self._rows, len(rows), len(self._rows)
        at = np.searchsorted(rows, old)
        kept = at < n
        kept[kept] = rows[at[kept]] == old[kept]
        to = np.append(at[kept], n)  # new numbers of the kernels that stay, the prior's last
        source = np.append(np.flatnonzero(kept), m)
        after = np.empty((len(self._kept), max(64, 2 * (n + 1))))
        # Runs of kernels that stay side by side are copied together.
        ends = np.append(np.flatnonzero((np.diff(to) != 1) | (np.diff(source) != 1)) + 1, len(to))
        begin = 0
        for end in ends.tolist():
            first = self._begin + int(source[begin])
            after[:, to[begin] : to[begin] + end - begin] = self._kept[:, first : first + end - begin]
            begin = end
        self._kept, self._begin, self._rows, self._count = after, 0, rows, n
        fresh = np.setdiff1d(np.arange(n), to[:-1], assume_unique=True)
        means, sigmas, factors = self._views()
        means[:, fresh] = self._table.places[rows[fresh]].T[self._numeric]
        sigmas[:, fresh] = np.nan
        factors[:, fresh] = 0.0
        self._rank(np.where(kept, at, -1), fresh)

    def _compute(self, changed: np.ndarray) -> None:
        """Compute anew the factors of numeric columns, where means or widths changed."""
        column, kernel = np.nonzero(changed)
        if not len(column):
            return
        means, sigmas, factors = self._views()
        mean, sigma = means[column, kernel], sigmas[column, kernel]
        if len(self._sited):
            sited = self._is_sited[column]
            which = np.searchsorted(self._sited, column[sited])
            self._compute_sited(which, kernel[sited], mean[sited], sigma[sited], factors)
            rest = ~sited
            column, kernel, mean, sigma = column[rest], kernel[rest], mean[rest], sigma[rest]
        o, row = len(self._open), self._square[column]
        inverse = 1.0 / sigma
        ends = np.empty((2, len(mean)))
        np.subtract(self._high[column], mean, out=ends[0])
        np.subtract(self._low[column], mean, out=ends[1])
        ends *= inverse
        ends = normal_cdf(ends)
        scaled = mean * inverse
        factors[row, kernel] = -0.5 * inverse * inverse
        factors[o + row, kernel] = scaled * inverse
        factors[2 * o + row, kernel] = (
            self._is_smooth[column] * (np.log(inverse) - 0.5 * scaled * scaled) - np.log(ends[0] - ends[1])
        )  # fmt: skip

    def _compute_sited(self, which: Ints, kernel: Ints, mean: Array, sigma: Array, factors: Array) -> None:
        cdf = normal_cdf((self._sites.edges[self._site[which]] - mean[:, None]) / sigma[:, None])
        masses = np.maximum(cdf[:, 1:] - cdf[:, :-1], _TINY) / (cdf[:, -1:] - cdf[:, :1])
        factors[self._site_rows[which], kernel[:, None]] = np.log(masses)
        factors[-1] = 0.0

    def _weigh(self) -> None:
        """Compute what depends on the number of kernels alone."""
        n, counts = self._count, self._option_counts
        self._share(forgetting(np.array([float(n)]), n)[0])
        # Probabilities of options: where it is not the trial's own, and the trial's own.
        other = self._option_prior * counts[self._of_option] * (self._prior_weight / (n + 1))
        total = np.bincount(self._of_option, other, len(counts))[self._of_option] + 1.0
        self._other, self._alike = other / total, (other + 1.0) / total
        self._option_draws: Array | None = None

    def _share(self, shares: Array) -> None:
        weights = np.append(shares, self._prior_weight)
        self._weights: Array = weights / weights.sum()
        self._cumulative: Array = np.cumsum(self._weights)[:-1]

    def _take_options(self, first: int) -> None:
        """Set the factors of options from this kernel on."""
        if not len(self._of_option):
            return
        _, _, factors = self._views()
        part = factors[self._options_start : -1, first:]
        part[:] = np.log(np.maximum(self._other, _TINY))[:, None]
        own = self._table.spots[self._rows[first:]].T[self._choice_spots] + self._option_starts[:, None]
        part[own, np.arange(own.shape[1])] = np.log(self._alike)[own]
        part[:, -1] = np.log(np.maximum(self._option_prior, _TINY))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Ints]:
        """Return places (count, n_numeric), not yet rounded, and options (count, n_choices)."""
        kernel = self._cumulative.searchsorted(rng.random(count), side="right")
        means, sigmas, _ = self._views()
        means, sigmas = means.T[kernel], sigmas.T[kernel]
        x = np.empty(means.shape)
        missing = np.ones(means.shape, dtype=bool)
        while True:
            drawn = means + sigmas * rng.standard_normal((_ROUNDS, *means.shape))
            inside = (drawn >= self._low) & (drawn < self._high)
            first = inside.argmax(axis=0)
            chosen = np.take_along_axis(drawn, first[None], axis=0)[0]
            np.copyto(x, chosen, where=missing)
            missing &= ~inside.any(axis=0)
            if not missing.any():
                break
        if not len(self._of_option):
            return x, np.zeros((count, 0), dtype=np.int64)
        points = rng.random((count, len(self._option_counts), 1))
        own = np.full((count, len(self._option_counts)), -1)
        is_trial = kernel < self._count
        own[is_trial] = self._table.spots[self._rows[kernel[is_trial]]][:, self._choice_spots]
        return x, (points >= self._draws()[np.arange(own.shape[1]), own]).sum(axis=2)

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
        o = len(self._open)
        if o:
            at = self._square[self._smooth]
            smooth = x[:, self._smooth]
            found[:, at] = smooth * smooth
            found[:, o + at] = smooth
            found[:, 2 * o : 3 * o] = 1.0
        rows = np.arange(len(x))
        for column, site, start in zip(
            self._sited.tolist(), self._site.tolist(), self._site_starts.tolist(), strict=True
        ):
            found[rows, start + self._sites.spot(site, x[:, column])] = 1.0
        if len(self._of_option):
            found[rows[:, None], self._options_start + self._option_starts + options] = 1.0
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
        np.exp(total, out=total)
        return np.asarray(np.log(total @ self._weights) + most[:, 0])
