"""Random search: independent draws from the prior, without repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.search.base import Memory, Observation, draw_unseen, generator
from autotune.space import Space


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Draws from the prior.

    Attributes:
        seed: Seed of all draws; 0 or more.
    """

    seed: int = 0
    _memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def check(self, space: Space) -> None:
        """Accept every space."""

    def propose(self, space: Space, history: Sequence[Observation], number: int) -> dict[str, Any] | None:
        """Return a random configuration that is not in the history; see `Search.propose`."""
        return draw_unseen(space, self._memory.seen(space, history), generator(self.seed, number))
