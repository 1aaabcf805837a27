"""The history as arrays, one row per trial in order of number; only what changed is read again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.search.base import PENDING, Memory, Observation
from autotune.search.columns import Array, Columns, Ints
from autotune.search.history import History
from autotune.space import Space

OUT, TOLD, WORST, WAITING = 0, 1, 2, 3
"""What a trial is to the model: nothing, a loss, a failure, or one whose loss is not known yet."""


class Table:
    """All trials of one history.

    Attributes:
        columns: The space's decisions.
        seen: Hashes of all configurations.
        raws: Decisions by row.
        told: The observations by row.
        places: Places, NaN where inactive; (capacity, n_numeric).
        spots: Spots (see `Columns.row`), -1 where inactive; (capacity, n_spots).
        losses: Finite or infinite loss, NaN where there is none; (capacity,).
        kinds: What each is to the model; (capacity,).
        touched: Rows that changed since somebody cleared this.
        infeasible: Rows that failed for a cause that lies in the configuration.
        epoch: Grows when everything was read anew.
    """

    def __init__(self, space: Space, memory: Memory) -> None:
        self.space = space
        self.columns = Columns(space)
        self._memory = memory
        self.epoch = 0
        self._source: History | None = None
        self._clear()

    def _clear(self) -> None:
        self.epoch += 1
        self._cursor = 0
        self._rows: dict[int, int] = {}
        self._list: list[Observation] = []
        self.told: list[Observation] = []
        self.raws: list[dict[str, int | float]] = []
        self.seen: set[str] = set()
        self.touched: set[int] = set()
        self.infeasible: set[int] = set()
        self._size(64)

    def _size(self, capacity: int) -> None:
        """Make room, and keep what is there."""
        n = len(self.told)
        places = np.full((capacity, len(self.columns.numeric)), np.nan)
        spots = np.full((capacity, len(self.columns.spots)), -1, dtype=np.int64)
        losses, kinds, ended = np.full(capacity, np.nan), np.zeros(capacity, dtype=np.int8), np.zeros(capacity, bool)
        if n:
            places[:n], spots[:n] = self.places[:n], self.spots[:n]
            losses[:n], kinds[:n], ended[:n] = self.losses[:n], self.kinds[:n], self._ended[:n]
        self.places: Array = places
        self.spots: Ints = spots
        self.losses: Array = losses
        self.kinds: NDArray[np.int8] = kinds
        self._ended: NDArray[np.bool_] = ended

    def __len__(self) -> int:
        return len(self.told)

    def sync(self, history: Sequence[Observation]) -> None:
        """Take over what changed.

        Raises:
            SpaceError: A configuration is not in the space.
        """
        try:
            if isinstance(history, History):
                self._sync_history(history)
            else:
                self._sync_list(history if isinstance(history, list) else list(history))
        except BaseException:
            self._source = None
            self._clear()
            raise

    def _sync_history(self, history: History) -> None:
        if history is not self._source:
            known = len(self)
            self._merge(list(history))
            if known and len(self) != len(history):
                self._clear()
                self._merge(list(history))
            self._source, self._list = history, []
        else:
            changed = history.changes(self._cursor)
            if changed:
                self._merge(changed)
        if len(self) != len(history):
            self._clear()
            self._merge(list(history))
        self._cursor = history.changed

    def _sync_list(self, history: list[Observation]) -> None:
        known = len(self._list)
        if self._source is None and known and history[:known] == self._list:
            self._merge(history[known:])
        else:
            self._merge(history)
        if len(self) != len(history):
            self._clear()
            self._merge(history)
        self._source, self._list = None, list(history)

    def _merge(self, observations: Sequence[Observation]) -> None:
        """Add and update; rows stay in order of number."""
        new: dict[int, Observation] = {}  # the latest of each number
        for observation in observations:
            row = self._rows.get(observation.number)
            if row is None:
                new[observation.number] = observation
                continue
            old = self.told[row]
            if old is observation or old == observation:
                continue
            if old.params != observation.params:
                new = {o.number: o for o in [*self.told, *observations]}
                self._clear()
                break
            self._set(row, observation)
            self.touched.add(row)
        if new and self.told and min(new) < self.told[-1].number:
            new = {o.number: o for o in self.told} | new
            self._clear()
        for number in sorted(new):
            self._add(new[number])

    def _add(self, observation: Observation) -> None:
        row = len(self.told)
        if row >= len(self.losses):
            self._size(2 * row)
        identity, raw = self._memory.look_up(self.space, observation.params)
        places, spots = self.columns.row(raw)
        self.places[row] = places
        self.spots[row] = spots
        self._rows[observation.number] = row
        self.told.append(observation)
        self.raws.append(raw)
        self.seen.add(identity)
        self._set(row, observation)

    def _set(self, row: int, observation: Observation) -> None:
        self.told[row] = observation
        kind, loss = OUT, math.nan
        if observation.state in PENDING:
            kind = WAITING
        elif observation.state == "failed" or observation.loss == math.inf:
            kind, loss = WORST, math.inf
        elif observation.loss is not None:
            kind, loss = TOLD, observation.loss
        self._ended[row] = observation.infeasible or observation.state in ("finished", "pruned")
        if observation.infeasible:
            self.infeasible.add(row)
        else:
            self.infeasible.discard(row)
        self.kinds[row] = kind
        self.losses[row] = loss

    def ended(self) -> Ints:
        """Return the rows of trials that finished, were pruned or are infeasible."""
        return np.flatnonzero(self._ended[: len(self)])

    def model_losses(self, liar: str | None) -> Array | None:
        """Return the losses that the model is told, NaN for trials that are not in it; None if none is finite.

        Args:
            liar: ``mean``, ``worst`` or ``best`` of the finite losses: what a waiting trial counts as; None: waiting
                trials are not in the model, and what is returned is the table's own.
        """
        n = len(self)
        losses = self.losses[:n]
        is_finite = np.isfinite(losses)
        if not is_finite.any():
            return None
        if liar is None:
            return losses
        losses, finite = losses.copy(), losses[is_finite]
        lie = finite.mean() if liar == "mean" else finite.max() if liar == "worst" else finite.min()
        losses[self.kinds[:n] == WAITING] = lie
        return losses
