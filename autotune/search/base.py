"""What a search algorithm is, and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autotune.space import Space

STATES = frozenset({"queued", "running", "paused", "finished", "pruned", "failed", "cancelled"})
PENDING = frozenset({"queued", "running", "paused"})

_PRIOR_DRAWS = 64  # draws from the prior before a finite space is searched otherwise
_UNIFORM_DRAWS = 256  # uniform draws from the grid before the grid is walked
_INFINITE_DRAWS = 10_000  # draws from an infinite space before it counts as exhausted
_MEMORY = 200_000  # configurations remembered by one cache


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One configuration that was proposed before.

    Attributes:
        number: Its trial number, 0 or more; the order of proposal.
        params: The configuration.
        state: One of ``queued``, ``running``, ``paused``, ``finished``, ``pruned``, ``failed``, ``cancelled``.
        loss: The objective, smaller is better; None unless finished. May be infinite, never NaN.
        infeasible: Whether it failed for a cause that lies in the configuration and would come again.

    Raises:
        ValueError: An unknown state, a loss of a trial that is not finished, or NaN.
    """

    number: int
    params: Mapping[str, Any]
    state: str
    loss: float | None = None
    infeasible: bool = False

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"unknown state {self.state!r}")
        if self.loss is not None and (self.state != "finished" or math.isnan(self.loss)):
            raise ValueError(f"loss {self.loss} of a trial that is {self.state}")
        if self.infeasible and self.state != "failed":
            raise ValueError(f"infeasible, but {self.state}")


class Search(Protocol):
    """Proposes configurations.

    A search is a pure function of its settings (seed included), the space, the history and the number: the
    same inputs give the same proposal, in every process. Internal state may only be a cache. The order of
    the history does not matter; numbers in it are unique.
    """

    def check(self, space: Space) -> None:
        """Check, before anything runs, that this algorithm can search ``space``.

        Raises:
            SpaceError: It cannot; says what to change.
        """
        ...

    def propose(self, space: Space, history: Sequence[Observation], number: int) -> dict[str, Any] | None:
        """Return a configuration that is not in the history, whatever its state there.

        Args:
            space: The space.
            history: All trials so far, failed and cancelled ones included.
            number: The number of the trial the proposal is for.

        Returns:
            The configuration; None if every configuration of the space is in the history already.

        Raises:
            SpaceError: A configuration of the history is not in the space, or `check` fails.
        """
        ...


def generator(seed: int, number: int, *purpose: int) -> np.random.Generator:
    """Return the random numbers of trial ``number`` of a search with ``seed``; independent ones per purpose."""
    return np.random.default_rng(np.random.SeedSequence([seed, number, *purpose]))


class Memory:
    """Remembers identity and decisions of configurations; a cache only, bounded in size."""

    def __init__(self) -> None:
        self._space: Space | None = None
        self._known: dict[str, tuple[str, dict[str, int | float]]] = {}

    def _open(self, space: Space) -> None:
        if self._space is not space and self._space != space:
            self._known = {}
        self._space = space
        if len(self._known) >= _MEMORY:
            self._known = {}

    def remember(self, space: Space, params: Mapping[str, Any], identity: str, raw: dict[str, int | float]) -> None:
        """Keep what `look_up` would find out."""
        self._open(space)
        self._known[repr(params)] = (identity, raw)

    def look_up(self, space: Space, params: Mapping[str, Any]) -> tuple[str, dict[str, int | float]]:
        """Return ``space.identify(params)``.

        Raises:
            SpaceError: The configuration is not in the space.
        """
        key = repr(params)
        found = self._known.get(key) if self._space is space or self._space == space else None
        if found is None:
            self._open(space)
            found = self._known[key] = space.identify(params)
        return found

    def seen(self, space: Space, history: Sequence[Observation]) -> set[str]:
        """Return the hashes of all configurations of the history."""
        return {self.look_up(space, observation.params)[0] for observation in history}


def exhausted(space: Space, seen: set[str]) -> bool:
    """Whether every configuration of the space is among ``seen``."""
    return space.size is not None and len(seen) >= space.size


def draw_unseen(space: Space, seen: set[str], rng: np.random.Generator) -> dict[str, Any] | None:
    """Return a random configuration that is not among ``seen``.

    It is drawn from the prior. If that keeps giving seen ones, a finite space is drawn from uniformly, and
    in the end walked (its size is then close to that of ``seen``).

    Returns:
        The configuration; None if there is none left, or, in an infinite space, if 10 000 draws from the
        prior gave no new one.
    """
    if exhausted(space, seen):
        return None
    size = space.size
    for _ in range(_PRIOR_DRAWS if size is not None else _INFINITE_DRAWS):
        params = space.sample(rng)
        if space.hash(params) not in seen:
            return params
    if size is None:
        return None
    for _ in range(_UNIFORM_DRAWS):
        params = space.point(min(int(rng.random() * size), size - 1))
        if space.hash(params) not in seen:
            return params
    skip = int(rng.integers(0, size - len(seen)))
    for params in space.grid():
        if space.hash(params) not in seen:
            if skip == 0:
                return params
            skip -= 1
    return None
