"""The order of trials' places in each column, kept while trials come and go, and the gaps between neighbours."""

from __future__ import annotations

import numpy as np

from autotune.search.columns import Array, Ints

_SINGLY = 4  # more trials than this are not put in one by one


class Ranking:
    """Trials in order of their places, by column; equal places in order of time.

    Args:
        columns: Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self._order: Ints = np.zeros((columns, 0), dtype=np.int64)  # numbers of the trials
        self._places: Array = np.zeros((columns, 0))  # in that order
        self._rows: Ints = np.arange(columns)

    def drop(self, gone: int) -> None:
        """Take out the oldest trials; those that stay are numbered from 0 again."""
        if not gone:
            return
        stays = self._order >= gone
        shape = (len(self._order), self._order.shape[1] - gone)
        self._order = self._order[stays].reshape(shape) - gone
        self._places = self._places[stays].reshape(shape)

    def append(self, places: Array) -> None:
        """Put in younger trials; places: (n_columns, n_new)."""
        if places.shape[1] > _SINGLY or not self._order.shape[1]:
            begin = self._order.shape[1]
            numbers = np.broadcast_to(np.arange(begin, begin + places.shape[1]), places.shape)
            every, known = np.append(self._order, numbers, axis=1), np.append(self._places, places, axis=1)
            again = np.argsort(known, axis=1, kind="stable")
            self._order, self._places = every[self._rows[:, None], again], known[self._rows[:, None], again]
            return
        for new in places.T:
            columns, n = self._order.shape
            at = (self._places <= new[:, None]).sum(axis=1)
            there = np.ones((columns, n + 1), dtype=bool)
            there[self._rows, at] = False
            order, known = np.empty((columns, n + 1), dtype=np.int64), np.empty((columns, n + 1))
            order[there], known[there] = self._order.ravel(), self._places.ravel()
            order[self._rows, at], known[self._rows, at] = n, new
            self._order, self._places = order, known

    def renew(self, places: Array) -> None:
        """Forget all, and take these trials; places: (n_columns, n)."""
        self._order = np.argsort(places, axis=1, kind="stable")
        self._places = places[self._rows[:, None], self._order]

    def widths(self, finest: float) -> Array:
        """Return each trial's larger distance to its neighbours, within ``finest`` and 1; (n_columns, n).

        That of a single trial is its distance to the farther end of the range from -1/2 to 1/2.
        """
        columns, n = self._places.shape
        if n < 2:
            return np.minimum(np.abs(self._places) + 0.5, 1.0)
        gaps = np.zeros((columns, n + 1))
        np.subtract(self._places[:, 1:], self._places[:, :-1], out=gaps[:, 1:-1])
        larger = np.maximum(gaps[:, :-1], gaps[:, 1:])
        np.minimum(np.maximum(larger, finest, out=larger), 1.0, out=larger)
        found = np.empty(columns * n)
        found[(self._order + n * self._rows[:, None]).ravel()] = larger.ravel()
        return found.reshape(columns, n)
