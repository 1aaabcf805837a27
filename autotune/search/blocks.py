"""Who is how many-th in the bad group, and sums over those who come later, in blocks of 1,024 trials.

When a trial joins the bad group or leaves it, the numbers of all later ones change by one. With a sum per block only
the block that it stands in is looked at trial by trial.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.search.columns import Array, Ints
from autotune.search.tally import Tally

SIZE = 1024
Bools = NDArray[np.bool_]


class Blocks:
    """Numbers in the bad group by row and column of a tally.

    Attributes:
        active: Which columns are active; (capacity, n_columns).
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.active: Bools = np.zeros((0, tally.width), dtype=bool)
        self._within = np.zeros((0, tally.width), dtype=np.int64)
        self._starts = np.zeros((0, tally.width), dtype=np.int64)
        self._sums = np.zeros((0, len(tally.ones)), dtype=np.int64)

    def reserve(self, capacity: int) -> None:
        """Make room for so many rows."""
        blocks = capacity // SIZE + 2
        for name, rows in (("active", capacity), ("_within", capacity), ("_starts", blocks), ("_sums", blocks)):
            old = getattr(self, name)
            grown = np.zeros((rows, old.shape[1]), dtype=old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)

    def numbers(self, rows: Ints) -> Ints:
        """Return how many of the bad group come before rows, shape (n, n_columns)."""
        return np.asarray(self._starts[rows // SIZE] + self._within[rows])

    def append(self, row: int, active: Bools) -> Ints:
        """Give the next row its numbers, and return them; it counts itself only when `count_in` says so."""
        self.active[row] = active
        block = row // SIZE
        if row % SIZE == 0:
            self._starts[block] = self._tally.count
        self._within[row] = self._tally.count - self._starts[block]
        return np.asarray(self._tally.count.copy())

    def count_in(self, row: int, cells: Ints, whole: Ints) -> None:
        """Add the spread of one row, negative to take it out."""
        self._sums[row // SIZE, cells] += whole

    def renumber(self, row: int, by: int, done: int) -> None:
        """Change the numbers of all rows after one by ``by`` in the columns that it is active in."""
        block = row // SIZE
        change = by * self.active[row]
        self._within[row + 1 : min((block + 1) * SIZE, done)] += change
        self._starts[block + 1 :] += change

    def later(self, row: int, bad: Bools, places: Array, spots: Ints) -> Ints:
        """Return the sum of the spread of bad rows after one, in the columns that it is active in, by cell.

        Args:
            row: The row.
            bad: Whether a row is in the bad group, for all rows so far.
            places: Places of all trials.
            spots: Spots of all trials.
        """
        block = row // SIZE
        total = self._sums[block + 1 :].sum(axis=0)
        rows = row + 1 + np.flatnonzero(bad[row + 1 : (block + 1) * SIZE])
        cells, weights = self._tally.spread(places[rows], spots[rows])
        total += np.bincount(cells.ravel(), weights.ravel(), len(total)).astype(np.int64)
        total *= self.active[row][self._tally.of_cell]
        return np.asarray(total)

    def fill(self, bad: Bools, places: Array, spots: Ints) -> None:
        """Number all rows anew, and fill the tally, which is empty.

        Args:
            bad: Whether a row is in the bad group, for all rows so far.
            places: Places of all trials.
            spots: Spots of all trials.
        """
        self._sums[:] = 0
        tally, n = self._tally, len(bad)
        for block in range((n + SIZE - 1) // SIZE):
            part = slice(block * SIZE, min((block + 1) * SIZE, n))
            self._starts[block] = tally.count
            active = tally.active(places[part], spots[part])
            counted = active & bad[part, None]
            self.active[part] = active
            self._within[part] = np.cumsum(counted, axis=0) - counted
            rows = np.flatnonzero(bad[part]) + block * SIZE
            self._sums[block] = tally.take_in(places[rows], spots[rows], self.numbers(rows))
        self._starts[(n + SIZE - 1) // SIZE :] = tally.count
        tally.fill_ends(np.flatnonzero(bad), places, spots)
