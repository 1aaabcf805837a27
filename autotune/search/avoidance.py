"""Keeps proposals away from configurations that are likely to fail, for any algorithm that proposes.

Nothing here acts before the first deterministic failure (`Observation.infeasible`): until then there is no gate, and
proposals are those of the algorithm alone. A candidate passes when its probability to end well (see `feasibility`) is
near the highest one among the trials so far. Being relative, that closes little when failures have no pattern,
because then all probabilities are alike. How near depends on the share of failures among the latest trials: the more
of them fail, the stricter the gate.

Where the best lies is often known only after some failures beside it. So most proposals of the first 40 or so trials
*probe*: they pass at half the highest probability, and some are random draws. Now and then, at a rate that falls with
the number of failures, there is no gate at all, so that no region is given up for good on a wrong guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.search.base import Memory, Observation, draw_unseen, generator
from autotune.search.blends import blends
from autotune.search.columns import Ints
from autotune.search.feasibility import Array, Encoder, Feasibility, Raw, fit
from autotune.search.table import Table
from autotune.space import Space

_SLACK = 0.25  # how far below the highest probability a candidate may be while nothing fails, relative to it
_LEAST = 0.1  # share of the slack that is always left
_TARGET = 0.06  # share of failures among the latest trials at which only the least slack is left
_FADE, _LATEST = 0.95, 40  # weight of a trial relative to the next one; number of trials looked at
_PROBING = 0.5  # share of the highest probability at which a candidate passes in a probing proposal
_EARLY = 40  # number of trials at which half of the proposals probe; far fewer after
_DRAWN = 0.3  # share of probing proposals that are random draws
_LOOSE = 0.2  # of the highest probability; for random draws, which are there to explore
_OPEN = 10.0  # no gate for one in (this + number of failures) proposals
_DRAWS = 64  # random draws among which one that passes is looked for
_ANCHORS = 4  # best trials towards which a refused candidate is moved
_AT_ONCE = 32  # trials looked at together for anchors
_EACH = 200  # ended trials up to which the model is fitted for each new one
_STEP = 1 / 50  # share of new ones for which it is fitted after that, rounded down to a power of 2
_MOST = 1000  # latest ended trials that the model is fitted to
_OPENING, _PURPOSE, _BLENDING = 1, 2, 3  # purposes of random numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """Says which candidates may pass, for one proposal.

    Attributes:
        encoder: Features of the space.
        model: What was learned.
        best: Highest probability to end well among the trials so far.
        strict: Lowest probability at which a candidate of an algorithm passes.
        draw: Whether this proposal is to be a random draw.
    """

    encoder: Encoder
    model: Feasibility
    best: float
    strict: float
    draw: bool

    def probabilities(self, raws: Sequence[Raw]) -> Array:
        """Return the probability of each configuration to end well; they are given as decisions by label."""
        return self.model.probability(np.array([self.encoder.features(raw) for raw in raws]))

    def passes(self, raw: Raw) -> bool:
        """Whether a candidate of an algorithm may be proposed."""
        return bool(self.probabilities([raw])[0] >= self.strict)

    def passes_loosely(self, raw: Raw) -> bool:
        """Whether a random draw may be proposed."""
        return bool(self.probabilities([raw])[0] >= _LOOSE * self.best)

    def order(self, raws: Sequence[Raw]) -> list[int]:
        """Return the candidates' indices: those that pass in their own order, then the rest, likeliest first."""
        if not raws:
            return []
        found = self.probabilities(raws)
        passing = [i for i, p in enumerate(found) if p >= self.strict]
        rest = [i for i, p in enumerate(found) if p < self.strict]
        return passing + sorted(rest, key=lambda i: -found[i])

    def anchors(self, raws: Sequence[Raw]) -> list[Raw]:
        """Return the first few of ended trials, given best first, that pass; the likeliest if none does."""
        likeliest: tuple[float, int] = (-1.0, 0)
        for start in range(0, len(raws), _AT_ONCE):
            found = self.probabilities(raws[start : start + _AT_ONCE])
            passing = [raws[start + i] for i, p in enumerate(found) if p >= self.strict]
            if passing:
                return passing[:_ANCHORS]
            likeliest = max(likeliest, (float(found.max()), start + int(found.argmax())))
        return [raws[likeliest[1]]]


class Avoidance:
    """Makes gates. All that it holds is a cache."""

    def __init__(self) -> None:
        self._own: Table | None = None
        self._table: Table | None = None  # whose features these are
        self._encoder: Encoder | None = None
        self._epoch = -1
        self._features: Array = np.zeros((0, 0))
        self._rows = 0
        self._fitted: tuple[bytes, Feasibility, float] | None = None

    def gate(self, space: Space, history: Sequence[Observation], number: int, seed: int, memory: Memory) -> Gate | None:
        """Return `gate_of` the history, read into a table."""
        if self._own is None or (self._own.space is not space and self._own.space != space):
            self._own = Table(space, memory)
        self._own.sync(history)
        return self.gate_of(self._own, number, seed)

    def gate_of(self, table: Table, number: int, seed: int) -> Gate | None:
        """Return the gate for proposal ``number``; None where every candidate may pass.

        Trials that finished or were pruned speak for a configuration, infeasible ones against it; no other trial
        says anything. The model is that of the latest 1,000 or so of them, and after the first 200 it is fitted anew
        only when 2% more have come.
        """
        failures = len(table.infeasible)
        if failures == 0 or generator(seed, number, _OPENING).random() * (_OPEN + failures) < 1.0:
            return None
        rows = table.ended()
        infeasible = np.isin(rows, np.fromiter(table.infeasible, dtype=np.int64, count=failures))
        model, best, encoder = self._fit(table, rows, infeasible)
        chances = generator(seed, number, _PURPOSE).random(2)
        probing = bool(chances[0] * (1.0 + (len(rows) / _EARLY) ** 4) < 1.0)
        share = _PROBING if probing else _strictness(infeasible)
        draw = probing and bool(chances[1] < _DRAWN)
        return Gate(encoder=encoder, model=model, best=best, strict=share * best, draw=draw)

    def _fit(self, table: Table, rows: Ints, infeasible: NDArray[np.bool_]) -> tuple[Feasibility, float, Encoder]:
        """Return model, highest probability to end well among the trials it knows, and features."""
        features, encoder = self._read(table)
        count = _fitted_count(len(rows), int(infeasible.argmax()) + 1)
        known, failed = rows[:count][-_MOST:], infeasible[:count][-_MOST:]
        key = known.tobytes() + failed.tobytes() + table.epoch.to_bytes(8, "little")
        if self._fitted is None or self._fitted[0] != key:
            model = fit(features[known], failed, encoder.groups)
            self._fitted = key, model, float(model.probability(features[known]).max())
        return self._fitted[1], self._fitted[2], encoder

    def _read(self, table: Table) -> tuple[Array, Encoder]:
        """Return the features of all rows, and what made them."""
        if self._encoder is None or self._epoch != table.epoch or self._table is not table:
            self._table, self._encoder, self._epoch, self._rows = table, Encoder(table.space), table.epoch, 0
            self._fitted = None
        n, width = len(table), len(self._encoder.groups)
        if n > len(self._features) or self._features.shape[1] != width:
            grown = np.zeros((max(64, 2 * n), width))
            if self._rows:
                grown[: self._rows] = self._features[: self._rows]
            self._features = grown
        for row in range(self._rows, n):
            self._features[row] = self._encoder.features(table.raws[row])
        self._rows = n
        return self._features, self._encoder


def _fitted_count(count: int, first: int) -> int:
    """Return of how many trials the model is made when ``count`` ended: all of the first 200, then in steps of 2%.

    Args:
        count: Number of trials that say something.
        first: Number up to the first failure; the model always knows that.
    """
    if count <= _EACH:
        return count
    step = int(2 ** np.floor(np.log2(count * _STEP)))
    return max(first, count // step * step)


def _strictness(infeasible: NDArray[np.bool_]) -> float:
    """Return the share of the highest probability that is asked for, by what the trials so far ended in."""
    fading = _FADE ** np.arange(_LATEST)
    latest = infeasible[::-1][:_LATEST]  # those missing at the start count as trials that ended well
    failing = float(fading[: len(latest)] @ latest / fading.sum())
    least = max(_LEAST, 1.0 / max(1, int(infeasible.sum())))  # one or two failures make nothing strict
    return 1.0 - _SLACK * max(least, 1.0 - failing / _TARGET)


def move(
    space: Space, gate: Gate, refused: Raw, ended: Sequence[Raw], seen: set[str], seed: int, number: int
) -> dict[str, Any] | None:
    """Move a refused candidate towards good trials until it passes.

    Args:
        space: The space.
        gate: What refused it.
        refused: The candidate, as decisions.
        ended: Decisions of trials that ended, best first; at least one.
        seen: Hashes of the configurations that must not be proposed again.
        seed: Seed of the search.
        number: Number of the trial that the proposal is for.

    Returns:
        The configuration that passes with the smallest move, else the likeliest; None if all were seen.
    """
    made = blends(space, refused, gate.anchors(ended), generator(seed, number, _BLENDING))
    found = (space.decode(made[i]) for i in gate.order(made))
    return next((params for params in found if space.hash(params) not in seen), None)


def draw_passing(space: Space, seen: set[str], rng: np.random.Generator, gate: Gate | None) -> dict[str, Any] | None:
    """Return a random configuration as `draw_unseen` does, the first that passes; else the likeliest of 64.

    Without a gate it is `draw_unseen`.
    """
    if gate is None:
        return draw_unseen(space, seen, rng)
    drawn: list[tuple[dict[str, Any], Raw]] = []
    added: list[str] = []  # taken out of the set again: a copy of it would cost more than all draws
    try:
        while len(drawn) < _DRAWS and (params := draw_unseen(space, seen, rng)) is not None:
            raw = space.encode(params)
            if gate.passes_loosely(raw):
                return params
            drawn.append((params, raw))
            added.append(space.hash(params))
            seen.add(added[-1])
    finally:
        seen.difference_update(added)
    order = gate.order([raw for _, raw in drawn])
    return drawn[order[0]][0] if order else None
