"""A campaign's observations, with a record of what changed, so that a search need not look at all of them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from autotune.search.base import Observation


class History(Sequence[Observation]):
    """Observations by number, in the order in which they were first put.

    A search takes it like a list. One that is asked again with the same object reads only what was put meanwhile.

    Args:
        observations: Put at once.
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._places: dict[int, int] = {}
        self._latest: list[Observation] = []
        self._changes: list[Observation] = []
        for observation in observations:
            self.put(observation)

    def put(self, observation: Observation) -> None:
        """Add an observation, or replace the one of the same number; one that is the same changes nothing."""
        place = self._places.get(observation.number)
        if place is None:
            self._places[observation.number] = len(self._latest)
            self._latest.append(observation)
        elif self._latest[place] == observation:
            return
        else:
            self._latest[place] = observation
        self._changes.append(observation)

    def changes(self, start: int) -> list[Observation]:
        """Return what was put from change number ``start`` on."""
        return self._changes[start:]

    @property
    def changed(self) -> int:
        """Number of changes so far."""
        return len(self._changes)

    def __len__(self) -> int:
        return len(self._latest)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._latest)

    @overload
    def __getitem__(self, index: int) -> Observation: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Observation]: ...

    def __getitem__(self, index: int | slice) -> Observation | Sequence[Observation]:
        return self._latest[index]
