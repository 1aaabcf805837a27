"""How many workers share the store: the more there are, the less often each of them asks and writes."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

from autotune.errors import StoreError

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

COUNT_S = 120.0
"""How often a worker counts the others while all its slots work."""


class Crowd:
    """The live workers, counted now and then. All of them are taken to have as many slots as this one.

    Args:
        store: An open store.
        slots: Number of slots of this worker.

    Attributes:
        slots: The same.
        workers: How many workers lived when they were last counted; 1 before that.
    """

    def __init__(self, store: MongoStore, slots: int) -> None:
        self.slots = slots
        self.workers = 1
        self._store = store
        self._counts_s = time.monotonic()

    def count(self) -> int:
        """Count the live workers.

        Raises:
            StoreError: If the store cannot be asked.
        """
        self._counts_s = time.monotonic() + random.uniform(0.5, 1.5) * COUNT_S  # not all workers at once
        self.workers = max(1, self._store.workers.count_live())
        return self.workers

    def refresh(self) -> None:
        """Count the live workers if that was long ago; while the store is away their number is taken to be the same."""
        if time.monotonic() >= self._counts_s:
            with contextlib.suppress(StoreError):  # whoever needs the store says that it is away
                self.count()

    def apart_s(self, most: float) -> float:
        """Return the seconds from one call of a slot to its next with which all slots make `most` calls a second."""
        return self.workers * self.slots / most
