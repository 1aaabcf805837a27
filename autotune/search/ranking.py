"""Which trials lie next to each other in each column, kept while trials come and go, and the gaps between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.search.columns import Array, Ints

_SINGLY = 4  # more trials than this do not come or go one by one: to put all in order anew is cheaper
_FEW = 64  # as it is where there are fewer trials than this; more than _SINGLY, so that some trial always stays
_Met = tuple[Ints, Ints] | None


class Ranking:
    """Trials in order of their places, by column; equal places in order of time. Each knows its two neighbours.

    Trials have numbers from 0, the oldest first. Places are those of all trials by number, (n_columns, n). What
    changes the trials returns columns and numbers of those that have other neighbours than before, some of them more
    than once; None: any.

    Args:
        columns: Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self._rows: Ints = np.arange(columns)
        # A trial keeps its slot while its number changes.
        self._slots: Ints = np.zeros(0, dtype=np.int64)  # by number
        self._numbers: Ints = np.zeros(0, dtype=np.int64)  # by slot; -1: free
        self._free: list[int] = []
        # Slots of the neighbours, by slot; where there is none, its own.
        self._before: Ints = np.zeros((columns, 0), dtype=np.int64)
        self._after: Ints = np.zeros((columns, 0), dtype=np.int64)
        self._highest: Ints = np.zeros(columns, dtype=np.int64)

    def slide(self, gone: int, places: Array) -> _Met:
        """Take out the oldest trials, and put in younger ones.

        Args:
            gone: How many go.
            places: Of all there are then; of the new ones last.
        """
        stay, n = len(self._slots) - gone, places.shape[1]
        if gone + n - stay > _SINGLY or n < _FEW:
            self._renew(places)
            return None
        met = self._take_out(self._slots[:gone])
        self._slots = np.concatenate([self._slots[gone:], self._reserve(n - stay)])
        return self._put_in(range(stay, n), places, met)

    def change(self, to: Ints, places: Array) -> _Met:
        """Take out trials and put in others.

        Args:
            to: New number of each trial so far, -1 of one that goes; those that stay keep their order. The numbers in
                between are those of new ones.
            places: Of all there are then.
        """
        goes, n = to < 0, places.shape[1]
        gone = int(np.count_nonzero(goes))
        stay = len(to) - gone
        if gone + n - stay > _SINGLY or n < _FEW:
            self._renew(places)
            return None
        met = self._take_out(self._slots[goes])
        slots, is_new = np.empty(n, dtype=np.int64), np.ones(n, dtype=bool)
        stays = ~goes
        here = to[stays]
        slots[here], is_new[here] = self._slots[stays], False
        slots[is_new] = self._reserve(n - stay)
        self._slots = slots
        return self._put_in(np.flatnonzero(is_new).tolist(), places, met)

    def _take_out(self, gone: Ints) -> list[Ints]:
        """Make the neighbours of trials neighbours of each other; return their slots by column."""
        rows, met = self._rows, list[Ints]()
        for slot in gone.tolist():
            before, after = self._before[:, slot].copy(), self._after[:, slot].copy()
            is_highest = after == slot
            left = np.where(before == slot, after, before)
            right = np.where(is_highest, before, after)
            self._before[rows, after] = left
            self._after[rows, before] = right
            self._highest = np.where(is_highest, before, self._highest)
            met += [left, right]
        self._numbers[gone] = -1
        self._free += gone.tolist()
        return met

    def _reserve(self, count: int) -> Ints:
        """Return slots for new trials."""
        size = len(self._numbers)
        if len(self._free) < count:
            more = size + count
            self._free += range(size, size + more)
            self._numbers = np.concatenate([self._numbers, np.full(more, -1)])
            room = np.zeros((len(self._rows), more), dtype=np.int64)
            self._before = np.concatenate([self._before, room], axis=1)
            self._after = np.concatenate([self._after, room], axis=1)
        return np.array([self._free.pop() for _ in range(count)], dtype=np.int64)

    def _put_in(self, fresh: Sequence[int], places: Array, met: list[Ints]) -> _Met:
        """Put in trials that have their slots; return all that was met.

        Args:
            fresh: Their numbers, in order.
            places: Of all.
            met: Slots, by column, of those that have other neighbours already.
        """
        self._numbers[self._slots] = np.arange(len(self._slots))
        for k, number in enumerate(fresh):
            met += self._link(number, fresh[k + 1 :], places)
        if not met:
            return self._rows[:0], self._rows[:0]
        numbers = self._numbers[np.concatenate(met)]
        columns = np.concatenate([self._rows] * len(met))
        if len(numbers) and numbers.min() < 0:  # next to one that went before it went itself
            columns, numbers = columns[numbers >= 0], numbers[numbers >= 0]
        return columns, numbers

    def _link(self, number: int, waiting: Sequence[int], places: Array) -> tuple[Ints, Ints, Ints]:
        """Put in a trial; return its own slot and those of its neighbours by column.

        Args:
            number: Of the trial.
            waiting: Numbers of those that are not put in yet, all of them larger.
            places: Of all.
        """
        rows, slot, place = self._rows, int(self._slots[number]), places[:, number, None]
        above = places > place
        if number + 1 < places.shape[1]:
            above[:, number + 1 :] |= places[:, number + 1 :] == place
        for other in waiting:
            above[:, other] = False
        lowest_above = np.where(above, places, np.inf).argmin(axis=1)  # of equal ones the oldest
        is_highest = ~above[rows, lowest_above]
        after = self._slots[lowest_above]
        before = np.where(is_highest, self._highest, self._before[rows, after])
        is_lowest = ~is_highest & (before == after)
        after, before = np.where(is_highest, slot, after), np.where(is_lowest, slot, before)
        self._before[:, slot], self._after[:, slot] = before, after
        self._before[rows, after] = np.where(is_highest, before, slot)
        self._after[rows, before] = np.where(is_lowest, after, slot)
        self._highest = np.where(is_highest, slot, self._highest)
        return np.full(len(rows), slot), before, after

    def _renew(self, places: Array) -> None:
        """Forget all, and put these trials in order."""
        order = np.argsort(places, axis=1, kind="stable")
        n, rows = places.shape[1], self._rows[:, None]
        before, after = np.empty_like(order), np.empty_like(order)
        before[rows, order[:, 1:]], after[rows, order[:, :-1]] = order[:, :-1], order[:, 1:]
        before[rows, order[:, :1]], after[rows, order[:, -1:]] = order[:, :1], order[:, -1:]
        self._before, self._after, self._highest = before, after, order[:, -1] if n else self._rows * 0
        self._slots, self._numbers, self._free = np.arange(n), np.arange(n), []

    def widths(self, places: Array, finest: float, columns: Ints | None = None, numbers: Ints | None = None) -> Array:
        """Return trials' larger distances to their neighbours, within ``finest`` and 1.

        That of a single trial is its distance to the farther end of the range from -1/2 to 1/2.

        Args:
            places: Of all trials.
            finest: The smallest width.
            columns: Columns of those that are wanted; None: all, (n_columns, n).
            numbers: Their numbers.
        """
        if columns is None or numbers is None:
            columns, numbers = self._rows[:, None], np.arange(places.shape[1])
        own = places[columns, numbers]
        if places.shape[1] < 2:
            return np.asarray(np.minimum(np.abs(own) + 0.5, 1.0))
        slots = self._slots[numbers]
        left = own - places[columns, self._numbers[self._before[columns, slots]]]
        right = places[columns, self._numbers[self._after[columns, slots]]] - own
        return np.asarray(np.minimum(np.maximum(np.maximum(left, right), finest), 1.0))
