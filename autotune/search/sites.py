"""Quantised parameters with few values: the mass of every value, instead of that of candidates."""

from __future__ import annotations

import numpy as np

from autotune.search.columns import Array, Columns, Ints
from autotune.search.parzen import FINEST, Mixture, normal_cdf


class Sites:
    """Intervals of all values of the columns `Columns.sites`, and masses in them; padded with empty intervals.

    Attributes:
        edges: Ends of the intervals, as t; (n_sites, most values + 1).
        kernels: Mass in the interval of each value of the narrowest kernel at each value, which is the last axis;
            (n_sites, most values, most values).
        prior: Mass of the prior component, (n_sites, most values).
        option_starts: First option of each choice, all options one after the other.
        option_prior: What the prior counts of each option, for a prior weight of 1.
    """

    def __init__(self, columns: Columns) -> None:
        sizes = columns.spots[: len(columns.sites)]
        most = max(sizes, default=0)
        self.edges: Array = np.zeros((len(sizes), most + 1))
        self.kernels: Array = np.zeros((len(sizes), most, most))
        for k, (d, size) in enumerate(zip(columns.sites.tolist(), sizes, strict=True)):
            column = columns.numeric[d]
            first = (column.parameter.limits or (0, 0))[0]
            indices = first + np.arange(size, dtype=np.float64)
            low, high = (end[0] for end in columns.interval(indices[None], np.array([d])))
            self.edges[k, :size], self.edges[k, size:] = low, high[-1]
            at = np.array([column.place(value) for value in column.values()])
            self.kernels[k, :size, :size] = np.diff(normal_cdf((self.edges[k, : size + 1, None] - at) * FINEST), axis=0)
        # Ends between two values, then what no place reaches.
        values = np.arange(1, max(most, 1))
        self._inner: Array = np.where(values < np.array(sizes, dtype=np.int64)[:, None], self.edges[:, 1:-1], np.inf)
        self.prior: Array = np.diff(normal_cdf(self.edges), axis=1)
        self._flat: Ints = np.flatnonzero(np.arange(most) < np.array(sizes, dtype=np.int64)[:, None])
        choices = list(columns.choices.values())
        counts = np.array([len(c.options) for c in choices], dtype=np.int64)
        self.option_starts: Ints = np.cumsum(counts) - counts
        self.option_prior: Array = np.array(
            [w * len(c.options) for c in choices for w in c.weights or [1.0 / len(c.options)] * len(c.options)]
        )

    def masses(self, mixture: Mixture, which: Ints | None = None) -> Array:
        """Return the mass of each value under mixtures, one per column of sites, or of those in ``which``."""
        edges = self.edges if which is None else self.edges[which]
        cdf = normal_cdf((edges[:, :, None] - mixture.means[:, None, :]) / mixture.sigmas[:, None, :])
        return np.asarray(np.einsum("dkm,dm->dk", cdf[:, 1:] - cdf[:, :-1], mixture.weights))

    def spots(self, places: Array, which: Ints | None = None) -> Ints:
        """Return the values' numbers in whose intervals places lie.

        Args:
            places: Within the ranges, upper ends excluded; (n, n_sites).
            which: The columns of sites, if not all of them.
        """
        inner = self._inner if which is None else self._inner[which]
        return np.asarray((places[:, :, None] >= inner).sum(axis=2))

    def flat(self, padded: Array) -> Array:
        """Return what is not padding, one column after the other; padded: (n_sites, most values)."""
        return np.asarray(padded.ravel()[self._flat])
