"""The order of trials' places in each column, kept while trials come and go, and the gaps between neighbours."""

from __future__ import annotations

import numpy as np

from autotune.search.columns import Array, Ints

SINGLY = 4
"""More trials than this are not put in one by one: `Ranking.renew` is cheaper."""


class Ranking:
    """Trials in order of their places, by column; equal places in order of time.

    Args:
        columns: Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self._order: Ints = np.zeros((columns, 0), dtype=np.int64)  # numbers of the trials
        self._places: Array = np.zeros((columns, 0))  # in that order
        self._rows: Ints = np.arange(columns)

    def change(self, to: Ints, fresh: Ints, places: Array) -> None:
        """Take out trials and put in others.

        Args:
            to: New number of each trial so far, -1 of one that goes; those that stay keep their order.
            fresh: Numbers of the new ones, in order.
            places: Their places, (n_columns, n_fresh).
        """
        numbers = to[self._order]
        if bool((to < 0).any()):
            stays = numbers >= 0
            shape = (len(self._rows), int(np.count_nonzero(to >= 0)))
            numbers, self._places = numbers[stays].reshape(shape), self._places[stays].reshape(shape)
        self._order = numbers
        for number, new in zip(fresh.tolist(), places.T, strict=True):
            self._insert(number, new)

    def _insert(self, number: int, places: Array) -> None:
        columns, n = self._order.shape
        before = self._places < places[:, None]
        before |= (self._places == places[:, None]) & (self._order < number)
        at = before.sum(axis=1)
        there = np.ones((columns, n + 1), dtype=bool)
        there[self._rows, at] = False
        order, known = np.empty((columns, n + 1), dtype=np.int64), np.empty((columns, n + 1))
        order[there], known[there] = self._order.ravel(), self._places.ravel()
        order[self._rows, at], known[self._rows, at] = number, places
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
