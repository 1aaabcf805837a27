"""Grid search: all configurations of a finite space, in the order of `Space.grid`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.search.base import Memory, Observation, exhausted
from autotune.space import Space


@dataclass(frozen=True, kw_only=True)
class GridSearch:
    """Proposes the first configuration of the grid that is not in the history.

    Attributes:
        seed: Accepted for all algorithms alike; the grid does not depend on it.
    """

    seed: int = 0
    _memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def check(self, space: Space) -> None:
        """Refuse an infinite space.

        Raises:
            SpaceError: Names the first parameter without a step.
        """
        space.grid()

    def propose(self, space: Space, history: Sequence[Observation], number: int) -> dict[str, Any] | None:
        """Return the first configuration that is not in the history; see `Search.propose`."""
        grid = space.grid()
        seen = self._memory.seen(space, history)
        if exhausted(space, seen):
            return None
        return next((params for params in grid if self._memory.look_up(space, params)[0] not in seen), None)
