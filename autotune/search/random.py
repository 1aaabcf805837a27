"""Random search: independent draws from the prior, without repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.search.avoidance import Avoidance, draw_passing
from autotune.search.base import Memory, Observation, generator
from autotune.search.table import Table
from autotune.space import Space


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Draws from the prior.

    Attributes:
        seed: Seed of all draws; 0 or more.
        avoid_failures: Whether draws that are likely to fail are drawn again (see `avoidance`).
    """

    seed: int = 0
    avoid_failures: bool = False
    _memory: Memory = field(default_factory=Memory, repr=False, compare=False)
    _avoidance: Avoidance = field(default_factory=Avoidance, repr=False, compare=False)
    _tables: list[Table] = field(default_factory=list, repr=False, compare=False)

    def check(self, space: Space) -> None:
        """Accept every space."""

    def propose(self, space: Space, history: Sequence[Observation], number: int) -> dict[str, Any] | None:
        """Return a random configuration that is not in the history; see `Search.propose`."""
        if not self._tables or (self._tables[0].space is not space and self._tables[0].space != space):
            self._tables[:] = [Table(space, self._memory)]
        table = self._tables[0]
        table.sync(history)
        table.touched.clear()
        gate = self._avoidance.gate_of(table, number, self.seed) if self.avoid_failures else None
        return draw_passing(space, table.seen, generator(self.seed, number), gate)
