"""Which members changed since a schedule was last asked; a cache only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import is_not

from autotune.schedule.base import Member


class Changes:
    """Remembers the members of the last call, and compares by identity: unchanged ones should be the same objects."""

    def __init__(self) -> None:
        self._last: list[Member] = []

    def since(self, members: Sequence[Member]) -> tuple[list[Member], list[Member]] | None:
        """Return (values that are gone, values that are new); None if it is better to start over.

        Args:
            members: All members now; best in the same order each time.
        """
        last, now = self._last, list(members)
        self._last = now
        if len(now) < len(last) or not last:
            return None
        changed = list(compress(range(len(last)), map(is_not, last, now)))
        if len(changed) > 100 + len(last) // 10:
            return None
        return [last[i] for i in changed], [*(now[i] for i in changed), *now[len(last) :]]
