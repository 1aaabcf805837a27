"""The tree-structured Parzen estimator, at a cost that hardly grows with the history.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NIPS 2011). Trials are split by loss into a good and a
bad group, candidates are drawn from the density of the good one, and the one with the largest ratio of the two is
proposed. Parameters are modelled together (`joint`), each on its own (`candidates`), or now this way, now that. With
the defaults of `Tpe` it is hyperopt's algorithm: given the same history it draws from the same distribution as
``hyperopt.tpe.suggest`` of hyperopt 0.3.0 (tests compare them); `hyperopt_tpe` asks hyperopt itself. The defaults of
campaigns are in `settings`.

Whatever is kept between proposals (`table`, `groups`, `tally`, `kernels`) follows from the history alone, to the last
bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.search.avoidance import Avoidance, Gate, draw_passing, move
from autotune.search.base import Memory, Observation, exhausted, generator
from autotune.search.candidates import GoodDensity, Proposer, Raw, active
from autotune.search.columns import Ints
from autotune.search.groups import Groups
from autotune.search.joint import JointProposer
from autotune.search.sites import Sites
from autotune.search.table import OUT, TOLD, WAITING, Table
from autotune.space import Choice, Nested, Numeric, Space
from autotune.space.canonical import digest
from autotune.space.choices import is_literal, unwrap

LIARS = ("mean", "worst", "best")
"""What a waiting trial may count as: this of the finite losses."""
GAMMAS = {"sqrt": 0.25, "linear": 0.1}
"""Default of gamma by the kind of split: hyperopt's and Optuna's."""
_ATTEMPTS = 4  # proposals, each with own random numbers, before a duplicate is replaced by a random draw
_PURPOSE = 16  # of random numbers; attempt k has the number 16 + k
_KIND = 24  # of the random number that decides whether a proposal is a joint one


@dataclass(frozen=True, kw_only=True)
class Tpe:
    """TPE as a pure function of settings, space, history and number.

    How a trial enters the model: finished ones with their loss; failed ones as the worst, so that they repel; pending
    ones (queued, running, paused) with the liar's loss; pruned and cancelled ones not at all. All of them count as
    seen. Until ``startup`` trials are in the model, and as long as none has a finite loss, proposals are those of
    random search with the same seed.

    Attributes:
        seed: Seed of all draws; 0 or more.
        startup: Number of trials in the model before it is used, 1 or more. With ``linear`` failed ones do not count:
            where much of a space fails, the model would else begin before it has seen all that works.
        gamma: Factor in the number of trials that count as good; None: 0.25 for ``sqrt``, 0.1 for ``linear``.
        split: ``sqrt``: ``ceil(gamma * sqrt(n))`` of n trials count as good; ``linear``: ``ceil(gamma * n)``; never
            more than 25.
        candidates: Number of candidates drawn per parameter; 1 or more.
        prior_weight: Weight of the prior relative to one trial.
        liar: ``mean``, ``worst`` or ``best`` of the finite losses, for pending trials.
        multivariate: Whether parameters are modelled together (see `joint`), not each on its own.
        independent: With ``multivariate``, the share of proposals that model each parameter on its own all the same:
            they combine good values of different trials; 0 to 1.
        focus: With ``multivariate``, how much more the better ones of the good trials weigh in its joint density, see
            `joint`; 0: all the same, but for linear forgetting.
        avoid_failures: Whether proposals keep away from where trials failed for a cause that lies in the
            configuration (see `avoidance`). Without such failures it changes nothing.
    """

    seed: int = 0
    startup: int = 20
    gamma: float | None = None
    split: str = "sqrt"
    candidates: int = 24
    prior_weight: float = 1.0
    liar: str = "mean"
    multivariate: bool = False
    independent: float = 0.0
    focus: float = 0.0
    avoid_failures: bool = True
    _memory: Memory = field(default_factory=Memory, repr=False, compare=False)
    _avoidance: Avoidance = field(default_factory=Avoidance, repr=False, compare=False)
    _known: list[_State] = field(default_factory=list, repr=False, compare=False)

    def check(self, space: Space) -> None:
        """Accept every space."""

    def propose(self, space: Space, history: Sequence[Observation], number: int) -> dict[str, Any] | None:
        """Return a configuration that is not in the history; see `Search.propose`.

        Fast with a `History`, and with a list that grows; else it has to look for what changed.
        """
        state = self._state(space)
        table = state.table
        table.sync(history)
        if exhausted(space, table.seen):
            return None
        gate = self._avoidance.gate_of(table, number, self.seed) if self.avoid_failures else None
        proposer = None if gate is not None and gate.draw else self._proposer(state, number)
        if proposer is not None:
            for attempt in range(1, _ATTEMPTS + 1):
                rng = generator(self.seed, number, _PURPOSE + attempt)
                raw = active(table.columns, proposer.propose(self.candidates, rng))
                params = state.decode(raw)
                identity = digest(params) if state.plain else space.hash(params)  # as decoded it is normalised
                if identity in table.seen:
                    continue
                if gate is None or gate.passes(raw):
                    self._memory.remember(space, params, identity, raw if state.plain else space.encode(params))
                    return params
                moved = self._moved(table, gate, raw, number)
                if moved is not None:
                    return moved
        return draw_passing(space, table.seen, generator(self.seed, number), gate)

    def propose_many(
        self, space: Space, history: Sequence[Observation], numbers: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return configurations for several trials, each proposed as if those before it were queued.

        Returns:
            One per number; fewer if the space has no more.
        """
        told = list(history)
        made: list[dict[str, Any]] = []
        for number in numbers:
            params = self.propose(space, told, number)
            if params is None:
                break
            made.append(params)
            told.append(Observation(number=number, params=params, state="queued"))
        return made

    def _state(self, space: Space) -> _State:
        if self._known and (self._known[0].table.space is space or self._known[0].table.space == space):
            return self._known[0]
        self._known[:] = [_State(space, self._memory, tallied=not self.multivariate or self.independent > 0)]
        return self._known[0]

    def _proposer(self, state: _State, number: int) -> Proposer | JointProposer | None:
        """Return the proposer of a trial from the trials as they are; None while there is no model."""
        table = state.table
        kinds = table.kinds[: len(table)]
        counted = (kinds == TOLD) | (kinds == WAITING) if self.split == "linear" else kinds != OUT
        if int(np.count_nonzero(counted)) < self.startup:
            return None
        losses = table.model_losses(self.liar if self.split == "sqrt" else None)
        if losses is None:
            return None
        state.groups.split(losses, GAMMAS[self.split] if self.gamma is None else self.gamma, self.split)
        if self.multivariate and (not self.independent or _chance(self.seed, number) >= self.independent):
            if state.joint is None or state.joint.epoch != table.epoch:
                state.joint = JointProposer(table, self.prior_weight, state.sites, self.focus)
            state.joint.update(state.groups)
            return state.joint
        known = state.good
        same = known is not None and known[0] == table.epoch and np.array_equal(known[1], state.groups.good)
        proposer = Proposer(
            table, state.groups, self.prior_weight, state.sites, known[2] if known is not None and same else None
        )
        state.good = (table.epoch, state.groups.good, proposer.good)
        return proposer

    def _moved(self, table: Table, gate: Gate, raw: Raw, number: int) -> dict[str, Any] | None:
        losses = table.losses[: len(table)]
        told = [row for row in np.argsort(losses, kind="stable").tolist() if table.told[row].loss is not None]
        return move(table.space, gate, raw, [table.raws[row] for row in told], table.seen, self.seed, number)


def _chance(seed: int, number: int) -> float:
    """Return a uniform random number, 0 to 1, for a trial; a whole `generator` for it would cost more."""
    return float(np.random.SeedSequence([seed, number, _KIND]).generate_state(1)[0]) / 2**32


class _State:
    """What is kept for one space; a cache."""

    def __init__(self, space: Space, memory: Memory, *, tallied: bool = True) -> None:
        self.table = Table(space, memory)
        self.groups = Groups(self.table, tallied=tallied)
        self.sites = Sites(self.table.columns)
        self.joint: JointProposer | None = None
        self.good: tuple[int, Ints, GoodDensity] | None = None  # epoch, rows and estimators of the good group
        # Whether decisions are read back as they were made: options with parameters in them might not be.
        self.plain = all(is_literal(o) for c in self.table.columns.choices.values() for o in c.options)
        self._flat = self.plain and not any(isinstance(p, Nested) for p in space.parameters.values())

    def decode(self, raw: Raw) -> dict[str, Any]:
        """Return `Space.decode` of decisions that were made from allowed values."""
        space = self.table.space
        if not self._flat:
            return space.decode(raw)
        params: dict[str, Any] = {}
        for name, parameter in space.parameters.items():
            if isinstance(parameter, Numeric):
                params[name] = raw[name]
            elif isinstance(parameter, Choice):
                params[name] = copy.deepcopy(unwrap(parameter.options[int(raw[name])]))
            else:
                params[name] = copy.deepcopy(unwrap(parameter))
        return params
