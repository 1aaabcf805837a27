"""Sums over the trials of the bad group, kept up to date instead of computed again for each proposal.

An adaptive Parzen estimator of n observations needs all of them. But from 98 observations on no component is narrower
than 1/100 of the range, and where observations are dense all are exactly that narrow: a component is wider only if
there is a gap beside it. In each stretch of 1/100 of the range only the first and the last observation can have one.
So the estimator is the sum of at most 200 wide components and of a smoothed histogram. The same holds for the values
of a quantised parameter (only the first and the last observation of a value can be wide), and the options of a choice
are a histogram anyway.

Linear forgetting gives observation number i, counted in the group, the weight ``a + b * i``, so two histograms are
enough: of ones and of i. Smooth parameters spread each observation over four nodes of a grid by cubic B-splines. All
sums are whole numbers: they do not depend on the order in which trials came, or left, and a sum kept for days equals
one made anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.search.columns import Columns
from autotune.search.parzen import FINEST, Array, Ints, ramp

LEAST = int(FINEST) - 2  # observations from which on the narrowest width stays the same
UNIT = float(2**18)  # a B-spline's weights are whole multiples of 1 / UNIT
NODES = 4  # per narrowest width
MARGIN = 32  # nodes beyond both ends of the range
_STRETCHES = int(FINEST)
Bools = NDArray[np.bool_]


class Tally:
    """Histograms of the bad group by column, and the first and last observation of each stretch.

    The columns are, in this order, the bounded smooth (and finely quantised) ones: *grids*; the coarsely quantised
    ones: *sites*; and the choices. Unbounded ones are not here.

    Attributes:
        grids: Numeric columns (indices in `Columns.numeric`) of the first kind.
        sites: Those of the second kind.
        smooth: Which of the grids are not quantised.
        options_start: First cell of the first choice.
        count: Number of observations in the bad group, per column.
        ones: Sum of the observations' spread by cell, all columns one after the other.
        ranks: The same with each observation multiplied by its number in the group.
        starts: First cell of each column.
        first: Row of the first observation of each stretch, -1 if none; (n_numeric_columns, n_stretches).
        last: Row of the last one.
        first_place: Place of the first one, infinity if none.
        last_place: Place of the last one, minus infinity if none.
    """

    def __init__(self, columns: Columns) -> None:
        self.sites = columns.sites
        self.grids = np.array(
            [d for d, c in enumerate(columns.numeric) if np.isfinite(c.low) and not c.sites], dtype=np.int64
        )
        self.numeric: Ints = np.concatenate([self.grids, self.sites])
        self.sizes = np.array([NODES * _STRETCHES + 1 + 2 * MARGIN] * len(self.grids) + columns.spots, dtype=np.int64)
        self.starts: Ints = np.cumsum(self.sizes) - self.sizes
        self.width = len(self.sizes)
        self.options_start = int(self.sizes[: len(self.numeric)].sum())
        self.of_cell: Ints = np.repeat(np.arange(self.width), self.sizes)
        self._entry: Ints = np.concatenate(
            [np.repeat(np.arange(len(self.grids)), 4), np.arange(len(self.grids), self.width)]
        )
        self._stretches = max([_STRETCHES, *(columns.numeric[d].sites for d in self.sites)])
        self.smooth: Bools = np.isin(self.grids, columns.smooth)
        self._columns: Ints = np.arange(len(self.numeric))
        self._four: Ints = np.arange(4)
        self.clear()

    def clear(self) -> None:
        """Forget all observations."""
        self.count = np.zeros(self.width, dtype=np.int64)
        self.ones = np.zeros(int(self.sizes.sum()), dtype=np.int64)
        self.ranks = np.zeros(int(self.sizes.sum()), dtype=np.int64)
        shape = (len(self.numeric), self._stretches)
        self.first = np.full(shape, -1, dtype=np.int64)
        self.last = np.full(shape, -1, dtype=np.int64)
        self.first_place = np.full(shape, np.inf)
        self.last_place = np.full(shape, -np.inf)

    def active(self, places: Array, spots: Ints) -> Bools:
        """Return which columns of the tally are active; places (n, n_numeric), spots (n, n_spots)."""
        return np.concatenate([~np.isnan(places[:, self.grids]), spots >= 0], axis=1)

    def spread(self, places: Array, spots: Ints) -> tuple[Ints, Array]:
        """Return cells and weights of observations, shape (n, n_entries); `entry_columns` says whose they are."""
        n, grids = len(places), len(self.grids)
        cells = np.empty((n, len(self._entry)), dtype=np.int64)
        parts = np.empty(cells.shape)
        if grids:
            here = places[:, self.grids]
            off = np.isnan(here)
            inactive = bool(off.any())
            if inactive:
                here[off] = 0.0
            at, weights = self.spread_one(np.arange(grids), here)
            if inactive:
                weights[off] = 0.0
            cells[:, : 4 * grids] = at.reshape(n, 4 * grids)
            parts[:, : 4 * grids] = weights.reshape(n, 4 * grids)
        np.add(np.maximum(spots, 0), self.starts[grids:], out=cells[:, 4 * grids :])
        np.greater_equal(spots, 0, out=parts[:, 4 * grids :])
        return cells, parts

    def spread_one(self, column: Ints, places: Array) -> tuple[Ints, Array]:
        """Return cells and weights of places in columns of `grids`, both with one more axis of length 4."""
        g = (places + 0.5) * (NODES * _STRETCHES) + MARGIN
        base = np.floor(g)
        f = g - base
        e = 1.0 - f
        parts = np.empty((*f.shape, 4))
        parts[..., 0] = e * e * e
        parts[..., 1] = (3.0 * f - 6.0) * f * f + 4.0
        parts[..., 2] = ((3.0 - 3.0 * f) * f + 3.0) * f + 1.0
        parts[..., 3] = f * f * f
        parts *= UNIT / 6.0
        return (base.astype(np.int64) + (self.starts[column] - 1))[..., None] + self._four, np.rint(parts, out=parts)

    @property
    def entry_columns(self) -> Ints:
        """Column of each entry that `spread` returns."""
        return self._entry

    def stretch(self, places: Array, spots: Ints) -> Ints:
        """Return the stretch of observations, shape (n, len(numeric)); meaningless where inactive."""
        at = np.empty((len(places), len(self.numeric)), dtype=np.int64)
        grids = len(self.grids)
        with np.errstate(invalid="ignore"):
            at[:, :grids] = np.minimum((places[:, self.grids] + 0.5) * _STRETCHES, _STRETCHES - 1)
        np.maximum(at[:, :grids], 0, out=at[:, :grids])
        at[:, grids:] = spots[:, : len(self.sites)]
        return at

    def add(self, row: int, places: Array, spots: Ints, before: Ints) -> tuple[Ints, Ints]:
        """Take in one observation; return its cells and what was added to them.

        Args:
            row: Its row in the table of trials.
            places: Its places, shape (1, n_numeric).
            spots: Its spots, shape (1, n_spots).
            before: Its number in the group, per column.
        """
        cells, weights = self.spread(places, spots)
        whole = weights[0].astype(np.int64)
        self.ones[cells[0]] += whole
        self.ranks[cells[0]] += whole * before[self._entry]
        self.count += self.active(places, spots)[0]
        stretches = self.stretch(places, spots)[0]
        here = places[0, self.numeric]
        # False for NaN, so an inactive column takes no part.
        at = self._columns, stretches
        known = self.first_place[at]
        nearer = np.flatnonzero((here < known) | ((here == known) & (row < self.first[at])))
        self.first[nearer, stretches[nearer]] = row
        self.first_place[nearer, stretches[nearer]] = here[nearer]
        known = self.last_place[at]
        nearer = np.flatnonzero((here > known) | ((here == known) & (row > self.last[at])))
        self.last[nearer, stretches[nearer]] = row
        self.last_place[nearer, stretches[nearer]] = here[nearer]
        return cells[0], whole

    def remove(self, row: int, places: Array, spots: Ints, before: Ints) -> tuple[Ints, Ints, list[tuple[int, int]]]:
        """Take out one observation.

        Returns:
            Its cells, what was added to them, and which (column of `numeric`, stretch) it was first or last in.
        """
        cells, weights = self.spread(places, spots)
        whole = weights[0].astype(np.int64)
        self.ones[cells[0]] -= whole
        self.ranks[cells[0]] -= whole * before[self._entry]
        self.count -= self.active(places, spots)[0]
        at = self._columns, self.stretch(places, spots)[0]
        ends = (self.first[at] == row) | (self.last[at] == row)
        return cells[0], -whole, [(int(k), int(at[1][k])) for k in np.flatnonzero(ends)]

    def find_ends(self, column: int, stretch: int, places: Array, spots: Ints, rows: Ints) -> None:
        """Find first and last observation of a stretch anew.

        Args:
            column: Position in `numeric`.
            stretch: The stretch.
            places: Places of all trials.
            spots: Spots of all trials.
            rows: Rows of the group, in order.
        """
        d = int(self.numeric[column])
        rows = rows[~np.isnan(places[rows, d])]
        rows = rows[self._stretches_of(column, places, spots, rows) == stretch]
        here = places[rows, d]
        at = column, stretch
        if not len(rows):
            self.first[at], self.last[at] = -1, -1
            self.first_place[at], self.last_place[at] = np.inf, -np.inf
            return
        self.first[at], self.first_place[at] = rows[int(np.argmin(here))], here.min()
        self.last[at], self.last_place[at] = rows[len(rows) - 1 - int(np.argmax(here[::-1]))], here.max()

    def _stretches_of(self, column: int, places: Array, spots: Ints, rows: Ints) -> Ints:
        """Return the stretches of rows that are active in a column of `numeric`; computed as `stretch` does."""
        if column >= len(self.grids):
            return np.asarray(spots[rows, column - len(self.grids)])
        here = places[rows, self.numeric[column]]
        return np.asarray(np.maximum(np.minimum((here + 0.5) * _STRETCHES, _STRETCHES - 1).astype(np.int64), 0))

    def take_in(self, places: Array, spots: Ints, numbers: Ints) -> Ints:
        """Take in many observations, but for the ends of stretches; return the sum of their spread by cell.

        Args:
            places: Their places.
            spots: Their spots.
            numbers: Their numbers in the group, per column.
        """
        cells, weights = self.spread(places, spots)
        flat = cells.ravel()
        ones = np.bincount(flat, weights.ravel(), len(self.ones)).astype(np.int64)
        self.ones += ones
        weights *= numbers[:, self._entry]
        self.ranks += np.bincount(flat, weights.ravel(), len(self.ones)).astype(np.int64)
        self.count += self.active(places, spots).sum(axis=0)
        return ones

    def fill_ends(self, rows: Ints, places: Array, spots: Ints) -> None:
        """Find first and last observation of all stretches, which are empty.

        Args:
            rows: Rows of the group, in order.
            places: Places of all trials.
            spots: Spots of all trials.
        """
        for k, d in enumerate(self.numeric):
            here = rows[~np.isnan(places[rows, d])]
            order = here[np.argsort(places[here, d], kind="stable")]
            stretches = self._stretches_of(k, places, spots, order)
            begins = np.flatnonzero(np.diff(stretches, prepend=-1))
            ends = np.append(begins[1:], len(order)) - 1 if len(order) else begins
            self.first[k, stretches[begins]] = order[begins]
            self.last[k, stretches[begins]] = order[ends]
            self.first_place[k, stretches[begins]] = places[order[begins], d]
            self.last_place[k, stretches[begins]] = places[order[ends], d]

    def wide(self) -> tuple[Ints, Ints, Array, Array]:
        """Return the components that are wider than the narrowest.

        Returns:
            Column of `numeric`, row, place and width of each; a component appears once.
        """
        first, last = self.first_place, self.last_place
        before, after = np.full_like(last, -np.inf), np.full_like(first, np.inf)
        np.maximum.accumulate(last[:, :-1], axis=1, out=before[:, 1:])
        np.minimum.accumulate(first[:, :0:-1], axis=1, out=after[:, -2::-1])
        # The prior component at 0 is a neighbour too. A tie puts it before.
        np.maximum(before, 0.0, where=first >= 0.0, out=before)
        np.minimum(after, 0.0, where=last < 0.0, out=after)
        with np.errstate(invalid="ignore"):
            left, right = first - before, after - last  # infinite where there is no neighbour, or no observation
        narrowest = 1.0 / FINEST
        wide_left = (left > narrowest) & (left < np.inf)
        wide_right = (right > narrowest) & (right < np.inf)
        # An observation alone in its stretch with two gaps has the larger one.
        twice = wide_left & wide_right & (self.first == self.last)
        lefts, rights = np.flatnonzero(wide_left), np.flatnonzero(wide_right & ~twice)
        widths = left.ravel()[lefts]
        np.maximum(widths, right.ravel()[lefts], where=twice.ravel()[lefts], out=widths)
        return (
            np.concatenate([lefts, rights]) // self._stretches,
            np.concatenate([self.first.ravel()[lefts], self.last.ravel()[rights]]),
            np.concatenate([first.ravel()[lefts], last.ravel()[rights]]),
            np.minimum(np.concatenate([widths, right.ravel()[rights]]), 1.0),
        )

    def weights(self) -> tuple[Array, Array]:
        """Return start and slope of the forgetting weights by column; see `ramp`."""
        return ramp(self.count.astype(np.float64))
