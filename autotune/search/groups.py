"""The good and the bad group of trials, and the tally of the bad one."""

from __future__ import annotations

import math

import numpy as np

from autotune.search.blocks import Blocks
from autotune.search.columns import Array, Ints
from autotune.search.table import OUT, Table
from autotune.search.tally import Bools, Tally

MOST_GOOD = 25
_PIECEMEAL = 256  # more new or changed rows than this are counted anew


def good_count(model: int, gamma: float, split: str = "sqrt") -> int:
    """Return how many of ``model`` trials are good.

    Args:
        model: Number of trials in the model that count, see `Groups.split`.
        gamma: Factor.
        split: ``sqrt``: ``min(ceil(gamma * sqrt(model)), 25)``, as in hyperopt; ``linear``:
            ``min(ceil(gamma * model), 25)``, as in Optuna.
    """
    return min(math.ceil(gamma * (model if split == "linear" else math.sqrt(model))), MOST_GOOD)


class Groups:
    """Splits a table and keeps the tally in step with it.

    Args:
        table: The trials.
        tallied: Whether the tally is wanted.

    Attributes:
        tally: Of the bad group.
        good: Rows of the good group, oldest first.
        ranks: How many of the good group are better than each of them; of equal ones the older counts as better.
        bad: Whether a row is in the bad group; (capacity,).
        blocks: Numbers in the bad group.
    """

    def __init__(self, table: Table, *, tallied: bool = True) -> None:
        self.tally = Tally(table.columns)
        self._table = table
        self._tallied = tallied
        self._epoch = -1
        self._begin()

    def _begin(self) -> None:
        self._done = 0
        self._limit = math.inf
        self.good: Ints = np.zeros(0, dtype=np.int64)
        self.ranks: Ints = np.zeros(0, dtype=np.int64)
        self.bad: Bools = np.zeros(0, dtype=bool)
        self.tally.clear()
        self.blocks = Blocks(self.tally)
        self._epoch = self._table.epoch

    def split(self, losses: Array, gamma: float, split: str = "sqrt") -> None:
        """Split anew by what the model is told; ties go to the older trial.

        With ``linear`` only trials that have ended are good, and how many depends on how many have ended: with those
        that wait counted too, many slots would dilute the good group with mediocre trials (decision 019). With ``sqrt``
        they count, as in hyperopt.

        Args:
            losses: As `Table.model_losses` gives them; with ``linear`` those of waiting trials are not read.
            gamma: Factor in `good_count`.
            split: As there.
        """
        if self._epoch != self._table.epoch:
            self._begin()
        n = len(losses)
        if split == "linear":
            losses = self._table.losses[:n]  # NaN where a trial waits
        count = good_count(int(np.count_nonzero(~np.isnan(losses))), gamma, split)
        count = max(1, min(count, int(np.count_nonzero(losses < np.inf))))  # what failed is never good
        rows = np.flatnonzero(losses <= self._limit)
        if len(rows) < count:
            rows = np.flatnonzero(losses <= np.partition(losses, count - 1)[count - 1])
        rows = rows[np.argsort(losses[rows], kind="stable")][:count]
        self._limit = float(losses[rows[-1]])
        self.ranks = np.argsort(rows)
        self._move_to(rows[self.ranks], n)

    def _move_to(self, good: Ints, n: int) -> None:
        table, done = self._table, self._done
        self._reserve(n)
        wanted = table.kinds[:n] != OUT
        wanted[good] = False
        if not self._tallied:
            self.good, self.bad[:n], self._done = good, wanted, n
            table.touched.clear()
            return
        asked = {row for row in table.touched if row < done}
        asked |= {row for row in set(self.good.tolist()) ^ set(good.tolist()) if row < done}
        flips = sorted(row for row in asked if wanted[row] != self.bad[row])
        table.touched.clear()
        self.good = good
        if n - done > _PIECEMEAL or len(flips) > _PIECEMEAL:
            self._recount(wanted, n)
        else:
            for row in flips:
                self._flip(row)
            for row in range(done, n):
                self._append(row, bool(wanted[row]))
        self._done = n

    def _reserve(self, n: int) -> None:
        if n <= len(self.bad):
            return
        capacity = max(64, 2 * n)
        grown = np.zeros(capacity, dtype=bool)
        grown[: len(self.bad)] = self.bad
        self.bad = grown
        self.blocks.reserve(capacity)

    def _append(self, row: int, bad: bool) -> None:
        table, one = self._table, slice(row, row + 1)
        number = self.blocks.append(row, self.tally.active(table.places[one], table.spots[one])[0])
        self.bad[row] = bad
        if bad:
            self.blocks.count_in(row, *self.tally.add(row, table.places[one], table.spots[one], number))

    def _flip(self, row: int) -> None:
        """Move a row into the bad group, or out of it."""
        table, one = self._table, slice(row, row + 1)
        by = -1 if self.bad[row] else 1
        self.bad[row] = by > 0
        number = self.blocks.numbers(np.array([row]))[0]
        ends: list[tuple[int, int]] = []
        if by > 0:
            cells, whole = self.tally.add(row, table.places[one], table.spots[one], number)
        else:
            cells, whole, ends = self.tally.remove(row, table.places[one], table.spots[one], number)
        self.blocks.count_in(row, cells, whole)
        self.tally.ranks += by * self.blocks.later(row, self.bad[: self._done], table.places, table.spots)
        self.blocks.renumber(row, by, self._done)
        if ends:
            rows = np.flatnonzero(self.bad[: self._done])
            for column, stretch in ends:
                self.tally.find_ends(column, stretch, table.places, table.spots, rows)

    def _recount(self, wanted: Bools, n: int) -> None:
        self.bad[:n] = wanted
        self.tally.clear()
        self.blocks.fill(self.bad[:n], self._table.places, self._table.spots)

    def latest(self, n: int) -> tuple[Ints, Bools]:
        """Return rows among which are the 25 latest of the bad group, and for which columns each is one of them."""
        count = self.tally.count
        enough = np.where(count > MOST_GOOD, MOST_GOOD, 0)
        looked = 64
        while True:
            begin = max(0, n - looked)
            live = self.blocks.active[begin:n] & self.bad[begin:n, None]
            live &= (self.blocks.numbers(np.arange(begin, n)) >= count - MOST_GOOD) & (count > MOST_GOOD)
            if begin == 0 or bool(np.all(live.sum(axis=0) >= enough)):
                break
            looked *= 4
        rows = np.flatnonzero(live.any(axis=1))
        return rows + begin, live[rows]
